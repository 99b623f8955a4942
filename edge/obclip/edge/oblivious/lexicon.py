"""What English words are: the lists that `obclip.export.lexicon` builds from WordNet, SCOWL and the US Census."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources

_FOLDER = resources.files("obclip.edge").joinpath("lexicon")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_ING = """
building ring string wing thing painting clothing ceiling wedding evening morning railing awning swing spring earring
drawing sling carving crossing parking dressing frosting icing stuffing seasoning bedding rigging flooring lighting
landing clearing setting helping serving pudding lettering writing engraving plumbing
"""
_THINGS_IN_ING = frozenset(_ING.split())
_DOERS = ("maker", "keeper", "worker", "player", "driver", "owner", "fighter", "walker", "seller", "lover", "herder")
_PREFIXES = (
    "hyper",
    "ultra",
    "super",
    "semi",
    "photo",
    "non",
    "un",
    "re",
    "pre",
    "anti",
    "mini",
    "micro",
    "multi",
    "over",
)
MIN_TYPO = 4  # letters; shorter unknown words are never taken for misspellings


def _words(name: str) -> frozenset[str]:
    return frozenset(_FOLDER.joinpath(f"{name}.txt").read_text("utf8").split())


def _pairs(name: str) -> dict[str, str]:
    lines = _FOLDER.joinpath(f"{name}.txt").read_text("utf8").splitlines()
    return dict(line.rsplit(" ", 1) for line in lines)


@dataclass(frozen=True)
class Lexicon:
    """common, more, rare: English words, rare as lines of one text. nouns, places: nouns that are no people.

    names: first names; sure_names: those that are names however they are written. gendered: person word -> "gender" or
    "age". nations: word for a people -> region of the world.
    """

    common: frozenset[str]
    more: frozenset[str]
    rare: str
    nouns: frozenset[str]
    people: frozenset[str]
    animals: frozenset[str]
    names: frozenset[str]
    sure_names: frozenset[str]
    places: frozenset[str]
    gendered: dict[str, str]
    nations: dict[str, str]

    def knows(self, word: str) -> bool:
        """An English word, a place or a maker, or a plural or possessive of one."""
        stem = word.removesuffix("'s").removesuffix("'")
        return any(
            w in words
            for w in (stem, *singulars(stem))
            for words in (self.common, self.more, self.places, self.people, self.nations)
        )

    def is_plain_word(self, word: str) -> bool:
        return word in self.common or word in self.more

    def knows_rare(self, word: str) -> bool:
        """A seldom English word, or a prefix on any; asked after names, since many a name is one."""
        for prefix in _PREFIXES:
            if word.startswith(prefix) and len(word) > len(prefix) + 3 and self.knows(word.removeprefix(prefix)):
                return True
        return any(f"\n{w}\n" in self.rare for w in (word, *singulars(word)))

    def is_noun(self, word: str) -> bool:
        """A noun that is no person. Of the words in -ing, which mostly are verbs beside people, only a few."""
        if word.endswith("ing") and word not in _THINGS_IN_ING and not word.endswith(("ling", "board")):
            return False
        return any(w in self.nouns or w in self.places for w in (word, *singulars(word)))

    def is_person(self, word: str) -> bool:
        if word not in self.nouns and word.removesuffix("s").endswith(_DOERS):
            return True
        return any(w in self.people for w in (word, *singulars(word)))

    def is_animal(self, word: str) -> bool:
        return any(w in self.animals for w in (word, *singulars(word)))

    @cached_property
    def typo_targets(self) -> frozenset[str]:
        return frozenset(w for w in self.common if len(w) >= MIN_TYPO)

    def looks_misspelt(self, word: str) -> bool:
        """One slip away from a common word of five letters or more, or two common words run together."""
        if len(word) > MIN_TYPO and any(w in self.typo_targets for w in slips(word)):
            return True
        halves = ((word[:i], word[i:]) for i in range(1, len(word)))
        return any(b in self.typo_targets and (a in self.typo_targets or a in ("a", "an", "the")) for a, b in halves)


def singulars(word: str) -> list[str]:
    """What `word` could be the plural of."""
    found = []
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        found.append(word[:-1])
        if word.endswith("es"):
            found.append(word[:-2])
        if word.endswith("ies"):
            found.append(word[:-3] + "y")
        if word.endswith("ves"):
            found += [word[:-3] + "f", word[:-3] + "fe"]
    if word.endswith("men"):
        found.append(word[:-3] + "man")
    return found


def slips(word: str) -> set[str]:
    """Words one slip away: a letter dropped, doubled or added, changed, or two swapped (Damerau 1964)."""
    cuts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    dropped = {a + b[1:] for a, b in cuts if b}
    swapped = {a + b[1] + b[0] + b[2:] for a, b in cuts if len(b) > 1}
    changed = {a + c + b[1:] for a, b in cuts if b for c in _LETTERS}
    added = {a + c + b for a, b in cuts for c in _LETTERS}
    return (dropped | swapped | changed | added) - {word}


@cache
def load_lexicon() -> Lexicon:
    lists = {
        name: _words(name) for name in ("common", "more", "nouns", "people", "animals", "names", "sure_names", "places")
    }
    rare = "\n" + _FOLDER.joinpath("rare.txt").read_text("utf8")
    return Lexicon(**lists, rare=rare, gendered=_pairs("gendered"), nations=_pairs("nations"))
