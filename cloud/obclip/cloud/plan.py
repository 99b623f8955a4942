"""A request becomes a plan: for each step, which rows run which part of the UNet.

A row is one latent under one branch of classifier-free guidance. The plan is plain data, a function of the public
request alone; its cost is known before anything runs, and the engine executes exactly what it says.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from obclip.core.wire import Request


class Branch(Enum):
    """The two predictions of classifier-free guidance (Ho & Salimans 2022)."""

    UNCONDITIONAL = "unconditional"
    CONDITIONAL = "conditional"


@dataclass(frozen=True)
class Row:
    """candidate: index into the request's sorted candidates."""

    candidate: int
    branch: Branch


@dataclass(frozen=True)
class Pass:
    """One forward of `part` of the UNet over `rows`. part: "full"; policies that cache add others."""

    part: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Step:
    """index: the solver's step, from 0."""

    index: int
    passes: tuple[Pass, ...]


@dataclass(frozen=True)
class Plan:
    candidates: int
    guided: bool
    steps: tuple[Step, ...]

    @property
    def rows(self) -> int:
        """Rows over all steps: the number of UNet evaluations of batch 1 this plan is worth."""
        return sum(len(p.rows) for s in self.steps for p in s.passes)

    @property
    def widest(self) -> int:
        """The most rows one pass holds."""
        return max(len(p.rows) for s in self.steps for p in s.passes)


def plain_plan(request: Request, max_rows: int, guidance_distilled: bool = False) -> Plan:
    """Every candidate, both branches, at every step, nothing reused: the paper's oblivious generation without cache.

    Guidance of exactly 1 is the conditional prediction itself, so its other branch is left out; so it is for a UNet
    into which guidance was distilled (latent consistency models). Passes hold at most `max_rows` rows.
    """
    guided = request.guidance != 1.0 and not guidance_distilled
    branches = (Branch.UNCONDITIONAL, Branch.CONDITIONAL) if guided else (Branch.CONDITIONAL,)
    rows = [Row(i, b) for b in branches for i in range(len(request.candidates))]
    passes = tuple(Pass("full", tuple(rows[i : i + max_rows])) for i in range(0, len(rows), max_rows))
    return Plan(len(request.candidates), guided, tuple(Step(i, passes) for i in range(request.handoff)))
