"""The best possible adversary: knows the mechanism and the prior, sees the output, names the likeliest secret.

For a channel P(y | x) and a prior pi, deciding argmax over s of the sum over x with secret s of pi(x) P(y | x) is right
with probability sum over y of max over s of that sum, and no rule does better (the Bayes vulnerability; for text
sanitizers Tong et al., "On the Vulnerability of Text Sanitization", arXiv 2410.17052).

A prompt's words are drawn one by one, so its channel is a product of small factors. It is summed up exactly where that
fits, and estimated from seeded draws otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .mechanism import Float64

Secrets = NDArray[np.int64]
_CHUNK = 1 << 15  # sums held at a time: they stay in a core's cache, and products too small for BLAS to split


@dataclass(frozen=True)
class Limits:
    """outputs: outputs times secrets that are summed exactly at most; beyond that, `draws` outputs are drawn."""

    outputs: int = 100_000_000
    draws: int = 20_000


@dataclass(frozen=True)
class Group:
    """Inputs whose outputs cannot be mistaken for another group's, as prompts of another number of words.

    inputs: int [n], places in the prior. factors: float64 [n, Y_i] each, P(y_i | x), independent given x.
    """

    inputs: NDArray[np.int64]
    factors: tuple[Float64, ...]


@dataclass(frozen=True)
class Attack:
    """success: expected accuracy of the Bayes rule; prior_success: without an output. Entropies in bits.

    error: standard error of `success`, 0 where it is exact.
    """

    success: float
    prior_success: float
    entropy_bits: float
    prior_entropy_bits: float
    error: float


def bayes_rule(channel: Float64, prior: Float64, secrets: Secrets) -> NDArray[np.int64]:
    """The secret to name for each output, int [Y], from P(y | x) [X, Y], pi [X] and the secret of each x, int [X]."""
    return np.asarray(_joint(channel, prior, secrets).argmax(0))


def attack(channel: Float64, prior: Float64, secrets: Secrets | None = None) -> Attack:
    """The attack on one channel, float64 [X, Y]. secrets: int [X], what is to be named; by default the input itself."""
    every = np.arange(len(prior))
    return attack_groups([Group(every, (channel,))], prior, every if secrets is None else secrets)


def attack_groups(
    groups: Sequence[Group], prior: Float64, secrets: Secrets, limits: Limits | None = None, seed: int = 0
) -> Attack:
    """The attack on a prompt's words. prior: float64 [X], over all inputs, each in one group; secrets: int [X]."""
    limits = limits or Limits()
    rng = np.random.default_rng(seed)
    success = entropy = variance = 0.0
    for group in groups:
        weights, named = prior[group.inputs], secrets[group.inputs]
        factors = [merged for f in group.factors if (merged := merge_outputs(f)).shape[1] > 1]
        size = math.prod(f.shape[1] for f in factors) * len(np.unique(named))
        if size <= limits.outputs:
            right, bits, error = _sum(factors, weights, named)
        else:
            right, bits, error = _estimate(factors, weights, named, limits.draws, rng)
        success, entropy, variance = success + right, entropy + bits, variance + error**2
    alone = np.bincount(secrets, weights=prior).astype(np.float64)
    return Attack(success, float(alone.max()), entropy, float(_entropy(alone)), math.sqrt(variance))


def merge_outputs(factor: Float64) -> Float64:
    """The same channel for any adversary, with fewer outputs: never-drawn ones go, proportional columns are added."""
    possible = factor[:, factor.max(0) > 0]
    shapes = (possible / possible.max(0)).round(13)
    _, first, place = np.unique(shapes, axis=1, return_index=True, return_inverse=True)
    merged = np.zeros((len(factor), len(first)))
    np.add.at(merged.T, place.ravel(), possible.T)
    return merged


def _joint(channel: Float64, weights: Float64, secrets: Secrets) -> Float64:
    """P(s, y), float64 [S, Y]."""
    return np.stack([weights[secrets == s] @ channel[secrets == s] for s in range(secrets.max() + 1)])


def _entropy(p: Float64) -> Float64:
    """Sum of -p log2 p over the first axis."""
    return np.asarray(-(p * np.log2(p + np.finfo(np.float64).tiny)).sum(0))


def _sum(factors: list[Float64], weights: Float64, secrets: Secrets) -> tuple[float, float, float]:
    """Exact mass of right answers, and mass-weighted entropy of the secret given the output."""
    factors = sorted(factors, key=lambda f: f.shape[1])
    last = factors.pop() if factors else np.ones((len(weights), 1))
    left = np.ones((len(weights), 1))
    for factor in factors:  # every combination of the other outputs: [n, Y_left]
        left = (left[:, :, None] * factor[:, None, :]).reshape(len(weights), -1)
    values = np.unique(secrets)
    step = max(1, _CHUNK // (last.shape[1] * len(values)))
    success = bits = 0.0
    for start in range(0, left.shape[1], step):
        part = left[:, start : start + step] * weights[:, None]
        joint = np.stack([part[secrets == v].T @ last[secrets == v] for v in values])  # [S, step, Y_last]
        success += float(joint.max(0).sum())
        bits += float(_entropy(joint).sum() - _entropy(joint.sum(0)[None]).sum())
    return success, bits, 0.0


def _estimate(
    factors: list[Float64], weights: Float64, secrets: Secrets, draws: int, rng: np.random.Generator
) -> tuple[float, float, float]:
    """The same from drawn outputs: the mean of the best secret's posterior, not of hits, which varies less."""
    mass = float(weights.sum())
    x = rng.choice(len(weights), size=draws, p=weights / mass)
    scores = np.tile(weights / mass, (draws, 1))  # [draws, n]
    for factor in factors:
        edges = factor.cumsum(1)
        y = np.minimum((edges[x] < rng.random(draws)[:, None] * edges[x, -1:]).sum(1), factor.shape[1] - 1)
        scores *= factor[:, y].T
    posterior = scores / scores.sum(1, keepdims=True)
    named = np.stack([posterior[:, secrets == v].sum(1) for v in np.unique(secrets)])  # [S, draws]
    best = named.max(0)
    return (
        mass * float(best.mean()),
        mass * float(_entropy(named).mean()),
        mass * float(best.std(ddof=1)) / math.sqrt(draws),
    )
