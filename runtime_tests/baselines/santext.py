"""SANTEXT and SANTEXT+: every word is replaced by one that lies near it, with metric local differential privacy.

Yue et al., "Differential Privacy for Text Analytics via Natural Text Sanitization", Findings of ACL 2021.
M(y | x) = softmax over y of -eps / 2 * |phi(x) - phi(y)|, so ln M(y | x) / M(y | x') <= eps * |phi(x) - phi(x')|: what
eps means depends on the scale of phi, and it composes over the words of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .mechanism import Float64, distances, draw, softmax
from .words import Vocabulary


def santext_channel(phi: Float64, epsilon: float) -> Float64:
    """M, float64 [V, V], for embeddings phi, float64 [V, d]. epsilon: 0 gives uniform rows, inf the nearest word."""
    return softmax(_scores(distances(phi), epsilon))


def santext_plus_channel(phi: Float64, epsilon: float, sensitive: NDArray[np.bool_], p: float = 0.2) -> Float64:
    """SANTEXT+, float64 [V, V]: only words of the sensitive set V_S come out where something is replaced.

    sensitive: bool [V], the set V_S. A sensitive word is always drawn anew from V_S; any other word stays with
    probability 1 - p, else it is drawn from V_S by the same law. ValueError if V_S is empty or p no probability.
    """
    if not sensitive.any():
        raise ValueError("the sensitive set is empty, so there is nothing to draw from; name at least one word")
    if not 0 <= p <= 1:
        raise ValueError(f"p is {p}; a probability is wanted, such as 0.2")
    scores = _scores(distances(phi), epsilon, sensitive)
    drawn = softmax(scores)
    kept = np.where(sensitive, 0.0, 1 - p)
    return np.asarray(np.diag(kept) + (1 - kept)[:, None] * drawn)


def _scores(d: Float64, epsilon: float, allowed: NDArray[np.bool_] | None = None) -> Float64:
    if epsilon < 0:
        raise ValueError(f"epsilon is {epsilon}; it cannot be negative")
    d = d if allowed is None else np.where(allowed[None, :], d, np.inf)
    if np.isinf(epsilon):  # the limit: all mass on the nearest words
        return np.where(d == d.min(-1, keepdims=True), 0.0, -np.inf)
    return np.where(np.isinf(d), -np.inf, -epsilon / 2 * np.where(np.isinf(d), 0.0, d))


@dataclass(frozen=True)
class Santext:
    """Either variant as a mechanism over a vocabulary. matrix: its channel, the same at every position.

    A word outside the vocabulary has no place in phi and becomes any word of it.
    """

    vocabulary: Vocabulary
    matrix: Float64

    def channel(self, words: Sequence[str | None], position: int) -> Float64:
        return self.matrix

    def sanitize(self, words: Sequence[str], rng: np.random.Generator) -> tuple[str, ...]:
        uniform = np.full(len(self.vocabulary), 1 / len(self.vocabulary))
        rows = (self.matrix[self.vocabulary.index[w]] if w in self.vocabulary else uniform for w in words)
        return tuple(draw(row, self.vocabulary, rng) for row in rows)


def santext(vocabulary: Vocabulary, phi: Float64, epsilon: float) -> Santext:
    return Santext(vocabulary, santext_channel(phi, epsilon))


def santext_plus(
    vocabulary: Vocabulary, phi: Float64, epsilon: float, sensitive: frozenset[str], p: float = 0.2
) -> Santext:
    mask = np.array([word in sensitive for word in vocabulary.words])
    return Santext(vocabulary, santext_plus_channel(phi, epsilon, mask, p))
