"""The closed set of candidate prompts, checked for closure before it is used.

Paper section 4, algorithm 1: the cross product of the whole value space of every attribute the prompt mentions.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from obclip.core.errors import PrivacyError
from obclip.edge.oblivious.parse import Person, Slot, Template, parse
from obclip.edge.oblivious.policy import ATTRIBUTES, Policy
from obclip.edge.oblivious.text import fix_articles, normalise

MAX_CANDIDATES = 64
_PRONOUNS = {
    "subject": {"woman": "she", "man": "he"},
    "object": {"woman": "her", "man": "him"},
    "possessive": {"woman": "her", "man": "his"},
    "reflexive": {"woman": "herself", "man": "himself"},
}


@dataclass(frozen=True)
class CandidateSet:
    """prompts: sorted, unique, in canonical words; index: the real one's place, which never leaves the device.

    attributes: what is hidden, as the real prompt has it. public: what the set tells the cloud all the same.
    """

    prompts: tuple[str, ...]
    index: int
    attributes: dict[str, str]
    public: tuple[str, ...]


def candidate_set(prompt: str, policy: Policy) -> CandidateSet:
    """C(p): for every prompt of the returned set, this function returns the same prompts.

    InputError if the prompt is empty, over-long or has invisible characters. PrivacyError if a protected word cannot be
    placed, if the set would hold more than 64 prompts, or if it would not be closed.
    """
    template = parse(normalise(prompt), policy)
    result = _expand(template, policy)
    for candidate in result.prompts:
        if _expand(parse(normalise(candidate), policy), policy).prompts != result.prompts:
            raise PrivacyError("the prompt's candidates would not all lead to one set; use simpler words about people")
    return result


def check_negative(negative_prompt: str, policy: Policy) -> None:
    """PrivacyError if the negative prompt, which is sent as it is, says anything that the policy protects."""
    if not negative_prompt.strip():
        return
    template = parse(normalise(negative_prompt), policy)
    if any(person.attributes or person.minor for person in template.people):
        raise PrivacyError("the negative prompt is sent as it is and describes a person; take that out of it")


def _expand(template: Template, policy: Policy) -> CandidateSet:
    hidden = [(i, a) for i, person in enumerate(template.people) for a in ATTRIBUTES if a in person.attributes]
    size = math.prod(len(policy.values[a]) for _, a in hidden)
    if size > MAX_CANDIDATES:
        names = ", ".join(_label(i, a) for i, a in hidden)
        raise PrivacyError(
            f"hiding {names} takes {size} candidates, at most {MAX_CANDIDATES} are sent; say fewer of them"
        )
    real = _render(template, template.people, policy)
    prompts = set()
    for values in itertools.product(*(policy.values[a] for _, a in hidden)):
        people = [Person(dict(p.attributes), p.minor) for p in template.people]
        for (i, a), value in zip(hidden, values, strict=True):
            people[i].attributes[a] = value
        prompts.add(_render(template, people, policy))
    ordered = tuple(sorted(prompts))
    attributes = {_label(i, a): template.people[i].attributes[a] for i, a in hidden}
    return CandidateSet(ordered, ordered.index(real), attributes, _public(template, attributes))


def _label(person: int, attribute: str) -> str:
    return attribute if person == 0 else f"{attribute} of person {person + 1}"


def _public(template: Template, attributes: dict[str, str]) -> tuple[str, ...]:
    notes = []
    if not attributes:
        notes.append(
            "no protected attribute was found: the cloud would see the prompt as it is, so it is sent only if allowed"
        )
    if any(person.minor for person in template.people):
        notes.append("that the prompt is about a child is public; children and adults never hide each other")
    return tuple(notes)


def _render(template: Template, people: list[Person] | tuple[Person, ...], policy: Policy) -> str:
    pieces = []
    for piece in template.pieces:
        if isinstance(piece, str):
            pieces.append(piece)
        elif piece.kind == "tone":
            pieces.append(people[piece.person].attributes["skin"] + piece.token.frame)
        elif piece.kind == "pronoun":
            pieces.append(_PRONOUNS[piece.token.value][people[piece.person].attributes["gender"]])
        else:
            pieces.append(_noun_phrase(piece, people[piece.person], policy))
    return fix_articles("".join(pieces))


def _noun_phrase(slot: Slot, person: Person, policy: Policy) -> str:
    """[age] [ethnicity] noun, or a noun that says gender and age at once."""
    noun, gender, age = slot.token.noun, person.attributes.get("gender"), person.attributes.get("age")
    ethnicity = person.attributes.get("ethnicity")
    plural = noun is not None and noun.plural
    words = []
    if noun is not None and noun.role and gender:
        words = ["child" if person.minor else age, ethnicity, noun.role[0 if gender == "man" else 1]]
    else:
        joint = policy.person_nouns.get(f"{gender or 'any'}-{age}") if age else None
        if person.minor:
            joint = {"woman": "girl/girls", "man": "boy/boys", None: "child/children"}[gender]
        if joint is not None:
            words = [ethnicity, joint.split("/")[plural]]
        else:
            plain = {"woman": "woman/women", "man": "man/men", None: "" if slot.implicit else "person/people"}[gender]
            words = [age, ethnicity, plain.split("/")[plural] if plain else None]
        if noun is not None and noun.neutral_role:
            words.append(noun.neutral_role)
    text = " ".join(w for w in words if w)
    if slot.token.possessive:
        text += "'" if text.endswith("s") else "'s"
    return text
