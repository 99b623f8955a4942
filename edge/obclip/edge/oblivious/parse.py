"""Parsing: tokens to a template with slots, and the people whose attributes the slots show.

Who a slot belongs to is decided from the order of tokens alone, never from the values in them, so every candidate of a
set parses to the same template.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from obclip.core.errors import InputError, PrivacyError
from obclip.edge.oblivious.adjectives import Adjectives
from obclip.edge.oblivious.policy import ABSENT, Policy
from obclip.edge.oblivious.reading import GROUPS, base
from obclip.edge.oblivious.referents import Mention as Named
from obclip.edge.oblivious.referents import referent
from obclip.edge.oblivious.tags import with_commas, with_counts
from obclip.edge.oblivious.template import Mention, Person, Slot, Template
from obclip.edge.oblivious.tokens import FEMALE_PRONOUNS, NEUTRAL_PRONOUNS, STOP, Token, scan

__all__ = ["Mention", "Person", "Slot", "Template", "parse"]


def parse(text: str, policy: Policy, allowed: tuple[str, ...] = (), names: frozenset[str] = frozenset()) -> Template:
    """text: normalised. allowed: spans let through. names: words known for names by how they were written.

    PrivacyError for a protected word that cannot be placed, and for a word that may be a name.
    """
    tokens = [
        replace(t, kind="name") if base(t.text) in names and t.kind != "phrase" else t
        for t in with_commas(with_counts(scan(text, policy, allowed)))
    ]
    return _Parser(tokens, policy).run()


def _numbered(template: Template) -> Template:
    """The same, with people in the order in which the text shows them, so that every candidate counts them alike."""
    shown = [piece.person for piece in template.pieces if isinstance(piece, Slot)]
    order = list(dict.fromkeys([*shown, *range(len(template.people))]))
    if order == sorted(order):
        return template
    new = {old: i for i, old in enumerate(order)}
    pieces = tuple(p if isinstance(p, str) else replace(p, person=new[p.person]) for p in template.pieces)
    mentions = tuple(replace(m, person=new.get(m.person, m.person)) for m in template.mentions)
    return Template(pieces, tuple(template.people[old] for old in order), mentions, template.unsent)


class _Parser(Adjectives):
    def run(self) -> Template:
        for i, token in enumerate(self.tokens):
            self._refuse_unplaceable(i, token)
        self._names()
        self._unwrap()
        self._refuse_weights()
        self._describing()
        self._animals()
        self._merge_nouns()
        self._people_of_adjectives()
        self._find_people()
        self._attach_adjectives()
        self._resolve_ages()
        tones, pronouns = self._attach_tones(), self._attach_pronouns()
        self._hide_absence()
        marks = self._marks()
        pieces: list[str | Slot] = []
        roles = {self._place_of(i): i for i in self.owner if self.tokens[i].kind != "noun"}
        apart = {start: i for i in self.owner if (start := self._apart(i)) is not None}
        for i, token in enumerate(self.tokens):
            if i in roles and self._shows(self.people[self.owner[roles[i]]]):
                pieces += [Slot("noun", self.owner[roles[i]], self.tokens[roles[i]], implicit=True), " "]
            if i in apart:
                pieces += [Slot("adjectives", self.owner[apart[i]], self.tokens[apart[i]]), " "]
            if i in self.dropped:
                continue
            if i in self.owner and token.kind == "noun":
                frame = "apart" if i in apart.values() else self._frame(i)
                pieces.append(Slot("noun", self.owner[i], replace(token, frame=frame)))
            elif i in marks:
                pieces.append(Slot("mark", marks[i], token))
            elif i in tones:
                pieces.append(Slot("tone", tones[i], token))
            elif i in pronouns:
                pieces.append(Slot("pronoun", pronouns[i], self._pronoun_role(i)))
            else:
                pieces.append(token.text)
        mentions = tuple(m for _, m in sorted(self.mentions, key=lambda pair: pair[0]))
        return _numbered(Template(tuple(pieces), tuple(self.people), mentions, tuple(self.unsent)))

    def _attach_pronouns(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for i, token in enumerate(self.tokens):
            neutral = "gender" in self.policy.absent and token.text in NEUTRAL_PRONOUNS
            if token.kind != "pronoun" and not neutral:
                continue
            named = list(self._named())
            if neutral and not self._is_one_person(i, named):
                continue
            at = referent(self.tokens, i, named)
            if self._is_animals(i):
                continue
            if at is None:
                self.people.append(Person())
            person = len(self.people) - 1 if at is None else self._person_at(at)
            found[i] = person
            if neutral:
                self.people[person].attributes["gender"] = ABSENT
                continue
            try:
                self._set(person, "gender", "woman" if token.text in FEMALE_PRONOUNS else "man", i)
            except PrivacyError as error:
                if "two things" not in str(error):
                    raise
                instead = f"the {self._who(person)}'s"
                raise PrivacyError(
                    f"it is unclear whom {token.text!r} means; say {instead!r} or leave it out"
                ) from error
        return found

    def _is_one_person(self, i: int, named: list[Named]) -> bool:
        """Whether a neutral pronoun means one person whose gender is not said, rather than several people."""
        at = referent(self.tokens, i, named)
        if at is None or next(m.plural for m in named if m.at == at):
            return False
        return at not in self.owner or not self.people[self.owner[at]].attributes.get("gender")

    def _place_of(self, i: int) -> int:
        """Where the words about a role word's person stand: where the prompt has them, or before all of its noun
        ("a dock worker")."""
        if self.place.get(i, i) < i:
            return self.place[i]
        start = i
        while (
            (j := self._next(start, -1)) is not None
            and self.tokens[j].kind in ("thing", "people")
            and j not in self.owner
        ):
            start = j
        return start

    def _apart(self, i: int) -> int | None:
        """Where the adjectives of the noun at i stand if things come between: "an old village woman"."""
        start = i
        while (j := self._next(start, -1)) is not None and self.tokens[j].kind == "thing":
            start = j
        place, noun = self.place.get(i), self.tokens[i].noun
        if noun is None or start == i or place is None or place > start:
            return None
        return None if self.policy.person_nouns or self.tokens[i].frame or self._is_beside_role(i) else start

    def _frame(self, i: int) -> str:
        if not self._is_beside_role(i):
            return self.tokens[i].frame
        joint = self.policy.person_nouns and "age" in self.people[self.owner[i]].attributes  # "a girl portrait"
        word = self.tokens[i].text in ("female", "male") and not joint and self._is_adjective(i)
        return "adjective" if word else "role"

    def _is_beside_role(self, i: int) -> bool:
        """'a woman cook', 'a male snow skier': the noun stands before what the person does."""
        if self.tokens[i].text in ("female", "male") and self._is_adjective(i):
            return True
        j = self._next(i)
        while j is not None and self.tokens[j].kind == "thing" and not self.tokens[i].possessive:
            j = self._next(j)
        noun = self.tokens[i].noun
        return (
            noun is not None
            and noun.role is None
            and not self.tokens[i].possessive
            and j is not None
            and self.tokens[j].kind == "people"
        )

    def _is_adjective(self, i: int) -> bool:
        """'a male portrait', 'male and female dancers', 'the boss is female': no "man" or "woman" stands there."""
        j = self._next(i)
        if j is not None and self._text(j) in ("and", "or", "&", "/"):
            k = self._next(j)
            if k is not None and self.tokens[k].text in ("female", "male"):
                return self._is_beside_role(k)
        while j is not None and self.tokens[j].kind == "word" and not self._text(j).endswith(("ing", "ed")):
            j = None if self._text(j) in STOP else self._next(j)
        return self._kind(j) in ("thing", "people") or self._text(self._next(i, -1)) in ("is", "are", "was", "were")

    def _who(self, person: int) -> str:
        return next((self.tokens[i].text for i, p in self.owner.items() if p == person), "person")

    def _named(self) -> Iterable[Named]:
        """People that a pronoun can mean: nouns, and the words for what someone does."""
        for i, token in enumerate(self.tokens):
            if i in self.owner and token.noun is not None:
                yield Named(i, bool(token.noun.gender), token.noun.plural)
            elif i in self.owner or (
                token.kind == "people" and i not in self.dropped and self._is_last_of_its_phrase(i)
            ):
                yield Named(i, False, token.text in GROUPS or token.text.endswith("s"))

    def _is_animals(self, i: int) -> bool:
        """Nobody is named, and an animal is: 'a mother bird and her chicks'."""
        nobody = all(j > i for j in self.owner) and all(t.kind != "people" for t in self.tokens[:i])
        return nobody and any(self.policy.lexicon.is_animal(base(t.text)) for t in self.tokens[:i])

    def _pronoun_role(self, i: int) -> Token:
        """Him, his and her are told apart by the word after them alone, which is the same for every candidate."""
        token, j = self.tokens[i], self._next(i)
        if token.text in NEUTRAL_PRONOUNS:
            return Token("pronoun", "", value=NEUTRAL_PRONOUNS[token.text])
        if token.value != "oblique":
            return Token("pronoun", "", value=token.value)
        owned = j is not None and self.tokens[j].kind not in ("punct", "pronoun") and self.tokens[j].text not in STOP
        return Token("pronoun", "", value="possessive" if owned else "object")

    def _hide_absence(self) -> None:
        """Give every person the attributes whose presence is hidden too; a role word becomes a person for it."""
        if not self.policy.absent:
            return
        if "gender" in self.policy.absent:
            self._move_to_roles()
        for i, token in enumerate(self.tokens):
            named = token.kind == "people" and token.text not in GROUPS and i not in self.dropped
            if named and self._is_last_of_its_phrase(i):
                self._person_at(i)
        for person in self.people:
            for attribute in self.policy.attributes:
                if attribute in self.policy.absent and not (attribute == "age" and person.minor):
                    person.attributes.setdefault(attribute, ABSENT)
        for i, person_index in self.owner.items():
            noun = self.tokens[i].noun
            if noun is not None and noun.role:  # a king says a gender, whatever is absent
                self.people[person_index].choices["gender"] = self.policy.values["gender"]

    def _move_to_roles(self) -> None:
        """'a woman teacher' becomes a teacher who is a woman, as 'a teacher' is one whose gender is not said."""
        for i in sorted(self.owner):
            token, j = self.tokens[i], self._next(i)
            plain = token.noun is not None and not token.noun.role and not token.noun.neutral_role
            if plain and j is not None and self.tokens[j].kind == "people" and not token.possessive:
                self.owner[j] = self.owner.pop(i)
                self._drop(i)

    def _marks(self) -> dict[int, int]:
        """One mark a set of alternatives, wherever it stands. InputError if two such name different real ones."""
        found: dict[int, int] = {}
        by_choices: dict[tuple[str, ...], int] = {}
        for i, token in enumerate(self.tokens):
            if token.kind != "mark":
                continue
            real, choices = token.value.split("|")[0], tuple(sorted(token.value.split("|")))
            if choices not in by_choices:
                self.people.append(Person({"mark": real}, choices={"mark": choices}))
                by_choices[choices] = len(self.people) - 1
            found[i] = by_choices[choices]
            if self.people[found[i]].attributes["mark"] != real:
                raise InputError(
                    f"{token.text} stands twice with different first words; use one, or other alternatives"
                )
        return found

    def _is_last_of_its_phrase(self, i: int) -> bool:
        after, before = self._next(i), self._next(i, -1)
        described = before is not None and before in self.owner and self.tokens[before].kind == "noun"
        return not described and (after is None or self.tokens[after].kind not in ("people", "noun"))

    def _shows(self, person: Person) -> bool:
        """Whether a slot before a role word ('old teacher') has anything to show."""
        return (
            (person.minor and not person.childlike)
            or person.skinned
            or person.sexed
            or any(a not in ("gender", "skin", "mark") or a in self.policy.absent for a in person.attributes)
        )
