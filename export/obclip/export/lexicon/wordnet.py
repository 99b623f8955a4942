"""WordNet 3.0's noun files, as much of them as the word lists need (format: wndb(5WN), wninput(5WN))."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Synset:
    """words: lemmas in their own case, spaces as underscores; pointers: (symbol, offset) to other noun synsets."""

    words: tuple[str, ...]
    pointers: tuple[tuple[str, str], ...]
    gloss: str


@dataclass
class WordNet:
    """folder: the one with data.noun and index.noun."""

    folder: Path
    synsets: dict[str, Synset] = field(init=False)
    senses: dict[str, list[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.synsets = dict(self._read_synsets())
        self.senses = self._read_index("noun")

    def _read_synsets(self) -> list[tuple[str, Synset]]:
        found = []
        for line in (self.folder / "data.noun").read_text().splitlines():
            if line.startswith("  "):
                continue
            head, gloss = line.split(" | ", 1)
            f = head.split()
            n = int(f[3], 16)
            p = 4 + 2 * n
            rows = [f[p + 1 + 4 * i : p + 5 + 4 * i] for i in range(int(f[p]))]
            pointers = tuple((symbol, offset) for symbol, offset, pos, _ in rows if pos == "n")
            found.append((f[0], Synset(tuple(f[4:p:2]), pointers, gloss.strip())))
        return found

    def _read_index(self, pos: str) -> dict[str, list[str]]:
        index = {}
        for line in (self.folder / f"index.{pos}").read_text().splitlines():
            if not line.startswith("  "):
                f = line.split()
                index[f[0]] = f[6 + int(f[3]) :]
        return index

    @cached_property
    def other_lemmas(self) -> frozenset[str]:
        return frozenset(w for pos in ("verb", "adj", "adv") for w in self._read_index(pos))

    @cached_property
    def _children(self) -> dict[str, list[str]]:
        children = defaultdict(list)
        for offset, synset in self.synsets.items():
            for symbol, parent in synset.pointers:
                if symbol in ("@", "@i"):
                    children[parent].append(offset)
        return children

    def below(self, lemma: str, sense: int = 0) -> frozenset[str]:
        """Offsets of a sense and all its hyponyms and instances."""
        seen, stack = set(), [self.senses[lemma][sense]]
        while stack:
            offset = stack.pop()
            if offset not in seen:
                seen.add(offset)
                stack += self._children[offset]
        return frozenset(seen)

    def is_instance(self, offset: str) -> bool:
        return any(symbol == "@i" for symbol, _ in self.synsets[offset].pointers)

    def regions(self, offset: str) -> frozenset[str]:
        """Lemmas of the places that a people's synset belongs to, and of the places that hold those."""
        places, stack = set(), [o for s, o in self.synsets[offset].pointers if s == "#m"]
        while stack:
            place = stack.pop()
            if place not in places:
                places.add(place)
                stack += [o for s, o in self.synsets[place].pointers if s == "#p"]
        return frozenset(w.lower() for place in places for w in self.synsets[place].words)
