"""Whom a pronoun means, decided from the order of words alone, so that every candidate of a set agrees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from obclip.edge.oblivious.tokens import STOP, Token

_CLAUSE = frozenset({".", ";", "!", "?", ":"})
_JOIN = frozenset({"and", "with", "&", ",", "plus", "or"})


@dataclass(frozen=True)
class Mention:
    """A person where the text mentions them. at: token index; gendered: the word there says a gender."""

    at: int
    gendered: bool
    plural: bool


def _breaks(token: Token) -> bool:
    """Whether a noun after this token is in another phrase than one before it: 'his daughter' is not himself."""
    return token.kind == "punct" or token.text in STOP


def referent(tokens: Sequence[Token], at: int, mentions: Sequence[Mention]) -> int | None:
    """Where the person is mentioned that the pronoun at `tokens[at]` means; None where nobody is.

    Someone who belongs to the pronoun does not count ("his daughter").

    One person: that one. Several: only those before the pronoun, singular ones first, gendered ones first; of those the
    nearest if the pronoun joins on directly ("a man and his wife", "a man with a woman and her dog"), otherwise the
    first of the clause, its subject ("a woman holds a girl in her arms").
    """
    if not mentions:
        return None
    before = [m for m in mentions if m.at < at]
    if not before:
        before = [m for m in mentions if any(_breaks(t) for t in tokens[at + 1 : m.at])]
    if not before:
        return None
    for keep in (lambda m: not m.plural, lambda m: m.gendered):
        before = [m for m in before if keep(m)] or before
    if len(before) == 1:
        return before[0].at
    if tokens[at].value.startswith("subject"):
        return before[0].at
    words = [i for i in range(at) if tokens[i].kind != "space"]
    if words and (tokens[words[-1]].text in _JOIN) and before[-1].at == (words[-2] if len(words) > 1 else -1):
        return before[-1].at
    start = max((i for i in range(at) if tokens[i].text in _CLAUSE), default=-1)
    clause = [m for m in before if m.at > start]
    return (clause or before)[0].at
