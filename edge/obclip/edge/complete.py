"""The device's own steps: from the latents at step k to the last, with classifier-free guidance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from obclip.core.errors import RunError
from obclip.core.noise import initial_noise, step_noise
from obclip.core.schedule import Schedule
from obclip.edge.bundle import Bundle
from obclip.edge.steps import PLAIN, DeviceStep, Saving, plan_steps
from obclip.edge.text import Conditions, guidance_embedding
from obclip.edge.unet import UNet, unet_of

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Guidance:
    """text, negative: as `Bundle.encode` gives them; scale: 1 leaves the negative branch out."""

    text: Conditions
    negative: Conditions
    scale: float


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
    """Steps start..T-1 on the bundle's UNet; yields (steps done, x, x0) after each, float32 [4, h, w].

    x: latents before step `start`, variance-preserving. x0: the previous step's clean latents, if they are known;
    without them the solver starts anew at first order. saving: what is not evaluated; cached steps need a bundle with
    device graphs, and are whole on another. RunError if numbers stop being finite.
    """
    told = bundle.manifest.component("unet").inputs.get("timestep_cond")
    if told is not None:  # a latent consistency model is told the scale, and has no second branch
        guidance = Guidance(
            guidance.text | {"timestep_cond": guidance_embedding(guidance.scale, int(told[-1]))}, guidance.negative, 1.0
        )
    texts = {"text": guidance.text} | ({"negative": guidance.negative} if guidance.scale != 1.0 else {})
    unet = unet_of(bundle, texts, [float(t) for t in schedule.timesteps])
    for step in plan_steps(start, schedule.steps, saving, unet.can_be_shallow):
        i = step.index
        output = _guided(unet, guidance.scale, x, step)
        noise = step_noise(seed, i, x.shape) if schedule.needs_noise else None
        x, x0 = schedule.step(i, x, output, x0, noise)
        if not np.isfinite(x).all():
            raise RunError(f"step {i} produced numbers that are not finite; try another provider")
        yield i + 1, x, x0


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
