"""Rows of several requests through one pass of the UNet."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from obclip.cloud.denoising import Denoising
from obclip.cloud.parts import NOTHING, Keep, Part
from obclip.cloud.plan import Pass, Step
from obclip.cloud.unet import Features, Inputs, LayeredUNet

Forward = Callable[..., tuple[torch.Tensor, Features]]  # LayeredUNet.__call__, or something that stands for it


@dataclass(frozen=True)
class Slice:
    """Rows [start, stop) of one pass of a request's step."""

    state: Denoising
    step: Step
    one: Pass
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def closes_step(self) -> bool:
        """Whether the step is done once these rows are."""
        return self.one is self.step.passes[-1] and self.stop == len(self.one.rows)


@dataclass(frozen=True)
class Batcher:
    """bucket: batches are padded to this many rows, None for none. row_by_row: rows run one at a time. dtype: what
    `forward` takes, None for the models' own.

    A kernel's order of additions may depend on the batch's size, but not on what is in the other rows. So what a row
    gives depends on that row alone, bit for bit, if rows run one at a time or every batch is padded to one size. (Rows
    that share a pivot count as one here.)
    """

    forward: Forward
    bucket: Callable[[int], int] | None = None
    row_by_row: bool = False
    dtype: torch.dtype | None = None

    def run(self, slices: Sequence[Slice]) -> list[Slice]:
        """Run all rows, which must be of one part; each request takes its own. Those not finite, a slice for each row,
        or for all that share a pivot."""
        if self.row_by_row:
            return [bad for s in slices for piece in _rows_of(s) for bad in self._run([piece])]
        return self._run(slices)

    def size(self, rows: int) -> int:
        """How many rows a batch of `rows` runs as."""
        return rows if self.bucket is None else self.bucket(rows)

    def _run(self, slices: Sequence[Slice]) -> list[Slice]:
        parts = [s.state.inputs(s.step, s.one, s.start, s.stop, self.dtype) for s in slices]
        x = torch.cat([part[0] for part in parts])
        inputs = _joined([part[1] for part in parts])
        kept = {name: torch.cat([part[2][name] for part in parts]) for name in parts[0][2]}
        keep = NOTHING
        for s in slices:
            keep |= s.one.keep
        output, features = self._forward(x, inputs, kept, keep, slices)
        finite = torch.isfinite(output).flatten(1).all(1).tolist()
        bad, at = [], 0
        for s in slices:
            rows = slice(at, at + s.rows)
            names = s.state.model.layered.names(s.one.keep)  # others in the batch may keep more
            own = {name: features[name][rows] for name in names if name in features}
            s.state.take(s.one, s.start, s.stop, output[rows], own)
            bad += [one for one in _rows_of(s) if not all(finite[at + one.start - s.start : at + one.stop - s.start])]
            at += s.rows
        return bad

    def _forward(
        self, x: torch.Tensor, inputs: Inputs, kept: Features, keep: Keep, slices: Sequence[Slice]
    ) -> tuple[torch.Tensor, Features]:
        pivots, at = [], 0
        for s in slices:
            pivots += [at + p for p in s.one.pivots]
            at += s.rows
        rows = len(x)
        extra = self.size(rows) - rows
        if extra > 0:
            index = torch.tensor([*range(rows), *[rows - 1] * extra], device=x.device)
            x, inputs = x[index], _picked(inputs, index)
            kept = {name: value[index] for name, value in kept.items()}
            pivots += pivots[-1:] * extra
        x = x.contiguous(memory_format=torch.channels_last)
        output, features = self.forward(x, inputs, slices[0].one.part, kept, keep, tuple(pivots))
        return output[:rows], {name: value[:rows] for name, value in features.items()}


def float32_copy(layered: LayeredUNet) -> LayeredUNet:
    """The same UNet in float32, for rows that were not finite."""
    return LayeredUNet(copy.deepcopy(layered.unet).float())


def run_float32(slices: Sequence[Slice], layered: LayeredUNet) -> list[Slice]:
    """Run slices again on a float32 UNet, one by one, so that it does not matter what shared their batches; those that
    are still not finite. What they keep stays in float32: a cached step that takes it is not finite in float16, and so
    runs here too."""

    def forward(
        x: torch.Tensor, inputs: Inputs, part: Part, kept: Features, keep: Keep, pivots: tuple[int, ...]
    ) -> tuple[torch.Tensor, Features]:
        return layered(x, _mapped(inputs, torch.Tensor.float), part, kept, keep, pivots)

    return [bad for s in slices for bad in Batcher(forward, dtype=torch.float32).run([s])]


def _rows_of(s: Slice) -> list[Slice]:
    """One slice a row; rows that refer to each other stay together."""
    if s.one.pivots:
        return [s]
    return [replace(s, start=i, stop=i + 1) for i in range(s.start, s.stop)]


def _joined(parts: Sequence[Inputs]) -> Inputs:
    def cat(values: list[torch.Tensor | None]) -> torch.Tensor | None:
        return None if values[0] is None else torch.cat([v for v in values if v is not None])

    return Inputs(
        timestep=torch.cat([p.timestep for p in parts]),
        text=torch.cat([p.text for p in parts]),
        pooled=cat([p.pooled for p in parts]),
        size=cat([p.size for p in parts]),
        scale=cat([p.scale for p in parts]),
        projected={
            name: (torch.cat([p.projected[name][0] for p in parts]), torch.cat([p.projected[name][1] for p in parts]))
            for name in parts[0].projected
        },
    )


def _picked(inputs: Inputs, index: torch.Tensor) -> Inputs:
    return _mapped(inputs, lambda value: value[index])


def _mapped(inputs: Inputs, change: Callable[[torch.Tensor], torch.Tensor]) -> Inputs:
    def each(value: torch.Tensor | None) -> torch.Tensor | None:
        return None if value is None else change(value)

    return Inputs(
        change(inputs.timestep), change(inputs.text), each(inputs.pooled), each(inputs.size), each(inputs.scale),
        {name: (change(keys), change(values)) for name, (keys, values) in inputs.projected.items()},
    )  # fmt: skip
