"""What the other words say about a hidden one: naive Bayes over the words that all candidates share.

One model an attribute, trained on captions whose value is known. Naive Bayes is too sure of itself, so its log-odds are
scaled by one number, chosen on captions that were held back (Guo et al. 2017, temperature).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .sets import Known, attribute_of

Float64 = NDArray[np.float64]
_ALPHA = 0.5
_SCALES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)


@dataclass(frozen=True)
class WordModel:
    """prior: log-probabilities [V] of `values`; table: word -> log P(word | value) [V]; scale: of the words' part."""

    values: tuple[str, ...]
    prior: Float64
    table: dict[str, Float64]
    scale: float = 1.0

    def log_odds(self, words: frozenset[str]) -> Float64:
        """What the words add to the prior's logarithm, float64 [V]."""
        # sorted: sums of floats depend on their order, and sets have none
        total = sum((self.table[w] for w in sorted(words) if w in self.table), np.zeros(len(self.values)))
        return self.scale * total

    def log_posterior(self, words: frozenset[str], prior: Float64) -> Float64:
        scores = prior + self.log_odds(words)
        return scores - np.logaddexp.reduce(scores)


def labelled(known: Sequence[Known], attribute: str) -> list[tuple[frozenset[str], str]]:
    """(shared words, real value) for every hidden label of one attribute."""
    return [
        (k.words, k.truth(label)) for k in known for label in k.found.attributes if attribute_of(label) == attribute
    ]


def train(rows: Sequence[tuple[frozenset[str], str]], values: tuple[str, ...], rng: np.random.Generator) -> WordModel:
    """A model of P(value | words); its scale comes from a fifth of `rows`, its counts from all of them."""
    order = rng.permutation(len(rows))
    held = [rows[i] for i in order[: len(rows) // 5]]
    part = _count([rows[i] for i in order[len(rows) // 5 :]], values)
    scale = max(_SCALES, key=lambda s: _likelihood(replace(part, scale=s), held))
    return replace(_count(rows, values), scale=scale)


def posterior(models: dict[str, WordModel], known: Known, prior: str) -> Float64:
    """P(member | shared words) over a set's members, float64 [N]. prior: "uniform", or "learned" from the captions."""
    scores = np.zeros(known.size)
    for label in known.found.attributes:
        model = models[attribute_of(label)]
        base = model.prior if prior == "learned" else np.zeros(len(model.values))
        odds = model.log_posterior(known.words, base)
        scores += np.array([odds[model.values.index(v[label])] for v in known.values])
    p = np.exp(scores - scores.max())
    return p / p.sum()


def _count(rows: Sequence[tuple[frozenset[str], str]], values: tuple[str, ...]) -> WordModel:
    counts: dict[str, Float64] = {}
    seen = np.full(len(values), 1.0)
    for words, value in rows:
        v = values.index(value)
        seen[v] += 1
        for word in words:
            counts.setdefault(word, np.zeros(len(values)))[v] += 1
    table = {w: np.log((c + _ALPHA) / (seen + 2 * _ALPHA)) for w, c in counts.items() if c.sum() > 1}
    return WordModel(values, np.log(seen / seen.sum()), table)


def _likelihood(model: WordModel, rows: Sequence[tuple[frozenset[str], str]]) -> float:
    return float(sum(model.log_posterior(w, model.prior)[model.values.index(v)] for w, v in rows))
