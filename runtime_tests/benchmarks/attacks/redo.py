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

from .row import Row
from .settings import Settings
from .stats import entropy_bits

REPORT = ROOT / "docs" / "results" / "pair_quality.json"
SIZES = {"gender": 2, "skin": 5, "age": 3}
PIVOT = (0.05, 0.15)
"""A model of a pivot: redo rates of the candidate that keeps its own attention, and of the others."""


def run(settings: Settings) -> list[Row]:
    rows = []
    for attribute, size in SIZES.items():
        q = redo_rates(attribute, size)
        if q is not None:
            note = f"redo rates {', '.join(f'{v:.3f}' for v in q)}: worst value, then the others' mean"
            rows += _rows("ours", f"{attribute}, N={size}, hybrid-10", q, 0, "measured", note)
    for size in (2, 6, 10):
        q = np.array([PIVOT[0], *[PIVOT[1]] * (size - 1)])
        note = f"a model, not a measurement: pivot {PIVOT[0]:g}, others {PIVOT[1]:g}; there is no pivot today"
        rows += _rows("if attention were shared", f"N={size}", q, settings.users, "outside", note, settings.seed)
    return rows


def redo_rates(attribute: str, size: int) -> NDArray[np.float64] | None:
    """1 - accuracy of the worst value and of the others, float64 [size]; None where the report has none."""
    if not REPORT.is_file():
        return None
    pair = load_pair("emoji")
    for row in json.loads(REPORT.read_text("utf8"))["rows"]:
        if _is_main(row, pair.solver, pair.handoff_history) and row.get(attribute) is not None:
            low, mean = row[f"{attribute}_worst"][1], row[attribute]
            rest = min(1.0, (size * mean - low) / (size - 1))
            return 1 - np.array([low, *[rest] * (size - 1)])
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


def _rows(
    target: str, what: str, q: NDArray[np.float64], users: int, covered: Any, note: str, seed: int = 0
) -> list[Row]:
    if users:
        note += f"; simulated {simulate(q, 100 * users, np.random.default_rng(seed)):.3f}"
    return [Row("redo", target, f"bits when a redo comes, {what}", bits(q), 0.0, len(q), covered, note)]
