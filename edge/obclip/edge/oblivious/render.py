"""Rendering: a template and people's attributes to a prompt in canonical words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from obclip.edge.oblivious.policy import ABSENT, Policy
from obclip.edge.oblivious.template import Person, Slot, Template
from obclip.edge.oblivious.text import fix_articles

_PRONOUNS = {
    "subject": {"woman": "she", "man": "he", ABSENT: "they"},
    "subject-is": {"woman": "she's", "man": "he's", ABSENT: "they're"},
    "subject-will": {"woman": "she'll", "man": "he'll", ABSENT: "they'll"},
    "subject-would": {"woman": "she'd", "man": "he'd", ABSENT: "they'd"},
    "object": {"woman": "her", "man": "him", ABSENT: "them"},
    "possessive": {"woman": "her", "man": "his", ABSENT: "their"},
    "reflexive": {"woman": "herself", "man": "himself", ABSENT: "themselves"},
}


_EMPTY = re.compile(r" ?,? ?[(\[{]\s*(?::[\d.]+)?\s*[)\]}]")  # brackets whose words went elsewhere


def render(template: Template, people: Sequence[Person], policy: Policy, marked: bool = False) -> str:
    """The prompt that says `people`'s attributes. marked: with the user's marks put back, their value first."""
    pieces = []
    for piece in template.pieces:
        if isinstance(piece, str):
            pieces.append(piece)
        elif piece.kind == "tone":
            pieces.append(people[piece.person].attributes["skin"] + piece.token.frame)
        elif piece.kind == "pronoun":
            pieces.append(_PRONOUNS[piece.token.value][people[piece.person].attributes["gender"]])
        elif piece.kind == "mark":
            pieces.append(_mark(people[piece.person], marked))
        else:
            pieces.append(_noun_phrase(piece, people[piece.person], policy))
    text, found = "".join(pieces), 1
    while found:
        text, found = _EMPTY.subn("", text)
    text = re.sub(r" *,(?: *,)+", ",", re.sub(" {2,}", " ", text).strip())
    return fix_articles(re.sub(r"^, *", "", text))


def skeleton(template: Template) -> tuple[object, ...]:
    """All that `render` reads of a template but its people's values: templates of one skeleton make one set."""
    pieces: list[object] = [""]
    for piece in template.pieces:
        if isinstance(piece, Slot):
            pieces += [_slot_key(piece), ""]
        else:
            pieces[-1] = str(pieces[-1]) + piece
    texts = [re.sub(r"\ban? ", "a ", p) if isinstance(p, str) else p for p in pieces]
    people = [
        (tuple(p.attributes), p.minor, p.skinned, p.sexed, p.childlike, tuple(p.choices.items()))
        for p in template.people
    ]
    return (*texts, *people)


def _slot_key(slot: Slot) -> tuple[object, ...]:
    token, noun = slot.token, slot.token.noun
    words = (noun.plural, noun.role, noun.neutral_role, noun.stage == "child", noun.childlike) if noun else ()
    kept = token.text if noun and noun.stage == "child" and not noun.gender else ""
    pronoun = token.value if slot.kind == "pronoun" else ""
    return slot.kind, slot.person, slot.implicit, token.possessive, words, kept, token.frame, pronoun


def _mark(person: Person, marked: bool) -> str:
    value = person.attributes["mark"]
    if not marked:
        return value
    return f"[[{'|'.join([value, *(c for c in person.choices['mark'] if c != value)])}]]"


def _noun_phrase(slot: Slot, person: Person, policy: Policy) -> str:
    """[skin] [age] [ethnicity] [others] noun, or a noun that says gender and age at once; of the two parts of "an old
    village woman" one."""
    adjectives, nouns = _words(slot, person, policy)
    words = adjectives if slot.kind == "adjectives" else nouns if slot.token.frame == "apart" else adjectives + nouns
    text = " ".join(w for w in words if w)
    if slot.token.frame == "name":
        text = f"a {text}"
    if slot.token.possessive and text and slot.kind == "noun":
        text += "'" if text.endswith("s") else "'s"
    return text


def _words(slot: Slot, person: Person, policy: Policy) -> tuple[list[str | None], list[str | None]]:
    """Adjectives and nouns."""
    noun, gender, age = slot.token.noun, person.attributes.get("gender"), person.attributes.get("age")
    tone = f"{person.attributes['skin']}-skinned" if person.skinned and person.attributes.get("skin") else None
    others = [*(person.attributes.get(a) for a in policy.attributes if a not in ("gender", "age", "skin"))]
    plural = noun is not None and noun.plural
    if noun is not None and noun.role and gender:
        said = "child" if not (noun.childlike or person.childlike) else None
        ages = [*others, said] if person.minor else [age, *others]
        return [tone, *ages], [noun.role[0 if gender == "man" else 1]]
    joint = policy.person_nouns.get(f"{gender or 'any'}-{age}") if age else None
    if person.minor and not (slot.implicit and person.childlike):
        joint = {"woman": "girl/girls", "man": "boy/boys"}.get(gender or "")
        if joint is None:
            kept = noun is not None and gender is None and slot.token.frame != "name" and noun.stage == "child"
            joint = f"{slot.token.text}/{slot.token.text}" if kept and not slot.token.possessive else "child/children"
    nouns = [_plain(slot, gender, plural, policy, person.sexed) if joint is None else joint.split("/")[plural]]
    if noun is not None and noun.neutral_role:
        nouns.append(noun.neutral_role)
    return [tone, age if joint is None else None, *others], nouns


def _plain(slot: Slot, gender: str | None, plural: bool, policy: Policy, sexed: bool) -> str | None:
    """The bare noun: a gender's, or "person", or none beside a role word."""
    frame, noun = slot.token.frame, slot.token.noun
    role = slot.implicit or frame in ("role", "adjective") or (noun is not None and noun.neutral_role)
    if gender and role:
        shown = not slot.implicit or "gender" in policy.absent or sexed
        word = (("female", "male") if frame == "adjective" else policy.beside_role)[gender == "man"]
        return {"man": "men", "woman": "women"}.get(word, word) if shown and plural else word if shown else None
    if gender:
        shown = not slot.implicit or "gender" in policy.absent
        return {"woman": "woman/women", "man": "man/men"}[gender].split("/")[plural] if shown else None
    if role:
        return None
    return "people" if plural else "person"
