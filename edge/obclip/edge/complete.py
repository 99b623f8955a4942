"""The device's own steps: from the latents at step k to the last, with classifier-free guidance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from obclip.core.errors import RunError
from obclip.core.guidance import guidance_embedding
from obclip.core.noise import initial_noise, step_noise
from obclip.core.schedule import Schedule
from obclip.edge.bundle import Bundle
from obclip.edge.steps import PLAIN, DeviceStep, Saving, plan_steps
from obclip.edge.text import Conditions
from obclip.edge.unet import UNet, unet_of

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Guidance:
    """text, negative: as `Bundle.encode` gives them; scale: 1 leaves the negative branch out."""

    text: Conditions
    negative: Conditions
    scale: float


class Denoiser:
    """A bundle's UNet that was told its texts and the schedule's timesteps. scale: of guidance, 1 for one branch."""

    def __init__(self, unet: UNet, schedule: Schedule, scale: float) -> None:
        self._unet: UNet | None = unet
        self._schedule, self._scale = schedule, scale

    def run(
        self, x: Float32, start: int, seed: int, x0: Float32 | None = None, saving: Saving = PLAIN
    ) -> Iterator[tuple[int, Float32, Float32]]:
        """Steps start..T-1; yields (steps done, x, x0) after each, float32 [4, h, w].

        x: latents before step `start`, variance-preserving. x0: the previous step's clean latents, if they are known;
        without them the solver starts anew at first order. saving: what is not evaluated; cached steps need a bundle
        with device graphs, and are whole on another. RunError if numbers stop being finite.
        """
        if self._unet is None:
            raise RunError("this completion's models were closed; make them ready again")
        unet, schedule = self._unet, self._schedule
        for step in plan_steps(start, schedule.steps, saving, unet.can_be_shallow):
            i = step.index
            output = _guided(unet, self._scale, x, step)
            noise = step_noise(seed, i, x.shape) if schedule.needs_noise else None
            x, x0 = schedule.step(i, x, output, x0, noise)
            if not np.isfinite(x).all():
                raise RunError(f"step {i} produced numbers that are not finite; try another provider")
            yield i + 1, x, x0

    def close(self) -> None:
        """Let go of the UNet's sessions, which the bundle may then free."""
        self._unet = None


def denoiser(bundle: Bundle, schedule: Schedule, guidance: Guidance) -> Denoiser:
    """Opens the UNet's graphs and runs those that need no latents."""
    guidance = told_scale(bundle, guidance)
    texts = {"text": guidance.text} | ({"negative": guidance.negative} if guidance.scale != 1.0 else {})
    return Denoiser(unet_of(bundle, texts, [float(t) for t in schedule.timesteps]), schedule, guidance.scale)


def told_scale(bundle: Bundle, guidance: Guidance) -> Guidance:
    """A latent consistency model is told the scale beside the text, and has no second branch; others as it is."""
    told = bundle.manifest.component("unet").inputs.get("timestep_cond")
    if told is None:
        return guidance
    text = guidance.text | {"timestep_cond": guidance_embedding(guidance.scale, int(told[-1]))}
    return Guidance(text, guidance.negative, 1.0)


def denoise(
    bundle: Bundle,
    schedule: Schedule,
    guidance: Guidance,
    x: Float32,
    start: int,
    seed: int,
    x0: Float32 | None = None,
    saving: Saving = PLAIN,
) -> Iterator[tuple[int, Float32, Float32]]:
    """`Denoiser.run` on the bundle's UNet, opened for this."""
    return denoiser(bundle, schedule, guidance).run(x, start, seed, x0, saving)


def first_latents(schedule: Schedule, seed: int, shape: tuple[int, int, int]) -> Float32:
    """The latents before step 0, as the cloud makes them too."""
    return (np.float32(schedule.initial_scale) * initial_noise(seed, shape)).astype(np.float32)


def _guided(unet: UNet, scale: float, x: Float32, step: DeviceStep) -> Float32:
    """Two passes of batch 1: on a CPU a batch of 2 takes twice the time and more memory."""
    conditional = unet("text", x, step.index, step.shallow)
    if scale == 1.0 or not step.guided:
        return conditional
    negative = unet("negative", x, step.index, step.shallow)
    return np.asarray(negative + np.float32(scale) * (conditional - negative), np.float32)
