"""What all word-by-word sanitizers here have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .words import Vocabulary

Float64 = NDArray[np.float64]


class Mechanism(Protocol):
    """A randomised map from a prompt's words to as many words, each drawn on its own."""

    @property
    def vocabulary(self) -> Vocabulary: ...

    def channel(self, words: Sequence[str | None], position: int) -> Float64:
        """P(y | x) at one position, float64 [V, V] with rows x that sum to 1.

        words: the prompt as an adversary knows it, None where a word is secret. The channel may depend on nothing else.
        """
        ...

    def sanitize(self, words: Sequence[str], rng: np.random.Generator) -> tuple[str, ...]:
        """A draw for every word of a prompt."""
        ...


def draw(row: Float64, vocabulary: Vocabulary, rng: np.random.Generator) -> str:
    """A word with the probabilities `row`, float64 [V]."""
    return vocabulary.words[int(rng.choice(len(vocabulary), p=row))]


def softmax(scores: Float64) -> Float64:
    """Along the last axis; -inf stands for what never happens."""
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def distances(phi: Float64) -> Float64:
    """Euclidean distances of the rows of `phi`, float64 [V, d], to one another, float64 [V, V]."""
    # by subtraction, not by the inner product: exactly 0 on the diagonal, and a metric to the last bits
    return np.stack([np.sqrt(((phi - row) ** 2).sum(-1)) for row in phi])


def privacy_loss(channel: Float64) -> float:
    """max over y and over pairs of rows x, x' of ln P(y | x) / P(y | x'), in nats; inf if one of them rules y out."""
    columns = channel[:, channel.max(0) > 0]
    with np.errstate(divide="ignore"):
        logs = np.log(columns)
    return float((logs.max(0) - logs.min(0)).max())
