"""The closed set of candidate prompts, checked for closure before it is used.

Paper section 4, algorithm 1: the cross product of the whole value space of every attribute the prompt mentions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from obclip.core.errors import InputError, PrivacyError
from obclip.edge.oblivious.marks import protect
from obclip.edge.oblivious.names import names_by_writing
from obclip.edge.oblivious.parse import Mention, Person, Template, parse
from obclip.edge.oblivious.policy import Policy
from obclip.edge.oblivious.render import render, skeleton
from obclip.edge.oblivious.text import normalise

MAX_CANDIDATES = 64


@dataclass(frozen=True)
class Options:
    """What a user asks for beside the policy.

    allow: spans let through as they are. protect: marks, "Alice|Bob|Carol", put on every such word of the prompt; the
    first is the real one. tie: the values of several people move together. pad: send exactly this many prompts. hide:
    attributes hidden even where the prompt does not say them.
    """

    allow: tuple[str, ...] = ()
    protect: tuple[str, ...] = ()
    tie: bool = False
    pad: int | None = None
    hide: tuple[str, ...] = ()


@dataclass(frozen=True)
class CandidateSet:
    """prompts: sorted, unique, in canonical words; index: the real one's place, which never leaves the device.

    attributes: what is hidden, as the real prompt has it. public: what the set tells the cloud all the same. values:
    for each prompt, what it says of each hidden attribute ({} for padding). remainder: what all prompts share, "_"
    where they differ. mentions: the words in which the prompt says something about people. unsent: words that the
    policy has no value for, which are left out of all prompts. marked: prompts, with the user's marks.
    """

    prompts: tuple[str, ...]
    index: int
    attributes: dict[str, str]
    public: tuple[str, ...]
    values: tuple[dict[str, str], ...] = ()
    remainder: str = ""
    mentions: tuple[Mention, ...] = ()
    unsent: tuple[str, ...] = ()
    marked: tuple[str, ...] = field(default=(), repr=False)


def candidate_set(prompt: str, policy: Policy, options: Options | None = None) -> CandidateSet:
    """C(p): for every prompt of the returned set (`marked`, where marks are used), this function returns the same set.

    InputError if the prompt is empty, over-long or has invisible characters, or an option does not fit it. PrivacyError
    if a protected word cannot be placed, a word may be a name, the set would hold more than 64 prompts (or than `pad`),
    or it would not be closed.
    """
    options = options or Options()
    policy = policy.hiding(options.hide)
    allowed = tuple(normalise(span) for span in options.allow)
    text = protect(prompt, options.protect)
    template = parse(normalise(text), policy, allowed, names_by_writing(text, policy))
    result = _expand(template, policy, options)
    wanted = skeleton(template)
    for candidate, values in zip(result.marked, result.values, strict=True):
        again = parse(normalise(candidate), policy, allowed, names_by_writing(candidate, policy))
        same = skeleton(again) == wanted and _said(again.people, policy) == values
        if not same and _expand(again, policy, options).prompts != result.prompts:
            raise PrivacyError("the prompt's candidates would not all lead to one set; use simpler words about people")
    return _padded(result, options.pad)


def check_negative(negative_prompt: str, policy: Policy, options: Options | None = None) -> None:
    """PrivacyError if the negative prompt, which is sent as it is, says anything that the policy protects."""
    if not negative_prompt.strip():
        return
    allowed = tuple(normalise(span) for span in options.allow) if options else ()
    template = parse(normalise(negative_prompt), policy, allowed, names_by_writing(negative_prompt, policy))
    if template.mentions or any(person.attributes or person.minor for person in template.people):
        said = ", ".join(repr(m.text) for m in template.mentions) or "a marked word"
        raise PrivacyError(f"the negative prompt is sent as it is and describes a person ({said}); take that out of it")


def _expand(template: Template, policy: Policy, options: Options) -> CandidateSet:
    people = template.people
    hidden = _hidden(people, policy)
    choices = [people[i].choices.get(a) or policy.choices(a) for i, a in hidden]
    labels = [_label(people, i, a) for i, a in hidden]
    size = _size(hidden, choices, options.tie)
    if size > MAX_CANDIDATES:
        raise PrivacyError(
            f"hiding {', '.join(labels)} takes {size} candidates, at most {MAX_CANDIDATES} are sent; "
            "say fewer of them, or move the people's values together with --tie"
        )
    real_values = [people[i].attributes[a] for i, a in hidden]
    found: dict[str, tuple[str, dict[str, str]]] = {}
    marks = any("mark" in person.attributes for person in people)
    for values in _combinations(hidden, choices, real_values, options.tie):
        changed = [replace(p, attributes=dict(p.attributes)) for p in people]
        for (i, a), value in zip(hidden, values, strict=True):
            changed[i].attributes[a] = value
        said = dict(zip(labels, values, strict=True))
        text = render(template, changed, policy)
        found.setdefault(text, (render(template, changed, policy, marked=True) if marks else text, said))
    real = render(template, people, policy)
    prompts = tuple(sorted(found))
    attributes = dict(zip(labels, real_values, strict=True))
    return CandidateSet(
        prompts,
        prompts.index(real),
        attributes,
        _public(template, attributes, options),
        tuple(found[p][1] for p in prompts),
        template.remainder,
        template.mentions,
        template.unsent,
        tuple(found[p][0] for p in prompts),
    )


def _hidden(people: tuple[Person, ...], policy: Policy) -> list[tuple[int, str]]:
    order = (*policy.attributes, "mark")
    return [(i, a) for i, person in enumerate(people) for a in order if a in person.attributes]


def _said(people: tuple[Person, ...], policy: Policy) -> dict[str, str]:
    return {_label(people, i, a): people[i].attributes[a] for i, a in _hidden(people, policy)}


def _size(hidden: list[tuple[int, str]], choices: list[tuple[str, ...]], tie: bool) -> int:
    if not tie:
        return math.prod(len(c) for c in choices)
    return math.prod(len(c) for c in {(a, c): c for (_, a), c in zip(hidden, choices, strict=True)}.values())


def _combinations(
    hidden: list[tuple[int, str]], choices: list[tuple[str, ...]], real: list[str], tie: bool
) -> Iterator[tuple[str, ...]]:
    """Every combination of values; tied, every common rotation of the real ones, which is the same set from each."""
    if not tie:
        yield from itertools.product(*choices)
        return
    kinds = [(a, c) for (_, a), c in zip(hidden, choices, strict=True)]
    distinct = list(dict.fromkeys(kinds))
    for shifts in itertools.product(*(range(len(c)) for _, c in distinct)):
        by_kind = dict(zip(distinct, shifts, strict=True))
        yield tuple(
            c[(c.index(value) + by_kind[kind]) % len(c)] for kind, c, value in zip(kinds, choices, real, strict=True)
        )


def _label(people: tuple[Person, ...], person: int, attribute: str) -> str:
    if attribute == "mark":
        return f"mark {1 + sum('mark' in p.attributes for p in people[:person])}"
    return attribute if person == 0 else f"{attribute} of person {person + 1}"


def _public(template: Template, attributes: dict[str, str], options: Options) -> tuple[str, ...]:
    notes = []
    if not attributes:
        notes.append(
            "nothing differs between candidates: the cloud would read all that is sent, and it goes only if allowed"
        )
    if any(person.minor for person in template.people):
        notes.append("that the prompt is about a child is public; children and adults never hide each other")
    if options.tie and sum(bool(p.attributes) for p in template.people) > 1:
        notes.append("tied: whether the people share a value, and how their values differ, is public")
    if options.allow:
        notes.append(f"allowed to be seen: {', '.join(options.allow)}")
    return tuple(notes)


def _padded(found: CandidateSet, pad: int | None) -> CandidateSet:
    """Add copies that end in commas, which the cloud can tell for what they are: only size and count are hidden."""
    if pad is None:
        return found
    if not 1 <= pad <= MAX_CANDIDATES:
        raise InputError(f"pad is {pad}; it must be between 1 and {MAX_CANDIDATES}")
    if len(found.prompts) > pad:
        raise PrivacyError(f"the prompt needs {len(found.prompts)} candidates, more than the {pad} to pad to")
    copies = (p + "," * n for n in itertools.count(1) for p in found.prompts)
    said = dict(zip(found.prompts, found.values, strict=True))
    prompts = tuple(sorted((*found.prompts, *itertools.islice(copies, pad - len(found.prompts)))))
    return CandidateSet(
        prompts,
        prompts.index(found.prompts[found.index]),
        found.attributes,
        (*found.public, f"padded to {pad} prompts: sizes say nothing, but the cloud can tell padding by its commas"),
        tuple(said.get(p, {}) for p in prompts),
        found.remainder,
        found.mentions,
        found.unsent,
        found.marked,
    )
