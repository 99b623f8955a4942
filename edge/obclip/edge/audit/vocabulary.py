"""Words and phrases as the audit's features: which of them stand by a person."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from obclip.edge.audit.evidence import Evidence, Slot

MAX_PHRASE_WORDS = 3
FUNCTION_WORDS = frozenset(
    [
        "a",
        "an",
        "the",
        "this",
        "that",
        "these",
        "those",
        "of",
        "with",
        "in",
        "on",
        "at",
        "by",
        "for",
        "from",
        "to",
        "and",
        "or",
        "but",
        "nor",
        "as",
        "than",
        "then",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "being",
        "am",
        "has",
        "have",
        "had",
        "do",
        "does",
        "did",
        "it",
        "its",
        "they",
        "them",
        "their",
        "who",
        "whom",
        "whose",
        "which",
        "what",
        "while",
        "where",
        "when",
        "there",
        "here",
        "into",
        "onto",
        "up",
        "down",
        "out",
        "off",
        "over",
        "under",
        "near",
        "s",
    ]
)


@dataclass(frozen=True)
class Hit:
    """A feature found beside a person. feature: its index in the vocabulary; places: indices into the pieces."""

    feature: int
    places: tuple[int, ...]


@dataclass(frozen=True)
class Vocabulary:
    """words: what is known, in the order of the weights. A phrase has spaces; a slot's nouns have bars (bride|groom).

    A phrase takes its words with it ("wedding dress" is not also a dress), and a word that is not known may be the
    plural of one that is.
    """

    words: tuple[str, ...]

    @cached_property
    def index(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def hits(self, evidence: Evidence, person: int, without: frozenset[int] = frozenset()) -> list[Hit]:
        """Features of one person, each once, at its first place; `without`: pieces that are left out."""
        found: dict[int, Hit] = {}
        places = evidence.places(person)
        at = 0
        while at < len(places):
            hit = None if places[at] in without else self._hit(evidence, places[at:], without)
            if hit is not None:
                found.setdefault(hit.feature, hit)
            at += len(hit.places) if hit else 1
        return list(found.values())

    def _hit(self, evidence: Evidence, places: tuple[int, ...], without: frozenset[int]) -> Hit | None:
        first = evidence.pieces[places[0]]
        if isinstance(first, Slot):
            feature = self.index.get(slot_word(first))
            return None if feature is None else Hit(feature, places[:1])
        for length in range(min(MAX_PHRASE_WORDS, len(places)), 0, -1):
            chosen = places[:length]
            texts = [evidence.pieces[i] for i in chosen]
            together = chosen == tuple(range(chosen[0], chosen[0] + length)) and not without.intersection(chosen)
            if together and all(isinstance(t, str) for t in texts):
                feature = self._lookup(" ".join(map(str, texts)))
                if feature is not None:
                    return Hit(feature, chosen)
        return None

    def _lookup(self, text: str) -> int | None:
        for form in forms(text):
            if form in self.index:
                return self.index[form]
        return None


def forms(text: str) -> Iterable[str]:
    """A word and what it may be the plural or possessive of, likeliest first."""
    yield text
    if text.endswith("'s"):
        yield text[:-2]
    elif text.endswith("s") and not text.endswith("ss") and len(text) > 3:
        yield text[:-1]
        if text.endswith("ies"):
            yield text[:-3] + "y"
        if text.endswith("es"):
            yield text[:-2]


def slot_word(slot: Slot) -> str:
    """The nouns that a slot alternates between, "groom|bride" sorted: the role and the number are public."""
    return "|".join(sorted({form.rpartition(" ")[2] for form in slot.forms}))
