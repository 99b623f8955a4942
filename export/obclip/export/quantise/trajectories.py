"""Calibration data: what a device's models meet when it finishes what the cloud began.

Random inputs would calibrate for a model nobody runs. A trajectory is the pair's own: latents as the large model hands
them over at step k, then the device's steps, on the device's schedule, with both guidance branches, and the latents it
decodes.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from obclip.core.noise import initial_noise
from obclip.core.pairs import Pair
from obclip.core.schedule import Schedule, build_schedule
from obclip.core.schedule_config import ScheduleConfig
from obclip.export.quantise.begun import Begun
from obclip.export.quantise.conditions import encode
from obclip.export.quantise.graph import Feed
from obclip.export.quantise.unets import DeviceUnet, Pass, Unet, WholeUnet, denoise

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Trajectory:
    """x: latents before the device's step `start`; x0: the clean ones the cloud knew then, or None; last: at the end.

    branches: conditions of the text and, under guidance, of no text. passes: every one, in order.
    All latents float32 [C, h, w].
    """

    prompt: str
    seed: int
    start: int
    x: Float32
    x0: Float32 | None
    branches: tuple[Feed, ...]
    passes: tuple[Pass, ...]
    last: Float32


def trajectories(
    pair: Pair,
    bundle: Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    large: Path | None = None,
    handoff: int | None = None,
    steps: int | None = None,
) -> list[Trajectory]:
    """One trajectory a prompt and seed, on the fp32 models of `bundle` (folders unet/, text_encoder/, ...).

    large: diffusers folder of the cloud's model, behind whose step k the device goes on at k and the pair's shift;
    without it the device's model starts at step 0. handoff: the pair's by default; steps: of both sides, theirs by
    default. The two models are never in memory together. ModelMissingError: one of them is incomplete.
    """
    schedule = device_schedule(pair, bundle, steps)
    start = 0
    if large is not None:
        from obclip.export.quantise.cloud_half import handed_over  # PyTorch, which nothing else here needs

        theirs = _schedule(bundle, pair.solver, steps or pair.steps)
        k = min(handoff or pair.handoff, theirs.steps - 1)
        start = min(pair.start_on_device(k, theirs.steps), schedule.steps - 1)
        latents: list[tuple[Float32, Float32 | None]] = list(handed_over(pair, large, theirs, prompts, seeds, k))
    else:
        scale = np.float32(schedule.initial_scale)
        latents = [(np.asarray(scale * initial_noise(s, pair.latent_shape), np.float32), None) for s in seeds]
    begun = [Begun(p, s, start, *of) for p, s, of in zip(prompts, seeds, latents, strict=True)]
    return finished(pair, bundle, begun, schedule)


def finished(pair: Pair, bundle: Path, begun: Sequence[Begun], schedule: Schedule) -> list[Trajectory]:
    """Each of `begun`, taken to the end by the fp32 models of `bundle`."""
    texts = dict.fromkeys(text for b in begun for text in (b.prompt, b.negative))
    conditions = encode(bundle, list(texts), (pair.height, pair.width), pair.guidance)
    guided = "timestep_cond" not in conditions[begun[0].prompt] and pair.guidance != 1.0
    unet, made = WholeUnet(bundle / "unet" / "model.onnx", schedule), []
    for b in begun:
        branches = (conditions[b.prompt], conditions[b.negative]) if guided else (conditions[b.prompt],)
        kept = b.x0 if pair.handoff_history else None
        seen: list[Pass] = []
        last = denoise(unet, schedule, b.x, b.start, branches, pair.guidance, kept, b.seed, seen)
        made.append(Trajectory(b.prompt, b.seed, b.start, b.x, kept, branches, tuple(seen), last))
    del unet
    gc.collect()
    return made


def device_schedule(pair: Pair, bundle: Path, steps: int | None = None) -> Schedule:
    """The solver and steps that the device finishes with. steps: the pair's by default."""
    return _schedule(bundle, pair.solver_on_device, steps or pair.steps_on_device)


def _schedule(bundle: Path, solver: str, steps: int) -> Schedule:
    config = ScheduleConfig.from_file(bundle / "scheduler" / "scheduler_config.json")
    return build_schedule(config, solver, steps)


def unet_inputs(found: Sequence[Trajectory], schedule: Schedule, bundle: Path) -> Iterator[Feed]:
    """Inputs of `unet/model.onnx`, every pass of every trajectory in turn."""
    return _passes(found, WholeUnet(bundle / "unet" / "model.onnx", schedule))


def device_inputs(found: Sequence[Trajectory], schedule: Schedule, unet: Path, target: str) -> Iterator[Feed]:
    """Inputs of the device graphs in the folder `unet`, `features` among them: those of the step before."""
    device = DeviceUnet(unet, unet / f"{target}_fp32_full.onnx", schedule)
    for t in found:
        device.features.clear()
        for p in t.passes:
            feed = device.feed(p.x, p.step, t.branches[p.branch])
            device.output(p.x, p.step, t.branches[p.branch])
            if "features" in feed:
                yield feed


def decoder_inputs(found: Sequence[Trajectory], latent_scale: float) -> Iterator[Feed]:
    for t in found:
        yield {"latent_sample": (t.last / np.float32(latent_scale))[None]}


def _passes(found: Sequence[Trajectory], unet: Unet) -> Iterator[Feed]:
    for t in found:
        for p in t.passes:
            yield unet.feed(p.x, p.step, t.branches[p.branch])
