"""Prompts as the word-by-word sanitizers see them: lower-case words of one vocabulary."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")


def words_of(text: str) -> tuple[str, ...]:
    """The words of `text`. Punctuation is left out, and "an" counts as "a".

    An article that fits the secret word after it would give that word away whatever became of it, so this choice is in
    the sanitizers' favour.
    """
    return tuple("a" if word == "an" else word for word in _WORD.findall(text.lower()))


@dataclass(frozen=True)
class Vocabulary:
    """words: sorted and unique; a word's place among them is its index."""

    words: tuple[str, ...]

    @classmethod
    def of(cls, sentences: Iterable[Iterable[str]]) -> Vocabulary:
        return cls(tuple(sorted({word for sentence in sentences for word in sentence})))

    @cached_property
    def index(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self.index
