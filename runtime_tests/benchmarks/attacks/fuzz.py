"""Attribute words misspelt, or said in other words that a policy may not know."""

from __future__ import annotations

import re

import numpy as np

TYPOS = ("letters swapped", "letter dropped", "letter doubled")
_SHORTEST = 3

# Words of our own choosing, some common, some not; a mention is replaced by one of its list
PARAPHRASES: dict[str, tuple[str, ...]] = {
    "woman": ("lady", "gal", "female", "dame", "missus", "womenfolk", "lassie", "madame", "heroine"),
    "women": ("ladies", "gals", "females", "womenfolk", "sisters"),
    "man": ("gentleman", "guy", "bloke", "male", "fella", "gent", "dude", "chap", "hombre", "bro"),
    "men": ("gentlemen", "guys", "blokes", "males", "fellas", "gents", "lads", "menfolk"),
    "girl": ("young lady", "lass", "schoolgirl", "gal", "tween", "maiden"),
    "boy": ("lad", "schoolboy", "little guy", "youngster", "kiddo", "tyke"),
    "old": ("elderly", "aged", "ancient", "grey-haired", "wizened", "retired", "octogenarian", "senior"),
    "young": ("youthful", "teenage", "twentysomething", "juvenile", "college-age", "adolescent"),
    "lady": ("woman", "madam", "gentlewoman", "matron"),
    "his": ("the guy's", "the man's", "the gentleman's"),
    "her": ("the woman's", "the lady's", "the gal's"),
}


def alter(prompt: str, word: str, kind: str, rng: np.random.Generator) -> tuple[str, str] | None:
    """The prompt with the first `word` of it altered, and the new word; None where `kind` does not apply to it."""
    match = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", prompt, re.IGNORECASE)
    new = paraphrase(word, rng) if kind == "paraphrase" else misspell(word, kind, rng)
    if match is None or new is None:
        return None
    return prompt[: match.start()] + new + prompt[match.end() :], new


def paraphrase(word: str, rng: np.random.Generator) -> str | None:
    others = PARAPHRASES.get(word.lower())
    return None if others is None else others[int(rng.integers(len(others)))]


def misspell(word: str, kind: str, rng: np.random.Generator) -> str | None:
    """One typing error inside `word`; None for words of under three letters and for an error that changes nothing."""
    if len(word) < _SHORTEST or not word.isalpha():
        return None
    i = int(rng.integers(len(word) - 1))
    if kind == "letters swapped":
        new = word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    elif kind == "letter dropped":
        new = word[:i] + word[i + 1 :]
    else:
        new = word[:i] + word[i] + word[i:]
    return None if new == word else new
