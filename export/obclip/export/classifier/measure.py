"""How often a label is right: accuracy by head over the rows it applies to, balanced age, calibration error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = Mapping[str, Any]

# Rows on which an attribute can be told at all (the data's README: skin hardly shows in bed, gender not in a spacesuit)
SHOWN: dict[str, Callable[[Row], bool]] = {
    "gender": lambda r: r["gender"] in ("woman", "man") and (r.get("gender_delta") or 0) >= 1,
    "skin": lambda r: r["skin"] != "default" and (r.get("skin_delta") or 0) >= 0.5,
    "age": lambda r: r["activity"] == "portrait" and r["skin"] != "default",
    "activity": lambda r: True,
    "style": lambda r: True,
}


def hits(rows: Sequence[Row], labels: Mapping[str, Sequence[str]], head: str) -> NDArray[np.float64]:
    """1.0 right, 0.0 wrong, nan where `head` cannot be told, float64 [M]."""
    shown = SHOWN[head]
    values = [float(r[head] == label) if shown(r) else np.nan for r, label in zip(rows, labels[head], strict=True)]
    return np.array(values, np.float64)


def score(rows: Sequence[Row], right: NDArray[np.float64], head: str) -> float:
    """Accuracy over the rows that show `head`; for age the mean over the three ages of each one's accuracy."""
    if head != "age":
        return _mean(right)
    ages = np.array([r["age"] for r in rows])
    return _mean(np.array([_mean(right[ages == age]) for age in ("child", "adult", "older")]))


def worst(rows: Sequence[Row], right: NDArray[np.float64], head: str) -> tuple[str, float]:
    """The value of `head` with the lowest accuracy, and that accuracy."""
    values = np.array([r[head] for r in rows])
    found = {v: _mean(right[values == v]) for v in sorted(set(values[~np.isnan(right)]))}
    return min(found.items(), key=lambda item: item[1]) if found else ("", float("nan"))


def bootstrap(
    rows: Sequence[Row], right: NDArray[np.float64], head: str, rng: np.random.Generator, draws: int = 500
) -> tuple[float, float]:
    """2.5 and 97.5 percentiles of `score` over resampled rows."""
    values = []
    for _ in range(draws):
        i = rng.integers(len(rows), size=len(rows))
        values.append(score([rows[j] for j in i], right[i], head))
    kept = np.array(values)[~np.isnan(values)]
    return (float(np.quantile(kept, 0.025)), float(np.quantile(kept, 0.975))) if len(kept) else (np.nan, np.nan)


def calibration_error(odds: NDArray[np.float64], correct: NDArray[np.float64], bins: int = 10) -> float:
    """Expected calibration error (Guo et al. 2017): |confidence - accuracy| over equal-width bins, by size."""
    confidence, total = odds.max(-1), 0.0
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    for b in range(bins):
        inside = place == b
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    return float(total)


def _mean(values: NDArray[np.float64]) -> float:
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if len(kept) else float("nan")
