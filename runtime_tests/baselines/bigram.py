"""A small language model for sanitizers that want one: word pairs counted in the sentences it is given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .mechanism import Float64
from .words import Vocabulary


@dataclass(frozen=True)
class Bigram:
    """counts: float64 [V + 1, V + 1], how often a word followed another; the last index stands for a sentence's ends.

    alpha: added to every count.
    """

    vocabulary: Vocabulary
    counts: Float64
    alpha: float = 0.1

    @classmethod
    def train(cls, vocabulary: Vocabulary, sentences: Iterable[Sequence[str]], alpha: float = 0.1) -> Bigram:
        """Counts pairs of known words. KeyError for a word outside the vocabulary."""
        end = len(vocabulary)
        counts = np.zeros((end + 1, end + 1))
        for sentence in sentences:
            places = [end, *(vocabulary.index[word] for word in sentence), end]
            np.add.at(counts, (places[:-1], places[1:]), 1.0)
        return cls(vocabulary, counts, alpha)

    def __call__(self, words: Sequence[str | None], position: int) -> Float64:
        """How well each word would stand at `position`, float64 [V]: ln P(w | left) + ln P(right | w), less its mean.

        The word that stands there is not looked at. Where the left one is masked or unknown, P(w) stands in; where the
        right one is, that part is 0. Logits have no zero of their own, so their mean is put there.
        """
        smooth = self.counts + self.alpha
        left, right = self._place(words, position - 1), self._place(words, position + 1)
        row = smooth[:, :-1].sum(0) if left is None else smooth[left, :-1]
        scores = np.log(row / row.sum())
        if right is not None:
            scores = scores + np.log(smooth[:-1, right] / smooth[:-1].sum(1))
        return np.asarray(scores - scores.mean())

    def _place(self, words: Sequence[str | None], position: int) -> int | None:
        if not 0 <= position < len(words):
            return len(self.vocabulary)
        word = words[position]
        return None if word is None else self.vocabulary.index.get(word)
