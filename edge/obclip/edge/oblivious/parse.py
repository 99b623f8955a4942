"""Parsing: tokens to a template with slots, and the people whose attributes the slots show.

Who a slot belongs to is decided from the order of tokens alone, never from the values in them, so every candidate of a
set parses to the same template.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from obclip.core.errors import PrivacyError
from obclip.edge.oblivious.policy import Policy
from obclip.edge.oblivious.tokens import FEMALE_PRONOUNS, STOP, Token, scan

_REACH = 5  # words between an adjective and the person it describes


@dataclass
class Person:
    """attributes: what the prompt says. minor: a child under a policy that keeps children a class of their own."""

    attributes: dict[str, str] = field(default_factory=dict)
    minor: bool = False


@dataclass(frozen=True)
class Slot:
    """kind: "noun", "tone" or "pronoun"; form: the token it came from; implicit: no noun of its own was written."""

    kind: str
    person: int
    token: Token
    implicit: bool = False


@dataclass(frozen=True)
class Template:
    pieces: tuple[str | Slot, ...]
    people: tuple[Person, ...]


def parse(text: str, policy: Policy) -> Template:
    """PrivacyError for a protected word that cannot be placed."""
    return _Parser(scan(text, policy), policy).run()


class _Parser:
    def __init__(self, tokens: list[Token], policy: Policy) -> None:
        self.tokens, self.policy = tokens, policy
        self.people: list[Person] = []
        self.owner: dict[int, int] = {}  # token index -> person, for nouns and for role words given a slot
        self.dropped: set[int] = set()
        self.public: set[int] = set()
        self.stages: dict[int, list[str]] = {}

    def run(self) -> Template:
        for token in self.tokens:
            self._refuse_unplaceable(token)
        self._merge_nouns()
        self._find_people()
        self._attach_adjectives()
        self._resolve_ages()
        tones, pronouns = self._attach_tones(), self._attach_pronouns()
        pieces: list[str | Slot] = []
        for i, token in enumerate(self.tokens):
            if i in self.dropped:
                continue
            if i in self.owner:
                person, implicit = self.owner[i], token.kind != "noun"
                if not implicit or self._shows(self.people[person]):
                    pieces.append(Slot("noun", person, token, implicit))
                    pieces += [" ", token.text] if implicit else []
                else:
                    pieces.append(token.text)
            elif i in tones:
                pieces.append(Slot("tone", tones[i], token))
            elif i in pronouns:
                pieces.append(Slot("pronoun", pronouns[i], self._pronoun_role(i)))
            else:
                pieces.append(token.text)
        return Template(tuple(pieces), tuple(self.people))

    def _refuse_unplaceable(self, token: Token) -> None:
        if token.kind == "refused":
            raise PrivacyError(f"{token.text!r} says something about a person and cannot be hidden; leave it out")
        if token.kind == "word" and "-" in token.text:
            for part in token.text.split("-"):
                noun = self.policy.nouns.get(part)
                adjective = part in self.policy.adjectives and part not in self.policy.public_adjectives
                if (noun and noun.gender) or adjective:
                    raise PrivacyError(f"{token.text!r} contains a protected word and cannot be placed; rephrase it")

    def _next(self, i: int, step: int = 1) -> int | None:
        """Index of the nearest token that is not a space or dropped, or None."""
        j = i + step
        while 0 <= j < len(self.tokens):
            if self.tokens[j].kind != "space" and j not in self.dropped:
                return j
            j += step
        return None

    def _drop(self, i: int) -> None:
        """Leave token i out, with the space after it (or before it, at the end)."""
        self.dropped.add(i)
        if i + 1 < len(self.tokens) and self.tokens[i + 1].kind == "space":
            self.dropped.add(i + 1)
        elif i > 0 and self.tokens[i - 1].kind == "space":
            self.dropped.add(i - 1)

    def _merge_nouns(self) -> None:
        """'female teenager', 'child actress', 'boy king': one person, described by the last noun."""
        merged: dict[int, Token] = {}
        for i, token in enumerate(self.tokens):
            j = self._next(i)
            if token.kind != "noun" or j is None:
                continue
            if token.text in ("male", "female") and self.tokens[j].kind == "thing":
                self.public.add(i)
            elif self.tokens[j].kind == "noun" and not token.possessive:
                first, second = merged.get(i, token).noun, self.tokens[j].noun
                assert first is not None
                assert second is not None
                if (
                    first.role
                    or first.neutral_role
                    or (first.gender and second.gender and first.gender != second.gender)
                ):
                    raise PrivacyError(f"{token.text!r} beside {self.tokens[j].text!r} cannot be placed; rephrase it")
                gender, stage = second.gender or first.gender, second.stage or first.stage
                noun = type(second)(gender, stage, second.plural, second.role, second.neutral_role)
                merged[j] = Token("noun", self.tokens[j].text, noun=noun, possessive=self.tokens[j].possessive)
                self._drop(i)
        for j, token in merged.items():
            self.tokens[j] = token

    def _find_people(self) -> None:
        for i, token in enumerate(self.tokens):
            if token.kind != "noun" or i in self.dropped or i in self.public:
                continue
            assert token.noun is not None
            before = self._next(i, -1)
            again = before is not None and self.tokens[before].text in ("the", "this", "that", "same")
            if again and self.people:
                if len(self.people) > 1:
                    raise PrivacyError(
                        f"it is unclear whom 'the {token.text}' means; use 'a' for each person, or one person"
                    )
                self.owner[i] = 0
            else:
                self.people.append(Person())
                self.owner[i] = len(self.people) - 1
            person = self.owner[i]
            if token.noun.gender:
                self._set(person, "gender", token.noun.gender)
            if token.noun.stage:
                self.stages.setdefault(person, []).append("noun:" + token.noun.stage)

    def _set(self, person: int, attribute: str, value: str) -> None:
        if attribute in self.policy.refused or value == "other":
            raise PrivacyError(f"the prompt says a person's {attribute}, which this policy does not hide; leave it out")
        if value not in self.policy.values[attribute]:
            raise PrivacyError(f"{attribute} {value!r} is not among this policy's values; leave it out")
        known = self.people[person].attributes.setdefault(attribute, value)
        if known != value:
            raise PrivacyError(f"the prompt says two things about one person's {attribute}; say one")

    def _attach_adjectives(self) -> None:
        for i, token in enumerate(self.tokens):
            if token.kind not in ("adjective", "years") or i in self.dropped:
                continue
            head = self._head_after(i, near=token.text in self.policy.public_adjectives)
            if head is None and token.kind == "years":
                head = self._last_noun_before(i)
            if head is None:
                if token.text in self.policy.public_adjectives or i in self.public:
                    continue
                raise PrivacyError(
                    f"{token.text!r} may be about a person but stands by no person word; "
                    "put it right before one, or leave it out"
                )
            person = self._person_at(head)
            if token.kind == "years" or token.attribute == "age":
                self.stages.setdefault(person, []).append(token.value)
            else:
                self._set(person, token.attribute, token.value)
            self._drop(i)

    def _head_after(self, i: int, near: bool) -> int | None:
        """The person word that the adjective at i describes; marks i public if a thing follows instead."""
        j, words = self._next(i), 0
        while j is not None and words <= _REACH:
            token = self.tokens[j]
            if token.kind in ("noun", "people") and j not in self.public:
                return j
            if token.kind in ("thing", "phrase"):
                self.public.add(i)
                return None
            if token.kind in ("punct", "pronoun") or token.text in STOP:
                return None
            if token.kind not in ("adjective", "years", "tone"):
                if near:
                    return None
                words += 1
            j = self._next(j)
        return None

    def _last_noun_before(self, i: int) -> int | None:
        owners = [j for j in self.owner if j < i]
        return max(owners) if owners else None

    def _person_at(self, head: int) -> int:
        if head not in self.owner:
            self.people.append(Person())
            self.owner[head] = len(self.people) - 1
        return self.owner[head]

    def _resolve_ages(self) -> None:
        for person, found in self.stages.items():
            nouns = {s[5:] for s in found if s.startswith("noun:")}
            others = {s for s in found if not s.startswith("noun:")}
            if "child" in nouns or "child" in others:
                if (nouns | others) - {"child", "young"}:
                    raise PrivacyError("the prompt calls one person both a child and an adult; say one")
                stages = {"child"}
            else:
                stages = others | (nouns - {"adult"} if others else nouns)
            values = {self.policy.age_value(s) for s in stages}
            if stages == {"child"} and "child" not in self.policy.stages:
                if not self.policy.minors:
                    raise PrivacyError("the prompt is about a child, which this policy does not hide")
                self.people[person].minor = True
            elif values - {None}:
                for value in sorted(v for v in values if v):
                    self._set(person, "age", value)
            elif "age" in self.policy.refused and stages - {"adult"}:
                self._set(person, "age", next(iter(stages)))

    def _attach_tones(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for i, token in enumerate(self.tokens):
            if token.kind != "tone":
                continue
            before = self._next(i, -1)
            if before is not None and self.tokens[before].text in self.policy.tones:
                raise PrivacyError(
                    "the skin tone has two words; use one of light, medium-light, medium, medium-dark, dark"
                )
            if token.frame == "-skinned":
                head = self._head_after(i, near=False)
            else:
                head = self._last_noun_before(i)
                if head is None:
                    head = min(self.owner, default=None)
            if head is None:
                self.people.append(Person())
                found[i] = len(self.people) - 1
            else:
                found[i] = self._person_at(head)
            self._set(found[i], "skin", token.value)
        return found

    def _attach_pronouns(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for i, token in enumerate(self.tokens):
            if token.kind != "pronoun":
                continue
            if len(self.people) > 1:
                raise PrivacyError(
                    f"it is unclear whom {token.text!r} means; leave the pronoun out, or name one person"
                )
            if not self.people:
                self.people.append(Person())
            found[i] = 0
            self._set(0, "gender", "woman" if token.text in FEMALE_PRONOUNS else "man")
        return found

    def _pronoun_role(self, i: int) -> Token:
        """Him, his and her are told apart by the word after them alone, which is the same for every candidate."""
        token, j = self.tokens[i], self._next(i)
        if token.value != "oblique":
            return Token("pronoun", "", value=token.value)
        owned = j is not None and self.tokens[j].kind not in ("punct", "pronoun") and self.tokens[j].text not in STOP
        return Token("pronoun", "", value="possessive" if owned else "object")

    @staticmethod
    def _shows(person: Person) -> bool:
        """Whether a slot before a role word ('old teacher') has anything to show."""
        return person.minor or bool(person.attributes.keys() & {"age", "ethnicity"})
