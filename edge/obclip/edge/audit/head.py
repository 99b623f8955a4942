"""One attribute's model: multinomial logistic regression over the words of a person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Head:
    """P(value | words) = softmax((bias + the sum of the words' weights) / temperature).

    values: K of them. bias, prior: float64 [K], prior being how often each value occurs in the captions that the head
    learned from, uniform if it learned from none. weights: float32 [V, K]. captions: uint16 [V], training captions
    that have the word and say the attribute. judged: bool [V], whether the word's weights started from a judgement.
    """

    attribute: str
    values: tuple[str, ...]
    bias: Float64
    prior: Float64
    temperature: float
    weights: NDArray[np.float32]
    captions: NDArray[np.uint16]
    judged: NDArray[np.bool_]

    def fits(self, attribute: str, values: Sequence[str]) -> bool:
        """Whether this head knows all the values that a policy has for the attribute."""
        return attribute == self.attribute and set(values) <= set(self.values)

    def log_odds(self, features: Sequence[int], values: Sequence[str], uniform: bool) -> Float64:
        """log P(value | words), float64 [len(values)], over these values alone.

        uniform: every value as likely as any other before the words are read; otherwise as in the captions.
        """
        logits = (self.bias + self.weights[list(features)].sum(0, dtype=np.float64)) / self.temperature
        if uniform:
            logits = logits - np.log(self.prior)
        return log_softmax(logits[self.columns(values)])

    def pushes(self, features: Sequence[int], values: Sequence[str], value: str) -> Float64:
        """Each word's log-odds for `value` against the mean of the other values, float64 [len(features)]."""
        weights = self.weights[list(features)][:, self.columns(values)].astype(np.float64) / self.temperature
        at = list(values).index(value)
        others = np.delete(weights, at, axis=1)
        return np.asarray(weights[:, at] - others.mean(1), np.float64)

    def columns(self, values: Sequence[str]) -> list[int]:
        return [self.values.index(v) for v in values]


def log_softmax(logits: Float64) -> Float64:
    """Over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)), np.float64)
