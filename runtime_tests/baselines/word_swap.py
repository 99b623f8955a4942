"""Candidates by swapping words, as a first attempt would make them: no canonical words, no grammar, no check.

Every protected word that the table knows is kept in one half of the candidates and swapped in the other; all words of
one attribute go together. The table is not symmetric (lady -> man -> woman), so the set is not closed.
"""

from __future__ import annotations

import itertools
import re

SWAPS: dict[str, dict[str, str]] = {
    "gender": {
        "woman": "man", "man": "woman", "lady": "man", "gentleman": "woman", "girl": "boy", "boy": "girl",
        "guy": "woman", "women": "men", "men": "women", "ladies": "men", "guys": "women", "girls": "boys",
        "boys": "girls", "he": "she", "she": "he", "his": "her", "her": "his", "him": "her", "himself": "herself",
        "herself": "himself", "male": "female", "female": "male", "grandmother": "grandfather",
        "grandfather": "grandmother",
    },
    "age": {"old": "young", "young": "old", "older": "young", "elderly": "young"},
}  # fmt: skip
_WORD = re.compile(r"[a-z]+")


def word_swap(prompt: str) -> tuple[str, ...]:
    """The naive candidate set of `prompt`, sorted and unique; one prompt if the table knows none of its words."""
    text = prompt.lower().strip()
    words = set(_WORD.findall(text))
    present = [table for table in SWAPS.values() if words & table.keys()]
    return tuple(sorted({_apply(text, chosen) for chosen in _subsets(present)}))


def _subsets(tables: list[dict[str, str]]) -> list[dict[str, str]]:
    """For every way to swap or keep each attribute, the words to replace."""
    picks = itertools.product((False, True), repeat=len(tables))
    return [{k: v for t, on in zip(tables, pick, strict=True) if on for k, v in t.items()} for pick in picks]


def _apply(text: str, swaps: dict[str, str]) -> str:
    return _WORD.sub(lambda m: swaps.get(m[0], m[0]), text)
