"""Caption variants of a drawing: the data's own captions, and the same in the words of the emoji policy."""

from __future__ import annotations

import re
from typing import Any

_POLICY_WORDS = {"female": "woman", "male": "man", "elderly": "older"}


def canonical_words(caption: str) -> str:
    """Replace synonyms by the words that candidate prompts use, e.g. 'elderly female' becomes 'older woman'."""
    words = re.sub(r"\b(female|male|elderly)\b", lambda m: _POLICY_WORDS[m[0]], caption)
    return fix_articles(words)


def say_adult(caption: str) -> str:
    """Name the age of an adult: 'a woman cook' becomes 'an adult woman cook'. Candidates name it when age is hidden."""
    return fix_articles(re.sub(r"\b(woman|man|person)\b", r"adult \1", caption, count=1))


def fix_articles(text: str) -> str:
    return re.sub(r"\b(an?) (\w)", lambda m: ("an " if m[2] in "aeio" else "a ") + m[2], text)


def caption_variants(row: dict[str, Any]) -> list[str]:
    """Captions to draw from with equal chance; the canonical one is listed more than once so that it dominates."""
    canonical = row["caption"]
    others = [canonical_words(c) for c in row["captions"]]
    variants = [canonical] * 4 + others + [c for c in row["captions"] if canonical_words(c) != c]
    if row["age"] == "adult" and (adult := say_adult(canonical)) != canonical:
        variants += [adult] + [say_adult(others[0])]
    return variants
