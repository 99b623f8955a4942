"""A candidate set seen through a sanitizer: what comes out for each member, and what it still says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .closed import Closed, Lexicon, attribute_of
from .mechanism import Float64, Mechanism, distances
from .reconstruction import Group
from .words import Vocabulary

Context = tuple[str | None, ...]


def masked(words: Sequence[str], lexicon: Lexicon) -> Context:
    """What a prompt's public words are: None in place of every attribute word."""
    return tuple(None if word in lexicon else word for word in words)


def word_groups(secret: Closed, mechanism: Mechanism, lexicon: Lexicon) -> list[Group]:
    """The sanitizer's channel on a set's members, one group a number of words, one factor a position that differs.

    Positions at which all members of a group have one public word are left out: they say nothing about the member.
    """
    lengths = np.array([len(words) for words in secret.words])
    groups = []
    for length in sorted(set(lengths.tolist())):
        inputs = np.flatnonzero(lengths == length)
        members = [secret.words[i] for i in inputs]
        positions = [p for p in range(length) if any(m[p] in lexicon or m[p] != members[0][p] for m in members)]
        factors = tuple(np.stack([_row(m, p, mechanism, lexicon) for m in members]) for p in positions)
        groups.append(Group(inputs, factors))
    return groups


def _row(words: tuple[str, ...], position: int, mechanism: Mechanism, lexicon: Lexicon) -> Float64:
    channel = mechanism.channel(masked(words, lexicon), position)
    return np.asarray(channel[mechanism.vocabulary.index[words[position]]])


@dataclass(frozen=True)
class Reader:
    """Which value of an attribute a word says. phi: float64 [V, d]."""

    vocabulary: Vocabulary
    lexicon: Lexicon
    phi: Float64

    @cached_property
    def says(self) -> dict[tuple[str, str], NDArray[np.bool_]]:
        """(attribute, value) -> bool [V], the words that say it themselves."""
        pairs = {pair for said in self.lexicon.values() for pair in said.items()}
        words = self.vocabulary.words
        return {pair: np.array([pair in self.lexicon.get(w, {}).items() for w in words]) for pair in sorted(pairs)}

    @cached_property
    def nearest(self) -> dict[tuple[str, str], NDArray[np.bool_]]:
        """(attribute, value) -> bool [V], the words nearest to one that says it; ties go to the vocabulary's first."""
        d = distances(self.phi)
        result = {}
        for attribute, value in self.says:
            tellers = np.flatnonzero(np.any([said for (a, _), said in self.says.items() if a == attribute], axis=0))
            result[attribute, value] = self.says[attribute, value][tellers[d[:, tellers].argmin(1)]]
        return result


def kept(secret: Closed, mechanism: Mechanism, reader: Reader, labels: Sequence[str], how: str) -> Float64:
    """P(all words that say these labels' values still say them), float64 [N], for each member.

    how: "says" or "nearest". A value that no single word of a member says counts as lost.
    """
    read = {"says": reader.says, "nearest": reader.nearest}[how]
    result = np.ones(len(secret.words))
    for i, (words, values) in enumerate(zip(secret.words, secret.values, strict=True)):
        wanted = {(attribute_of(label), values[label]) for label in labels}
        said = [wanted & reader.lexicon.get(word, {}).items() for word in words]
        if wanted != set().union(*said):
            result[i] = 0.0
            continue
        for position, pairs in enumerate(said):
            if pairs:
                right = np.logical_and.reduce([read[pair] for pair in pairs])
                result[i] *= _row(words, position, mechanism, reader.lexicon) @ right
    return result
