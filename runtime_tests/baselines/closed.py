"""A prompt's candidate set as words: what an adversary has to choose from, and what tells its members apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from obclip.core.errors import PrivacyError
from obclip.edge.oblivious import CandidateSet, Options, Policy, candidate_set

from .words import words_of

Lexicon = dict[str, dict[str, str]]
"""Attribute word -> attribute -> the value it says. A word that says no value by itself ("person") says {}."""


@dataclass(frozen=True)
class Closed:
    """sets: what the device would send for each of `found.prompts`. words, values: of each of them.

    values: label -> value, as "gender" -> "woman".
    """

    found: CandidateSet
    sets: tuple[CandidateSet, ...]
    words: tuple[tuple[str, ...], ...]
    values: tuple[dict[str, str], ...]


def closed(prompt: str, policy: Policy, options: Options | None = None) -> Closed | None:
    """None if the prompt hides nothing, or is refused."""
    try:
        found = candidate_set(prompt, policy, options)
    except PrivacyError:
        return None
    if not found.attributes:
        return None
    sets = tuple(candidate_set(candidate, policy, options) for candidate in found.prompts)
    values = tuple(s.attributes for s in sets)
    return Closed(found, sets, tuple(words_of(p) for p in found.prompts), values)


def attribute_of(label: str) -> str:
    """ "gender of person 2" -> "gender"."""
    return label.split(" of ")[0]


def build_lexicon(secrets: Iterable[Closed]) -> Lexicon:
    """The words in which members of a set differ, and what they say.

    A word says a value of an attribute if, in every set where it tells members apart and the attribute is hidden, it
    stands in members of that value only.
    """
    seen: dict[str, dict[str, set[str]]] = {}
    for secret in secrets:
        for word in differing(secret.words):
            holders = [v for words, v in zip(secret.words, secret.values, strict=True) if word in words]
            said = seen.setdefault(word, {})
            for label in secret.found.attributes:
                said.setdefault(attribute_of(label), set()).update(v[label] for v in holders)
    return {w: {a: next(iter(v)) for a, v in said.items() if len(v) == 1} for w, said in sorted(seen.items())}


def differing(prompts: Sequence[tuple[str, ...]]) -> frozenset[str]:
    """Words that do not stand equally often in all of `prompts`."""
    counts = [Counter(words) for words in prompts]
    return frozenset(word for word in set().union(*counts) if len({count[word] for count in counts}) > 1)
