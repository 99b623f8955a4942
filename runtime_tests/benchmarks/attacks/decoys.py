"""Decoys that a user chooses with [[real|decoy|decoy]]: changed from prompt to prompt, they drop out one by one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from obclip.core.errors import ObclipError
from obclip.edge.oblivious import CandidateSet, candidate_set, load_policy

from .repeats import simulate_subsets, survivors
from .row import Row
from .settings import Settings

FIRST, LATER = "a portrait of [[Alice|Bob|Carol]] reading", "a portrait of [[Alice|Dave|Erin]] reading"
POOL, SENT = 50, 3


def run(settings: Settings) -> list[Row]:
    rng = np.random.default_rng(settings.seed)
    users, rows = settings.users, []
    for m in (2, 3):
        left = changing(POOL, SENT, m, users, rng)
        formula = f"{SENT} of {POOL} names, fresh decoys each time; formula {survivors(POOL, SENT, m):.3f}"
        mean, guess = float(left.mean()), float((1 / left).mean())
        rows += [
            _row("decoys that change", f"names left after {m} prompts", mean, float(SENT), users, formula),
            _row("decoys that change", f"name guessed after {m} prompts", guess, 1 / SENT, users),
        ]
    return rows + _ours()


def changing(pool: int, sent: int, prompts: int, users: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Names in every one of `prompts` sets, int [users]."""
    return simulate_subsets(pool, sent, prompts, users, rng)[:, -1]


def intersection(*sets: tuple[str, ...]) -> tuple[str, ...]:
    """The prompts that are in every one of `sets`, sorted."""
    return tuple(sorted(set.intersection(*(set(s) for s in sets))))


def marked(prompt: str) -> CandidateSet | None:
    """The set of a prompt with marks, or None where this version does not read them."""
    try:
        found = candidate_set(prompt, load_policy("default"))
    except ObclipError:
        return None
    return found if not any("[[" in p for p in found.prompts) else None


def warns(found: CandidateSet) -> bool:
    """Whether the device says that other decoys later give the marked words away."""
    return any(word in note.lower() for note in found.public for word in ("decoy", "same alternatives", "intersect"))


def _ours() -> list[Row]:
    first, later = marked(FIRST), marked(LATER)
    if first is None or later is None:
        return []
    both, same = intersection(first.prompts, later.prompts), intersection(first.prompts, first.prompts)
    target, n = "ours, the user's own marks", len(first.prompts)
    return [
        _row(target, "candidates left, decoys changed", float(len(both)), float(n), 2, f"{FIRST!r}, then {LATER!r}"),
        _row(target, "candidates left, decoys kept", float(len(same)), float(n), 2),
        _row(target, "of two prompts, those that warn", float(warns(first) + warns(later)), None, 2),
    ]


def _row(target: str, metric: str, value: float, chance: float | None, n: int, note: str = "") -> Row:
    return Row("decoys", target, metric, value, chance, n, "outside", note)
