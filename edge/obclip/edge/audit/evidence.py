"""What a set of candidates says in the clear: the words all of them share, and whom each of those words stands by.

Everything here is a function of the set alone. Which of its prompts is the real one is never looked at, so the audit of
a prompt is the audit of every other prompt of its set.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

_TOKENS = re.compile(r"[^\W_]+(?:['-][^\W_]+)*|[^\w\s]|_")
_WORD = re.compile(r"\w")
_PERSON = re.compile(r" of person (\d+)$")
_MARK = re.compile(r"mark \d+$")
_POSSESSIVES = frozenset({"his", "her"})
SLOT = "_"


class Candidates(Protocol):
    """The part of a `CandidateSet` that the cloud sees, and what each of its prompts says ({} for padding)."""

    @property
    def prompts(self) -> tuple[str, ...]: ...

    @property
    def values(self) -> tuple[dict[str, str], ...]: ...


@dataclass(frozen=True)
class Slot:
    """Where the candidates differ. texts: what each of them has there. labels: the hidden attributes it follows.

    person: index of the one person it is about; None for a user's mark, and if it follows several people's attributes.
    """

    texts: tuple[str, ...]
    labels: frozenset[str]
    person: int | None

    @property
    def forms(self) -> tuple[str, ...]:
        """The distinct texts, sorted."""
        return tuple(sorted(set(self.texts)))

    @property
    def marked(self) -> str:
        """The text of the first candidate, as a mark with all the alternatives if it is a user's mark."""
        first = self.texts[0]
        if not self.labels or not all(_MARK.match(label) for label in self.labels):
            return first
        return f"[[{'|'.join([first, *(form for form in self.forms if form != first)])}]]"

    @property
    def possessive(self) -> bool:
        """Whether this is a lone "his" or "her"."""
        return set(self.texts) <= _POSSESSIVES


@dataclass(frozen=True)
class Evidence:
    """pieces: the set's common tokens (words, punctuation) and its slots, in order.

    A person's words are those that stand from their first slot up to the first slot of the next person, and those
    before everybody: English describes a person after naming them. With one person that is every word.
    """

    pieces: tuple[str | Slot, ...]

    @property
    def remainder(self) -> str:
        """The common words, with "_" for each slot."""
        return _punctuate(self.text(range(len(self.pieces))))

    def first_prompt(self, without: frozenset[int]) -> str:
        """The set's first prompt, marks put back, some pieces left out. Any other one would lead to the same set."""
        kept = [p for i, p in enumerate(self.pieces) if i not in without]
        return _punctuate(" ".join(p.marked if isinstance(p, Slot) else p for p in kept if p))

    @property
    def people(self) -> tuple[int, ...]:
        """Indices of the people with something hidden, in the order of their first slots."""
        return tuple(dict.fromkeys(p.person for p in self.pieces if isinstance(p, Slot) and p.person is not None))

    def places(self, person: int) -> tuple[int, ...]:
        """Indices into `pieces` of what says something about one person: common words, and their own slots."""
        starts = self._starts()
        if len(starts) < 2 or person not in starts:
            return tuple(i for i, p in enumerate(self.pieces) if self._counts(p, person))
        first, begin = min(starts.values()), starts[person]
        end = min((s for s in starts.values() if s > begin), default=len(self.pieces))
        inside = [*range(first), *range(begin, end)]
        return tuple(i for i in inside if self._counts(self.pieces[i], person))

    def text(self, places: Sequence[int]) -> str:
        """The pieces at these places, with "_" for a slot."""
        return " ".join(SLOT if isinstance(p, Slot) else p for p in (self.pieces[i] for i in places))

    def is_slot(self, place: int) -> bool:
        return isinstance(self.pieces[place], Slot)

    def _starts(self) -> dict[int, int]:
        starts: dict[int, int] = {}
        for i, piece in enumerate(self.pieces):
            if isinstance(piece, Slot) and piece.person is not None:
                starts.setdefault(piece.person, i)
        return starts

    @staticmethod
    def _counts(piece: str | Slot, person: int) -> bool:
        return piece.person == person if isinstance(piece, Slot) else bool(_WORD.match(piece))


def read_evidence(found: Candidates) -> Evidence:
    """The common tokens and slots of a set, its padding left aside."""
    real = real_rows(found)
    rows = [_TOKENS.findall(found.prompts[i]) for i in real]
    values = [found.values[i] for i in real]
    common = rows[0]
    for row in rows[1:]:
        if not _is_inside(common, row):
            common = _longest_common(common, row)
    if len(rows) == 1:
        return Evidence(tuple(common))
    gaps = [_gaps(common, row) for row in rows]
    pieces: list[str | Slot] = []
    for i in range(len(common) + 1):
        texts = [" ".join(g[i]) for g in gaps]
        if any(texts):
            pieces.append(_slot(texts, values, [p for p in pieces if isinstance(p, Slot)]))
        if i < len(common):
            pieces.append(common[i])
    return Evidence(tuple(pieces))


def real_rows(found: Candidates) -> list[int]:
    """Indices of the prompts that are no padding. Padding is known by its commas, which make it longer."""
    said = [i for i, values in enumerate(found.values) if values]
    return said or [min(range(len(found.prompts)), key=lambda i: (len(found.prompts[i]), i))]


def person_of(label: str) -> int | None:
    """0 for "gender", 1 for "gender of person 2", None for a user's mark."""
    if _MARK.match(label):
        return None
    match = _PERSON.search(label)
    return int(match[1]) - 1 if match else 0


def attribute_of(label: str) -> str:
    """ "gender" for "gender of person 2"."""
    return _PERSON.sub("", label)


def _slot(texts: Sequence[str], values: Sequence[dict[str, str]], before: Sequence[Slot]) -> Slot:
    """The labels a slot follows: those with two candidates that differ in nothing else and have other texts there."""
    labels = set()
    for label in values[0]:
        others: dict[tuple[tuple[str, str], ...], str] = {}
        for text, value in zip(texts, values, strict=True):
            rest = tuple(sorted((k, v) for k, v in value.items() if k != label))
            if others.setdefault(rest, text) != text:
                labels.add(label)
                break
    labels = labels or _tied(texts, values, before)
    people = {person_of(label) for label in labels}
    return Slot(tuple(texts), frozenset(labels), people.pop() if len(people) == 1 else None)


def _tied(texts: Sequence[str], values: Sequence[dict[str, str]], before: Sequence[Slot]) -> set[str]:
    """Where people's values move together, no label changes alone: the label whose values the texts spell, if one does.

    Of several that do so equally, the person with the fewest slots so far, first person first: people are numbered in
    the order in which they are named.
    """
    ranks = {}
    for label in values[0]:
        said = [value[label] for value in values]
        if len(set(zip(said, texts, strict=True))) == len(set(said)) == len(set(texts)):
            spelt = sum(value in re.split(r"[ -]", text) for value, text in zip(said, texts, strict=True))
            person = person_of(label)
            ranks[label] = (-spelt, sum(slot.person == person for slot in before), person or 0, label)
    return {min(ranks, key=ranks.__getitem__)} if ranks else set()


def _punctuate(text: str) -> str:
    """No space before punctuation, no comma left alone."""
    text = re.sub(r" +([,.;:!?])", r"\1", text)
    return re.sub(r",(?:,)+", ",", text).strip(" ,")


def _is_inside(common: Sequence[str], row: Sequence[str]) -> bool:
    rest = iter(row)
    return all(token in rest for token in common)


def _gaps(common: Sequence[str], row: Sequence[str]) -> list[list[str]]:
    """The tokens of `row` before, between and after those of `common`, matched from both ends towards the middle.

    Matching the first place that fits from the left could put a common word inside a slot ("a" of "a man and a dog"
    never does, but a value that is also a word of the prompt can); the longest common subsequence settles it.
    """
    gaps: list[list[str]] = [[] for _ in range(len(common) + 1)]
    matched = dict(_match(common, row))
    at = 0
    for j, token in enumerate(row):
        if matched.get(j) == at:
            at += 1
        else:
            gaps[at].append(token)
    return gaps


def _longest_common(a: Sequence[str], b: Sequence[str]) -> list[str]:
    return [b[j] for j, _ in _match(a, b)]


def _match(a: Sequence[str], b: Sequence[str]) -> list[tuple[int, int]]:
    """A longest common subsequence as (index in b, index in a), equal ends first."""
    head = 0
    while head < min(len(a), len(b)) and a[head] == b[head]:
        head += 1
    tail = 0
    while tail < min(len(a), len(b)) - head and a[-1 - tail] == b[-1 - tail]:
        tail += 1
    x, y = a[head : len(a) - tail], b[head : len(b) - tail]
    table = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i in reversed(range(len(x))):
        for j in reversed(range(len(y))):
            same = x[i] == y[j]
            table[i][j] = table[i + 1][j + 1] + 1 if same else max(table[i + 1][j], table[i][j + 1])
    pairs = [(k, k) for k in range(head)]
    i = j = 0
    while i < len(x) and j < len(y):
        if x[i] == y[j]:
            pairs.append((head + j, head + i))
            i, j = i + 1, j + 1
        elif table[i + 1][j] >= table[i][j + 1]:
            i += 1
        else:
            j += 1
    return pairs + [(len(b) - tail + k, len(a) - tail + k) for k in range(tail)]
