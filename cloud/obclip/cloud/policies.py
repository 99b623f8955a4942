"""Ways to do less for N near-identical prompts: each a small rewriting of the table of cells.

Policies over rows say which predictions candidates share (SharedUnconditional, Prefix, Tree, GuidanceFrom); those
over parts say what is not computed again (DeepCache, SharedDeep, PublishedCache, PublishedReuse). All are symmetric
in the candidates or choose by a hash of the whole set, so that nothing depends on which of them is meant.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from obclip.cloud.attributes import attribute_groups
from obclip.cloud.parts import Attention, Part
from obclip.cloud.plan import Branch, Cell, Row, Table


@dataclass(frozen=True)
class SharedUnconditional:
    """One unconditional row for all candidates, at their mean latent, from step `start` on, and at step 0.

    At step 0, where all latents are the same noise, this is exact.
    """

    start: int = 0

    def apply(self, table: Table, candidates: Sequence[str]) -> Table:
        everyone = (tuple(range(len(candidates))),)
        return tuple(
            _merged(cells, Branch.UNCONDITIONAL, everyone) if i >= self.start or i == 0 else cells
            for i, cells in enumerate(table)
        )


@dataclass(frozen=True)
class Prefix:
    """The first `steps` steps on one neutral row for all candidates, at their mean text; then they branch."""

    steps: int

    def apply(self, table: Table, candidates: Sequence[str]) -> Table:
        everyone = (tuple(range(len(candidates))),)
        return tuple(_both(cells, everyone) if i < self.steps else cells for i, cells in enumerate(table))


@dataclass(frozen=True)
class Tree:
    """Candidates branch attribute by attribute, the one with fewest values first; `starts`: the step of each branching.

    Before starts[0] all are one row; from starts[j] on, candidates that agree in the first j + 1 attributes are. With
    more attributes than starts, the rest branch at the last; prompts that cannot be aligned branch at starts[0].
    """

    starts: tuple[int, ...]

    def apply(self, table: Table, candidates: Sequence[str]) -> Table:
        levels = attribute_groups(candidates)
        result = []
        for i, cells in enumerate(table):
            done = sum(i >= start for start in self.starts)
            groups = levels[-1] if done == len(self.starts) else levels[min(done, len(levels) - 1)]
            result.append(_both(cells, groups))
        return tuple(result)


@dataclass(frozen=True)
class GuidanceFrom:
    """No unconditional rows before step `start` (limited-interval guidance, Kynkaanniemi et al. 2024, 2404.07724)."""

    start: int

    def apply(self, table: Table, candidates: Sequence[str]) -> Table:
        return tuple(
            tuple(c for c in cells if i >= self.start or c.row.branch is Branch.CONDITIONAL)
            for i, cells in enumerate(table)
        )


@dataclass(frozen=True)
class DeepCache:
    """Only the outermost `depth` up layers run, but for the steps `full` (Ma et al. 2024, arXiv 2312.00858).

    Step 0 is always whole. branch: one of the two branches alone, None for both.
    """

    depth: int
    full: tuple[int, ...]
    branch: Branch | None = None

    @classmethod
    def every(cls, interval: int, depth: int, steps: int, first: int = 1) -> DeepCache:
        """Whole for the `first` steps, then from the last of them on at every `interval`-th of `steps`."""
        return cls(depth, (*range(first), *range(max(first - 1, 0), steps, interval)))

    def apply(self, table: Table, candidates: Sequence[str]) -> Table:
        def shallow(i: int, cell: Cell) -> Cell:
            hit = i > 0 and i not in self.full and self.branch in (None, cell.row.branch)
            return replace(cell, part=Part(self.depth)) if hit else cell

        return _each(table, shallow)


@dataclass(frozen=True)
class SharedDeep:
    """From step `start` on, deep features of the pivot's row stand for every candidate's; the others run shallow.

    Cells that another policy has made shallow already are left alone.
    """

    depth: int
    start: int

    def apply(self, table: Table, candidates: Sequence[str]) -> Table:
        lead = pivot_of(candidates)
        result = []
        for i, cells in enumerate(table):
            leads = {c.row.branch: c.row for c in cells if lead in c.row.members and c.part.depth is None}
            result.append(
                tuple(
                    replace(c, part=Part(self.depth), source=leads[c.row.branch])
                    if i >= self.start and c.row.branch in leads and c.row != leads[c.row.branch]
                    else c
                    for c in cells
                )
            )
        return tuple(result)


@dataclass(frozen=True)
class PublishedCache:
    """ObCLIP section 4.2: attention kept from step `attention_from`, down and mid blocks skipped from `skip_from`.

    Everything is computed anew every `refresh` steps from `attention_from` - 1 on (after T-GATE, arXiv 2404.02747).
    """

    attention_from: int
    skip_from: int
    depth: int
    refresh: int = 5

    def apply(self, table: Table, candidates: Sequence[str]) -> Table:
        def cached(i: int, cell: Cell) -> Cell:
            if i < max(self.attention_from, 1) or (i - self.attention_from + 1) % self.refresh == 0:
                return cell
            skipped = i >= self.skip_from
            part = Part(self.depth if skipped else None, kept_skips=skipped, attention=Attention.KEPT)
            return replace(cell, part=part)

        return _each(table, cached)


@dataclass(frozen=True)
class PublishedReuse:
    """ObCLIP algorithm 2: before step `until`, the pivot's attention maps serve every candidate, in each branch."""

    until: int

    def apply(self, table: Table, candidates: Sequence[str]) -> Table:
        lead = pivot_of(candidates)
        result = []
        for i, cells in enumerate(table):
            pivots = {c.row.branch: c.row for c in cells if lead in c.row.members}
            result.append(
                tuple(
                    replace(c, part=replace(c.part, attention=Attention.PIVOT), pivot=pivots[c.row.branch])
                    if i < self.until and c.part.attention is Attention.OWN
                    else c
                    for c in cells
                )
            )
        return tuple(result)


def pivot_of(candidates: Sequence[str]) -> int:
    """The pivot: by a hash of the public set, never by order or by what is meant."""
    text = json.dumps(sorted(candidates), ensure_ascii=False).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") % len(candidates)


def _each(table: Table, change: Callable[[int, Cell], Cell]) -> Table:
    return tuple(tuple(change(i, cell) for cell in cells) for i, cells in enumerate(table))


def _both(cells: tuple[Cell, ...], groups: Sequence[tuple[int, ...]]) -> tuple[Cell, ...]:
    for branch in Branch:
        cells = _merged(cells, branch, groups)
    return cells


def _merged(cells: tuple[Cell, ...], branch: Branch, groups: Sequence[tuple[int, ...]]) -> tuple[Cell, ...]:
    """Rows of `branch` joined wherever all of their members are in one group."""
    group_of = {member: group for group in groups for member in group}
    merged: list[Cell] = []
    for cell in cells:
        if cell.row.branch is not branch:
            merged.append(cell)
            continue
        group = group_of[cell.row.members[0]]
        row = Row(branch, group) if set(cell.row.members) <= set(group) else cell.row
        if all(c.row != row for c in merged):
            merged.append(replace(cell, row=row))
    return tuple(merged)
