"""What a precision costs: PSNR of passes and of finished pictures to float32, and how much of the text is heard."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obclip.core.schedule import Schedule
from obclip.export.quantise.graph import Feed, run, session
from obclip.export.quantise.runtimes import Graph, open_graph
from obclip.export.quantise.trajectories import Trajectory
from obclip.export.quantise.unets import Unet, denoise

FLOOR_DB = 30.0
CONDITIONING_TOLERANCE = 0.05


@dataclass(frozen=True)
class Verdict:
    """To the float32 model. psnr_db: mean over finished pictures (of a decoder: its pictures); lowest_db: worst.

    pass_db: of single passes. conditioning: the response to the text relative to float32's, 1 if nothing was lost.
    """

    psnr_db: float
    lowest_db: float
    pass_db: float
    conditioning: float = 1.0

    def meets(self, floor_db: float) -> bool:
        """Whether the mean picture is above the floor and the text is heard."""
        return self.psnr_db >= floor_db and abs(self.conditioning - 1) <= CONDITIONING_TOLERANCE

    def to_dict(self) -> dict[str, Any]:
        return {name: round(value, 4 if name == "conditioning" else 2) for name, value in asdict(self).items()}


class Pictures:
    """Latents to pictures, with the float32 decoder, each in 0..1."""

    def __init__(self, decoder: Path, latent_scale: float) -> None:
        self._session, self._scale = session(decoder), np.float32(latent_scale)

    def __call__(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        sample = run(self._session, {"latent_sample": (latents / self._scale)[None]})["sample"][0]
        return np.asarray(np.clip(sample / 2 + 0.5, 0, 1), np.float32)


def of_unet(
    unet: Unet,
    found: Sequence[Trajectory],
    schedule: Schedule,
    guidance: float,
    pictures: Pictures,
    probes: int = 3,
    cached: Collection[int] = (),
) -> Verdict:
    """Finish each trajectory from its step k with `unet`; compare passes and responses at `probes` steps of each.

    cached: steps on features of the step before; where there are any, passes are compared at these and the ones before.
    """
    finished, passes, heard, wanted = [], [], 0.0, 0.0
    for t in found:
        last = denoise(unet, schedule, t.x, t.start, t.branches, guidance, t.x0, t.seed)
        finished.append(psnr(pictures(t.last), pictures(last), 1.0))
        steps = sorted({p.step for p in t.passes if not cached or p.step in cached})
        picked = {steps[i] for i in np.linspace(0, len(steps) - 1, probes).round().astype(int)}
        for step in sorted(picked | ({step - 1 for step in picked} if cached else set())):
            theirs = [p for p in t.passes if p.step == step]
            mine = [unet.output(p.x, step, t.branches[p.branch]) for p in theirs]
            passes += [psnr(p.output, m) for p, m in zip(theirs, mine, strict=True)]
            if len(mine) == 2:
                heard += float(np.linalg.norm(mine[0] - mine[1]))
                wanted += float(np.linalg.norm(theirs[0].output - theirs[1].output))
    return Verdict(
        float(np.mean(finished)), min(finished), float(np.mean(passes)), heard / wanted if wanted > 0 else 1.0
    )


def of_graph(graph: Graph, source: Path, feeds: Sequence[Feed], target: str = "cpu") -> Verdict:
    """One graph on its own: all its outputs, on `feeds`. Of a decoder these are the pictures."""
    mine, theirs = open_graph(graph, target), session(source)
    names = [v.name for v in theirs.get_outputs()]
    values = []
    for feed in feeds:
        a, b = run(theirs, feed, names), run(mine, feed, names)
        values.append(min(psnr(a[name], b[name]) for name in names))
    mean = float(np.mean(values))
    return Verdict(mean, min(values), mean)


def psnr(wanted: NDArray[Any], found: NDArray[Any], peak: float | None = None) -> float:
    """In dB, at most 200. peak: by default the range of `wanted`. Numbers that are not finite give -inf."""
    error = float(np.mean((wanted.astype(np.float64) - found.astype(np.float64)) ** 2))
    if not np.isfinite(error):
        return float("-inf")
    peak = float(wanted.max() - wanted.min()) if peak is None else peak
    return min(200.0, float(20 * np.log10(peak / np.sqrt(error)))) if error > 0 and peak > 0 else 200.0
