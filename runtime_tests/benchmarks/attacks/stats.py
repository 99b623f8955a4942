"""The statistics that the attacks need, in NumPy."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def wilson(hits: float, n: int) -> tuple[float, float]:
    """95 % interval of a rate (Wilson 1927)."""
    if n == 0:
        return math.nan, math.nan
    z, p = 1.959964, hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def entropy_bits(p: Float64) -> Float64:
    """Entropy of distributions along the last axis, in bits."""
    return -(p * np.log2(np.where(p > 0, p, 1.0))).sum(-1)


def binary_entropy(p: float) -> float:
    return float(entropy_bits(np.array([p, 1 - p])))


def mutual_information(x: list[int], y: list[int]) -> float:
    """Plug-in estimate in bits of two discrete samples of one length."""
    _, i = np.unique(x, return_inverse=True)
    _, j = np.unique(y, return_inverse=True)
    joint = np.zeros((i.max() + 1, j.max() + 1))
    np.add.at(joint, (i, j), 1.0 / len(i))
    return float(entropy_bits(joint.sum(1)) + entropy_bits(joint.sum(0)) - entropy_bits(joint.reshape(-1)))


def chi_square(counts: NDArray[np.int64], rng: np.random.Generator, draws: int = 5000) -> tuple[float, float]:
    """Pearson's statistic against equal shares, counts int [K], and its p-value from `draws` simulated tables."""
    n, k = int(counts.sum()), len(counts)
    expected = n / k
    statistic = float(((counts - expected) ** 2).sum() / expected)
    simulated = ((rng.multinomial(n, np.full(k, 1 / k), draws) - expected) ** 2).sum(1) / expected
    return statistic, float((1 + (simulated >= statistic - 1e-9).sum()) / (draws + 1))


def kolmogorov_smirnov(a: Float64, b: Float64) -> tuple[float, float]:
    """Two-sample statistic D and its asymptotic p-value (Kolmogorov 1933; small-sample term of Stephens 1970)."""
    a, b = np.sort(a), np.sort(b)
    both = np.concatenate([a, b])
    d = float(np.abs(np.searchsorted(a, both, "right") / len(a) - np.searchsorted(b, both, "right") / len(b)).max())
    root = math.sqrt(len(a) * len(b) / (len(a) + len(b)))
    x = (root + 0.12 + 0.11 / root) * d
    if x < 0.2:  # the series below does not converge there; the p-value is 1 to 12 digits
        return d, 1.0
    tail = 2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, 101))
    return d, min(max(tail, 0.0), 1.0)
