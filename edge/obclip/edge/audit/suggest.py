"""Which words to leave out so that the rest says less: greedy, and each step checked by the parser itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from obclip.core.errors import ObclipError
from obclip.edge.audit.evidence import Candidates, Evidence, Slot, read_evidence
from obclip.edge.audit.model import AuditModel, Prior
from obclip.edge.audit.vocabulary import FUNCTION_WORDS

MIN_GAIN = 0.05  # of the effective N; a word that gives less is not worth a change of prompt
_DETERMINERS = frozenset(["a", "an", "the", "this", "that", "these", "those", "its", "their", "some", "two", "three"])
_OPENERS = frozenset(
    [
        "with",
        "without",
        "in",
        "on",
        "at",
        "by",
        "of",
        "from",
        "to",
        "under",
        "over",
        "near",
        "beside",
        "down",
        "up",
        "into",
        "onto",
        "wearing",
        "holding",
        "carrying",
        "having",
    ]
)
_LEADS = frozenset(["is", "are", "was", "were", "who", "that", "and"])

Expand = Callable[[str], Candidates]
Pieces = Sequence[str | Slot]


@dataclass(frozen=True)
class Suggestion:
    """drop: the words to leave out, besides those of the suggestions before this one; "_" for a slot among them.

    remainder: what all candidates then share, "_" for a slot. effective_n, candidates: of the prompt without them.
    """

    drop: str
    remainder: str
    effective_n: float
    candidates: int


def suggest(
    found: Candidates, model: AuditModel, expand: Expand, prior: Prior = "careful", most: int = 3
) -> tuple[Suggestion, ...]:
    """At most `most` rewordings, each on top of the one before, each raising the effective N as far as one step can.

    expand: a prompt to its candidate set, under the same policy. A step that it refuses, or after which there are more
    or fewer candidates, is not suggested. Words in slots stay; what a dropped word leaves hanging ("with a long" of
    "with a long beard", "his" of "stroking his beard") goes with it.
    """
    steps: list[Suggestion] = []
    while len(steps) < most and (best := _best_step(found, model, expand, prior)) is not None:
        step, found = best
        steps.append(step)
    return tuple(steps)


def _best_step(
    found: Candidates, model: AuditModel, expand: Expand, prior: Prior
) -> tuple[Suggestion, Candidates] | None:
    evidence = read_evidence(found)

    def effective_n(without: frozenset[int] = frozenset()) -> float:
        return model.posterior(found, prior, evidence=evidence, without=without).effective_n

    enough = effective_n() * (1 + MIN_GAIN)
    cuts = {_cut(evidence, places) for places in _droppable(evidence, model)}
    for expected, cut in sorted((-effective_n(frozenset(cut)), cut) for cut in cuts):
        if -expected < enough:
            break
        try:
            shorter = expand(evidence.first_prompt(frozenset(cut)))
        except ObclipError:
            continue
        after = model.posterior(shorter, prior).effective_n
        if len(shorter.prompts) == len(found.prompts) and after >= enough:
            remainder = read_evidence(shorter).remainder
            return Suggestion(evidence.text(cut), remainder, after, len(shorter.prompts)), shorter
    return None


def _droppable(evidence: Evidence, model: AuditModel) -> set[tuple[int, ...]]:
    """Places of the words that the model reads beside anyone, outside the slots."""
    hits = [hit.places for person in evidence.people for hit in model.vocabulary.hits(evidence, person)]
    return {places for places in hits if not evidence.is_slot(places[0])}


def _cut(evidence: Evidence, places: tuple[int, ...]) -> tuple[int, ...]:
    """The places with the rest of their phrase, where they are its end; "white" of "white shirt" goes alone."""
    pieces, first, end = evidence.pieces, places[0], places[-1] + 1
    before = pieces[first - 1] if first else ""
    if end == first + 1 and _is_doing(pieces[first]) and (isinstance(before, Slot) or before in _LEADS):
        return tuple(range(_before(pieces, first, _leads), end))
    if end < len(pieces) and (isinstance(pieces[end], Slot) or _is_content(pieces[end])):
        return places
    start = _before(pieces, first, _is_content)
    if start > 0 and _determines(pieces[start - 1]):
        start -= 1
    elif start == 0 or pieces[start - 1] not in _OPENERS:
        return places
    if end < len(pieces) and pieces[end] == "of":
        return tuple(range(start, end + 1))
    if _goes_on(pieces, end):
        return tuple(range(start, end + 1))
    if start > 0 and _is_doing(pieces[start - 1]):
        start = _before(pieces, start - 1, _leads)
    elif start > 0 and pieces[start - 1] in _OPENERS:
        start -= 1
    return tuple(range(start, end))


def _before(pieces: Pieces, start: int, belongs: Callable[[str | Slot], bool]) -> int:
    """Where the pieces right before `start` that belong to it begin."""
    while start > 0 and belongs(pieces[start - 1]):
        start -= 1
    return start


def _goes_on(pieces: Pieces, end: int) -> bool:
    """Whether "and" and another thing follow, which need the opening word: "with [grey hair and] a cane"."""
    rest = pieces[end + 1 : end + 3]
    return end < len(pieces) and pieces[end] == "and" and len(rest) > 0 and not any(isinstance(p, Slot) for p in rest)


def _leads(piece: str | Slot) -> bool:
    return isinstance(piece, str) and piece in _LEADS


def _is_content(piece: str | Slot) -> bool:
    return isinstance(piece, str) and piece[0].isalnum() and piece not in FUNCTION_WORDS | _OPENERS | _DETERMINERS


def _determines(piece: str | Slot) -> bool:
    return piece.possessive if isinstance(piece, Slot) else piece in _DETERMINERS


def _is_doing(piece: str | Slot) -> bool:
    return isinstance(piece, str) and piece.endswith("ing")
