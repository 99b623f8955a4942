"""What a cloud can work out from a candidate set alone: the members' values and the words they share."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from obclip.core.errors import ObclipError
from obclip.edge.oblivious import CandidateSet, Policy, candidate_set, load_policy
from runtime_tests.data import FOLDER, coco_captions

from .portraits import fallback_captions

_WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*")


@dataclass(frozen=True)
class Known:
    """values: for each member, label -> value. words: what every member has in common."""

    prompt: str
    found: CandidateSet
    values: tuple[dict[str, str], ...]
    words: frozenset[str]

    @property
    def size(self) -> int:
        return len(self.found.prompts)

    def truth(self, label: str) -> str:
        return self.values[self.found.index][label]


def examine(prompt: str, policy: Policy) -> Known | None:
    """The set of `prompt` as an adversary reads it; None if it is refused or hides nothing.

    The values come from the public candidate function, applied to each member: closure lets the cloud do the same.
    """
    try:
        found = candidate_set(prompt, policy)
    except ObclipError:
        return None
    if len(found.prompts) < 2:
        return None
    values = tuple(candidate_set(p, policy).attributes for p in found.prompts)  # a refusal here would be a defect
    return Known(prompt, found, values, shared_words(found.prompts))


def shared_words(prompts: tuple[str, ...]) -> frozenset[str]:
    """The words that every one of `prompts` has."""
    return frozenset.intersection(*(words_of(p) for p in prompts))


def words_of(text: str) -> frozenset[str]:
    """The lower-case English words of a text."""
    return frozenset(_WORD.findall(text))


def attribute_of(label: str) -> str:
    """ "gender of person 2" -> "gender"."""
    return label.split(" of ")[0]


@lru_cache(maxsize=2)
def captions(limit: int) -> tuple[tuple[str, ...], str]:
    """At most `limit` captions of photographs, and where they are from: COCO, or sentences of our own without it."""
    if (FOLDER / "prompts" / "coco_person.jsonl").is_file():
        texts, source = coco_captions(), "COCO"
    else:
        texts, source = fallback_captions(), "own sentences"
    unique = [text for text, _ in Counter(t.strip() for t in texts).items()]
    return tuple(unique[:limit]), source


@lru_cache(maxsize=2)
def known_captions(limit: int) -> tuple[Known, ...]:
    """Those of `captions` in which something is hidden, under the default policy."""
    policy = load_policy("default")
    return tuple(k for text in captions(limit)[0] if (k := examine(text, policy)) is not None)
