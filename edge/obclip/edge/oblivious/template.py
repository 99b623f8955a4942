"""What parsing makes of a prompt: fixed text with slots, and the people that the slots are about."""

from __future__ import annotations

from dataclasses import dataclass, field

from obclip.edge.oblivious.tokens import Token


@dataclass
class Person:
    """attributes: what the prompt says. minor: a child under a policy that keeps children a class of their own.

    skinned: its noun shows the skin tone ("a dark-skinned woman"), rather than words of their own.
    sexed: a word beside its noun says its gender ("latina", "in her sixties"), so the noun has to.
    childlike: an adjective that stays ("teenage") says already that it is a child.
    choices: attribute -> values, where they are not the policy's. A user's mark is a person of its own, with a "mark".
    """

    attributes: dict[str, str] = field(default_factory=dict)
    minor: bool = False
    skinned: bool = False
    sexed: bool = False
    childlike: bool = False
    choices: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Slot:
    """kind: "noun", "adjectives" (of a noun whose token's frame is "apart"), "tone", "pronoun" or "mark"; token: its
    source; implicit: no noun of its own was written."""

    kind: str
    person: int
    token: Token
    implicit: bool = False


@dataclass(frozen=True)
class Mention:
    """Words of the prompt that say an attribute of a person. attribute: "child" for what makes someone a child."""

    text: str
    attribute: str
    person: int


@dataclass(frozen=True)
class Template:
    pieces: tuple[str | Slot, ...]
    people: tuple[Person, ...]
    mentions: tuple[Mention, ...] = ()
    unsent: tuple[str, ...] = ()

    @property
    def remainder(self) -> str:
        """What every candidate shares, with "_" where a slot is."""
        return "".join(piece if isinstance(piece, str) else "_" for piece in self.pieces)
