"""A request becomes a plan: for each step, which rows run which part of the UNet, and whose features they take.

A row is one latent under one branch of classifier-free guidance, standing for one or several candidates. The plan is
plain data, a function of the public request alone; its cost is known before anything runs, and the engine executes
exactly what it says. Policies (obclip.cloud.policies) rewrite a table of cells; `build_plan` makes passes of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

from obclip.cloud.parts import FULL, NOTHING, Attention, Keep, Part, needs
from obclip.core.errors import InputError
from obclip.core.wire import Request


class Branch(Enum):
    """The two predictions of classifier-free guidance (Ho & Salimans 2022)."""

    UNCONDITIONAL = "unconditional"
    CONDITIONAL = "conditional"


@dataclass(frozen=True)
class Row:
    """members: indices into the request's sorted candidates.

    A row of several members is evaluated at the mean of their latents, under the mean of their text (or under the
    negative prompt), and what it predicts is taken for each of them.
    """

    branch: Branch
    members: tuple[int, ...]


@dataclass(frozen=True)
class Cell:
    """What one row does in one step, as policies see it.

    source: whose kept features it runs on, if not those of its own past: a row of the same step or an earlier one.
    A cell for which there are none runs whole. pivot: whose attention maps it takes (its own, for the pivot itself).
    """

    row: Row
    part: Part = FULL
    source: Row | None = None
    pivot: Row | None = None


Table = tuple[tuple[Cell, ...], ...]  # one tuple of cells a step


class Policy(Protocol):
    """One way to do less. `apply` gets and returns a table for a set of candidates, and must be symmetric in them."""

    def apply(self, table: Table, candidates: Sequence[str]) -> Table: ...


@dataclass(frozen=True)
class Pass:
    """One forward of `part` over `rows`.

    sources: for each row, whose kept features it takes; empty if `part` needs none. keep: what is kept of these rows.
    pivots: for each row, the position in `rows` of the one whose attention maps it takes; empty if each has its own.
    """

    part: Part
    rows: tuple[Row, ...]
    sources: tuple[Row, ...] = ()
    keep: Keep = NOTHING
    pivots: tuple[int, ...] = ()


@dataclass(frozen=True)
class Step:
    """index: the solver's step, from 0. passes: in the order in which they run."""

    index: int
    passes: tuple[Pass, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        return tuple(row for p in self.passes for row in p.rows)

    @property
    def guided(self) -> bool:
        """Whether both branches run; if not, the conditional prediction is taken as it is."""
        return any(row.branch is Branch.UNCONDITIONAL for row in self.rows)


@dataclass(frozen=True)
class Plan:
    candidates: int
    steps: tuple[Step, ...]

    @property
    def rows(self) -> int:
        """Rows over all steps and passes."""
        return sum(len(p.rows) for s in self.steps for p in s.passes)

    @property
    def widest(self) -> int:
        """The most rows one pass holds."""
        return max(len(p.rows) for s in self.steps for p in s.passes)


def plain_table(candidates: int, steps: int, guided: bool) -> Table:
    """Every candidate, both branches, at every step, nothing reused: the paper's oblivious generation without cache."""
    branches = (Branch.UNCONDITIONAL, Branch.CONDITIONAL) if guided else (Branch.CONDITIONAL,)
    return (tuple(Cell(Row(b, (i,))) for b in branches for i in range(candidates)),) * steps


def build_plan(
    request: Request, policies: Iterable[Policy] = (), max_rows: int = 64, guidance_distilled: bool = False
) -> Plan:
    """The plan of `request` under `policies`, in passes of at most `max_rows` rows.

    Guidance of exactly 1 is the conditional prediction itself, so its other branch is left out; so it is for a UNet
    into which guidance was distilled (latent consistency models). InputError for policies that do not fit together, and
    for pivots where max_rows is 1.
    """
    guided = request.guidance != 1.0 and not guidance_distilled
    table = plain_table(len(request.candidates), request.handoff, guided)
    for policy in policies:
        table = policy.apply(table, request.candidates)
    return Plan(len(request.candidates), _to_steps(table, max_rows))


def plain_plan(request: Request, max_rows: int = 64, guidance_distilled: bool = False) -> Plan:
    """Every candidate, both branches, at every step, nothing reused: the paper's oblivious generation without cache."""
    return build_plan(request, (), max_rows, guidance_distilled)


def _to_steps(table: Table, max_rows: int) -> tuple[Step, ...]:
    """Passes by part, in an order that their sources allow; then, backwards, what each of them must keep."""
    steps = []
    ran: list[Cell] = []  # whose features later cells can take
    for i, asked in enumerate(table):
        _check(asked, i)
        leads = [c for c in asked if c.part.depth is None]
        cells = [c if _can_run(c, ran, leads) else replace(c, part=FULL, source=None, pivot=None) for c in asked]
        ran += [c for c in cells if c.part.depth is None]
        waiting = [c for c in cells if _waits(c, leads)]
        first = [c for c in cells if c not in waiting]
        steps.append([*_to_passes(first, max_rows), *_to_passes(waiting, max_rows)])
    return _with_sources(steps)


def _can_run(cell: Cell, ran: list[Cell], leads: list[Cell]) -> bool:
    """Whether an earlier step, or a lead of this one, has the features that `cell` asks for; if not, it runs whole."""
    want = needs(cell.part)
    usable = [*ran, *leads] if _waits(cell, leads) else ran
    return not want or any(_stands_for(c.row, cell.source or cell.row) and _computes(c.part, want) for c in usable)


def _waits(cell: Cell, leads: list[Cell]) -> bool:
    """Whether `cell` runs on features that another row computes in the same step."""
    source = cell.source
    return source is not None and source != cell.row and bool(needs(cell.part)) and any(c.row == source for c in leads)


def _check(cells: tuple[Cell, ...], step: int) -> None:
    for branch in Branch:
        members = sorted(m for c in cells if c.row.branch is branch for m in c.row.members)
        if members != sorted(set(members)) or (branch is Branch.CONDITIONAL and not members):
            raise InputError(f"step {step}: a candidate has no {branch.value} prediction, or more than one")


def _to_passes(cells: list[Cell], max_rows: int) -> list[Pass]:
    passes = []
    for part in dict.fromkeys(c.part for c in cells):
        group = [c for c in cells if c.part == part]
        if part.attention is Attention.PIVOT:
            passes += _pivot_passes(part, group, max_rows)
        else:
            for i in range(0, len(group), max_rows):
                some = group[i : i + max_rows]
                rows = tuple(c.row for c in some)
                passes.append(Pass(part, rows, tuple(c.source or c.row for c in some)))
    return passes


def _pivot_passes(part: Part, cells: list[Cell], max_rows: int) -> list[Pass]:
    """Rows stay with their pivot in one pass; a group wider than a pass has its pivot in each of its passes.

    InputError for passes of one row, which have no room beside the pivot.
    """
    if max_rows < 2:
        raise InputError(f"max_rows is {max_rows}; rows that share a pivot need passes of 2 or more")
    passes = []
    for pivot in dict.fromkeys(c.pivot for c in cells):
        lead = next(c for c in cells if c.row == pivot)
        others = [c for c in cells if c.pivot == pivot and c.row != pivot]
        for i in range(0, max(len(others), 1), max_rows - 1):
            some = [lead, *others[i : i + max_rows - 1]]
            passes.append(
                Pass(part, tuple(c.row for c in some), tuple(c.source or c.row for c in some), pivots=(0,) * len(some))
            )
    return passes


def _with_sources(steps: list[list[Pass]]) -> tuple[Step, ...]:
    """Point each pass at the last rows that have what it needs, and make those keep it."""
    flat = [p for passes in steps for p in passes]
    keeps = [p.keep for p in flat]
    for at, p in enumerate(flat):
        want, sources = needs(p.part), []
        for wanted in p.sources if want else ():
            back, row = next(
                (b, row)
                for b in range(at - 1, -1, -1)
                if _computes(flat[b].part, want)
                for row in flat[b].rows
                if _stands_for(row, wanted)
            )
            keeps[back] |= want
            sources.append(row)
        flat[at] = replace(p, sources=tuple(sources))
    kept = iter(replace(p, keep=k) for p, k in zip(flat, keeps, strict=True))
    return tuple(Step(i, tuple(next(kept) for _ in passes)) for i, passes in enumerate(steps))


def _stands_for(row: Row, wanted: Row) -> bool:
    """Whether `row` stands for all of `wanted`'s candidates: it is the same, or one that it branched off from."""
    return row.branch is wanted.branch and set(wanted.members) <= set(row.members)


def _computes(part: Part, want: Keep) -> bool:
    """Whether a pass of `part` has all of `want` at hand: a whole pass whose attention is not kept has everything."""
    return part.depth is None and (not want.attention or part.attention is not Attention.KEPT)
