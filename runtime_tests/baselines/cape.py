"""CAPE: a replacement is drawn by how well it fits both the word and its context, from buckets of like utility.

Wu et al., "Cape: Context-Aware Prompt Perturbation Mechanism with Differential Privacy", ICML 2025. For a sensitive
word x: u(x, y) = L(y)^lambda_L * D(x, y)^lambda_D, with L a masked language model's logit and D = exp(-distance). The
range of u is cut into N_b buckets of one width; a bucket b is drawn with weight exp(eps * mean(b) / (2 * Delta)), then
one of its words, all alike. Other words stay.

Chosen here, where the method leaves it open:
- logits are clipped to [-B, B] and shifted by +B, since a negative one has no square root;
- distances are divided by the largest one in the vocabulary, a public constant, so D lies in [1/e, 1];
- Delta = (2B)^lambda_L, the largest utility there can be, and the buckets divide [0, Delta] whatever the input;
- mean(b) is the mean utility of the words in b; an empty bucket is never drawn;
- every sensitive word is masked when logits are taken, so the context is public and words are drawn independently;
- a word outside the vocabulary has no utility: it stays if it is not sensitive, else any word is drawn.

With these choices the published bound on the loss, eps + ln of a ratio of sizes, can be exceeded where eps is small,
since inputs may fill different numbers of buckets; `full_bound` counts them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .mechanism import Float64, distances, draw
from .words import Vocabulary

Logits = Callable[[Sequence[str | None], int], Float64]
"""(words, None where masked; position) -> float64 [V] over the mechanism's vocabulary."""


class Buckets(NamedTuple):
    """of: int [X, V], the bucket of each word for each input. size, mean: [X, N_b]; mean is 0 where size is."""

    of: NDArray[np.int64]
    size: NDArray[np.int64]
    mean: Float64


def closeness(phi: Float64) -> Float64:
    """D, float64 [V, V], in [1/e, 1]."""
    d = distances(phi)
    return np.asarray(np.exp(-d / max(d.max(), np.finfo(np.float64).tiny)))


def utility(logits: Float64, closeness: Float64, limit: float, lambda_l: float, lambda_d: float) -> Float64:
    """u, float64 [X, V], in [0, Delta], from logits [V] and D [X, V]. limit: B."""
    return np.asarray((np.clip(logits, -limit, limit) + limit) ** lambda_l * closeness**lambda_d)


def fill_buckets(u: Float64, delta: float, count: int) -> Buckets:
    """`count` buckets of one width over [0, delta]."""
    of = np.clip((u / delta * count).astype(np.int64), 0, count - 1)
    flat = (of + count * np.arange(len(u))[:, None]).ravel()
    size = np.bincount(flat, minlength=len(u) * count).reshape(len(u), count)
    total = np.bincount(flat, weights=u.ravel(), minlength=len(u) * count).reshape(len(u), count)
    return Buckets(of, size, total / np.maximum(size, 1))


def bucket_channel(u: Float64, epsilon: float, delta: float, count: int) -> Float64:
    """P(y | x), float64 [X, V], of the bucketised exponential mechanism for utilities u, float64 [X, V]."""
    buckets = fill_buckets(u, delta, count)
    scores = np.where(buckets.size > 0, epsilon * buckets.mean / (2 * delta), -np.inf)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    each = weights / weights.sum(1, keepdims=True) / np.maximum(buckets.size, 1)
    return np.take_along_axis(each, buckets.of, 1)


def size_bound(u: Float64, epsilon: float, delta: float, count: int) -> float:
    """The published bound on the privacy loss: eps + ln of the largest ratio of two buckets' sizes, in nats.

    Only buckets that can be drawn have a size. It does not hold for all u, see `full_bound`.
    """
    size = fill_buckets(u, delta, count).size
    return epsilon + math.log(size.max() / size[size > 0].min())


def full_bound(u: Float64, epsilon: float, delta: float, count: int) -> float:
    """A bound that always holds: `size_bound` plus ln of the ratio of how many buckets two inputs fill.

    P(y | x) = w(b) / (Z |b|) with w in [1, exp(eps / 2)] and Z the sum of w over filled buckets, so Z and Z' may differ
    by their number too.
    """
    filled = (fill_buckets(u, delta, count).size > 0).sum(1)
    return size_bound(u, epsilon, delta, count) + math.log(filled.max() / filled.min())


@dataclass(frozen=True)
class Cape:
    """CAPE over a vocabulary. close: D, float64 [V, V]; limit: B; buckets: N_b."""

    vocabulary: Vocabulary
    close: Float64
    logits: Logits
    sensitive: frozenset[str]
    epsilon: float
    limit: float = 10.0
    lambda_l: float = 0.5
    lambda_d: float = 1.0
    buckets: int = 50
    _seen: dict[bytes, Float64] = field(default_factory=dict, repr=False, compare=False)

    @property
    def delta(self) -> float:
        return float((2 * self.limit) ** self.lambda_l)

    def utilities(self, logits: Float64) -> Float64:
        """u(x, y), float64 [V, V], for logits, float64 [V]."""
        return utility(logits, self.close, self.limit, self.lambda_l, self.lambda_d)

    def channel(self, words: Sequence[str | None], position: int) -> Float64:
        if words[position] is not None:
            return np.eye(len(self.vocabulary))
        logits = self.logits(words, position)
        key = logits.tobytes()
        if key not in self._seen:
            self._seen[key] = bucket_channel(self.utilities(logits), self.epsilon, self.delta, self.buckets)
        return self._seen[key]

    def sanitize(self, words: Sequence[str], rng: np.random.Generator) -> tuple[str, ...]:
        masked = [None if word in self.sensitive else word for word in words]
        result = []
        for i, word in enumerate(words):
            if word not in self.sensitive:
                result.append(word)
            elif word in self.vocabulary:
                row = self.channel(masked, i)[self.vocabulary.index[word]]
                result.append(draw(row, self.vocabulary, rng))
            else:
                result.append(self.vocabulary.words[int(rng.integers(len(self.vocabulary)))])
        return tuple(result)
