"""Decoys that a user chooses with [[real|decoy|decoy]]: changed from prompt to prompt, they drop out one by one."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from obclip.edge.oblivious import candidate_set, load_policy
from obclip.edge.oblivious.history import changed_marks, remember_marks

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


def warnings(first: str, later: str) -> int:
    """How often a device that remembers `first` warns of the marks of `later`."""
    with TemporaryDirectory() as folder:
        note = Path(folder) / "marks.json"
        remember_marks(first, note)
        return len(changed_marks(later, note))


def _ours() -> list[Row]:
    policy = load_policy("default")
    first, later = (candidate_set(p, policy).prompts for p in (FIRST, LATER))
    target, n = "ours, the user's own marks", float(len(first))
    changed, kept = float(len(intersection(first, later))), float(len(intersection(first, first)))
    asks = "on the command line, which remembers"
    return [
        _row(target, "candidates left, decoys changed", changed, n, 2, f"{FIRST!r}, then {LATER!r}"),
        _row(target, "candidates left, decoys kept", kept, n, 2),
        _row(target, "warnings, decoys changed", float(warnings(FIRST, LATER)), None, 1, asks),
        _row(target, "warnings, decoys kept", float(warnings(FIRST, FIRST)), None, 1),
    ]


def _row(target: str, metric: str, value: float, chance: float | None, n: int, note: str = "") -> Row:
    return Row("decoys", target, metric, value, chance, n, "outside", note)
