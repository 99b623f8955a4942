"""Pictures that come out worse for some values: a user who asks again then says which value is likelier.

No attention is shared between candidates today, so there is no pivot that would come out better than the rest; the
asymmetry left is the models' own. Given q_v, the chance of a redo for value v, seeing a redo makes v likelier in
proportion to q_v: log2 N - H(q / sum q) bits. Accuracies are those of the committed quality report.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obclip.core.pairs import load_pair
from runtime_tests.data import ROOT

from .row import Covered, Row
from .settings import Settings
from .stats import entropy_bits

REPORT = ROOT / "docs" / "results" / "pair_quality.json"
SIZES = {"gender": 2, "skin": 5, "age": 3}
PIVOT = (0.05, 0.15)
"""A model of a pivot: redo rates of the candidate that keeps its own attention, and of the others."""


def run(settings: Settings) -> list[Row]:
    rows = []
    for attribute, size in SIZES.items():
        found = redo_rates(attribute, size)
        if found is not None:
            q, pictures = found
            rates = ", ".join(f"{v:.3f}" for v in q)
            note = f"redo rates {rates}: worst value, then the others' mean; the worst of few pictures is partly luck"
            rows.append(_row("ours", f"{attribute}, N={size}, hybrid-10", q, pictures, "measured", note))
    for size in (2, 6, 10):
        q = np.array([PIVOT[0], *[PIVOT[1]] * (size - 1)])
        users = 100 * settings.users
        simulated = simulate(q, users, np.random.default_rng(settings.seed))
        note = f"a model of a pivot: redo rates {PIVOT[0]:g}, others {PIVOT[1]:g}; simulated {simulated:.3f}"
        rows.append(_row("if attention were shared", f"N={size}", q, users, "outside", note))
    return rows


def redo_rates(attribute: str, size: int) -> tuple[NDArray[np.float64], int] | None:
    """1 - accuracy of the worst value and of the others, float64 [size], and pictures; None if not in the report."""
    if not REPORT.is_file():
        return None
    pair = load_pair("emoji")
    for row in json.loads(REPORT.read_text("utf8"))["rows"]:
        if _is_main(row, pair.solver, pair.handoff_history) and row.get(attribute) is not None:
            low, mean = row[f"{attribute}_worst"][1], row[attribute]
            rest = min(1.0, (size * mean - low) / (size - 1))
            return 1 - np.array([low, *[rest] * (size - 1)]), int(row["images"])
    return None


def bits(q: NDArray[np.float64]) -> float:
    """What one redo tells of a uniform secret, in bits; q: redo rate of each of N values."""
    return 0.0 if q.sum() == 0 else float(np.log2(len(q)) - entropy_bits(q / q.sum()))


def simulate(q: NDArray[np.float64], users: int, rng: np.random.Generator) -> float:
    """`bits` as the frequencies of the secret among `users` who asked again show it."""
    secret = rng.integers(len(q), size=users)
    counts = np.bincount(secret[rng.random(users) < q[secret]], minlength=len(q)).astype(np.float64)
    return bits(counts)


def _is_main(row: dict[str, Any], solver: str, history: bool) -> bool:
    wanted = {"method": "hybrid-10", "split": "all", "solver": solver, "history": history}
    return all(row.get(k) == v for k, v in wanted.items())


def _row(target: str, what: str, q: NDArray[np.float64], n: int, covered: Covered, note: str) -> Row:
    return Row("redo", target, f"bits when a redo comes, {what}", bits(q), 0.0, n, covered, note)
