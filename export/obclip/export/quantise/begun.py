"""What a cloud really sent, as where calibration begins: files that `obclip generate --save-latents` writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from obclip.core.errors import InputError
from obclip.core.pairs import Pair, load_pair, shipped_pairs
from obclip.core.received import Received, differences
from obclip.core.schedule import build_schedule
from obclip.core.schedule_config import ScheduleConfig
from obclip.core.wire import Request
from obclip.export.quantise.graph import every

Float32 = NDArray[np.float32]
_ONE_EACH = ("candidates", "negative_prompt", "seed", "want_x0")  # what may differ from file to file


@dataclass(frozen=True)
class Begun:
    """Latents before the device's step `start`, and the clean ones the cloud knew then, or None; float32 [C, h, w].
    negative: the text of guidance's other branch."""

    prompt: str
    seed: int
    start: int
    x: Float32
    x0: Float32 | None
    negative: str = ""


def begun_by_cloud(
    files: Sequence[Path], count: int, config: ScheduleConfig, pair: Pair | None = None
) -> tuple[Pair, tuple[Begun, ...]]:
    """At most `count` latents, of all files in turn, and the pair with the solver, steps and guidance that the device
    finishes them with; of a file with more candidates than its share some, evenly spaced.

    config: of the device's model. pair: by default the shipped one that they are of. InputError: a file that holds no
    latents, files with different settings, of another or an unknown pair or schedule, or with less than two steps left.
    """
    found = [Received.load(path) for path in files]
    first = found[0].request
    for path, other in zip(files[1:], found[1:], strict=True):
        if wrong := [text for text in differences(first, other.request) if text.partition(" ")[0] not in _ONE_EACH]:
            raise InputError(f"{path} and {files[0]} were asked for with different settings: {', '.join(wrong)}")
    pair = pair or _pair_of(first)
    if first.pair != pair.digest:
        raise InputError(f"{files[0]} answers a request of another pair than {pair.name}")
    digest = build_schedule(config, first.solver, first.steps).digest
    if others := [path for path, r in zip(files, found, strict=True) if r.response.schedule != digest]:
        raise InputError(
            f"the latents in {others[0]} were made with another schedule than this model's; save latents of a cloud "
            "that runs the pair's models as they are now"
        )
    start, solver, steps = pair.start_on_device(first.handoff, first.steps), first.solver, first.steps
    if pair.on_its_own:
        solver, steps = pair.solver_on_device, pair.steps_on_device
    if start > steps - 2:
        raise InputError(
            f"behind {files[0]} the device has {max(steps - start, 0)} steps to run, too few to calibrate on; save "
            "latents with a smaller --handoff"
        )
    asked = replace(
        pair, solver=solver, steps=steps, handoff=1, timestep_shift=0, device_solver=None, device_steps=None,
        guidance=first.guidance,
    )  # fmt: skip
    share = -(-count // len(files))
    of_each = [every(range(len(r.request.candidates)), share) for r in found]
    chosen = [(r, of[n]) for n in range(share) for r, of in zip(found, of_each, strict=True) if n < len(of)]
    return asked, tuple(
        Begun(r.request.candidates[i], r.request.seed, start, *_latents(r, i), r.request.negative_prompt)
        for r, i in chosen[:count]
    )


def _latents(received: Received, index: int) -> tuple[Float32, Float32 | None]:
    x, x0 = received.response.latents[index], received.response.x0
    return x.astype(np.float32), None if x0 is None else x0[index].astype(np.float32)


def _pair_of(request: Request) -> Pair:
    for name in shipped_pairs():
        if load_pair(name).digest == request.pair:
            return load_pair(name)
    raise InputError("the latents are of a pair that does not come with this package; name its file with --pair")
