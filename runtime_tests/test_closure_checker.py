"""The checker of `closure.py` itself: it sees what is wrong in a set, and what is wrong in the tables of a policy."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from closure import (
    AGED,
    CHILDREN,
    ETHNIC,
    GENDERED,
    WORDS,
    loose,
    meaning,
    problems,
)

from obclip.core.errors import ObclipError
from obclip.edge.oblivious import CandidateSet, Options, Policy, load_policy, render
from obclip.edge.oblivious.candidates import _expand
from obclip.edge.oblivious.parse import parse
from obclip.edge.oblivious.text import normalise

DEFAULT, EMOJI = load_policy("default"), load_policy("emoji")


@pytest.mark.parametrize(
    ("prompts", "reason"),
    [
        (["a woman", "a man"], "not sorted"),
        (["a man", "a man"], "not sorted"),
        (["a man  walks", "a woman walks"], "spaces"),
        (["a man in a hat", "a woman in a cap"], "unknown words change"),
        (["a man", "a woman", "a young man"], "cross product"),
        (["a young man", "an old woman"], "two attributes always change together"),
        (["a man and his dog", "a man and her dog"], "cross product|not sorted|two values"),
        (["a man and her dog", "a woman and his dog"], "two values of gender"),
        (["a man looks at him", "a woman looks at his"], "more than protected"),
        (["a king", "a princess"], "more than protected"),
        (["a man", "two women"], "unknown words change"),
        (["a man", "a women"], "one and many"),
        (["an old man", "a old woman"], "article"),
        (["a middle-aged girl", "a old girl", "a young girl"], "article"),
        (["a child", "a young person", "an old person"], "hide each other"),
        (["an old boy", "an old girl", "a young boy", "a young girl"], "a child and an adult in one place"),
        (["a boy", "a woman"], "hide each other|change together"),
        (["a old man", "a young man"], "not every value of age"),
        (["a man with dark skin", "a man with light skin"], "not every value of skin"),
        (["a man with dark skin", "a woman with light skin"], "change together"),
        (["a castle", "a house", "a tower"], "nothing protected"),
    ],
)
def test_the_checker_sees_what_is_wrong(prompts: list[str], reason: str):
    assert any(part in problem for part in reason.split("|") for problem in problems(prompts))


@pytest.mark.parametrize(
    "prompts",
    [
        ["a castle"],
        ["a man and his dog", "a woman and her dog"],
        [f"a {a} and a {b}" for a, b in itertools.product(("man", "woman"), repeat=2)],
        [f"{a} {g} in an old castle" for a in ("a middle-aged", "a young", "an old") for g in ("man", "woman")],
        ["an abbess prays", "an abbot prays"],
        ["boys' shoes", "girls' shoes"],
        ["a man sees himself", "a woman sees herself"],
    ],
)
def test_the_checker_lets_closed_sets_pass(prompts: list[str]):
    assert problems(sorted(prompts)) == []


# -- the check fails where a table is wrong ----------------------------------------------------------------------

SENTENCES = [
    "a lady", "a gentleman", "two gentlemen", "the lady's hat", "a girl on a swing", "a boy and his dog", "a king",
    "a man and his dog", "a woman looks at herself", "an old man", "a young woman", "an elderly man", "a guy",
    "an asian woman", "a chinese man", "a man with dark skin", "a woman with medium skin", "the ladies' shoes",
    "a grandmother",
]  # fmt: skip
CHILD_SENTENCES = ["a 15-year-old student", "a boy", "a schoolgirl", "a 9-year-old girl"]


def expand(prompt: str, policy: Policy) -> CandidateSet:
    """The set without its own check, which would refuse what is to be seen here."""
    return _expand(parse(normalise(prompt), policy), policy, Options())


def findings(policy: Policy) -> list[str]:
    """What the independent check says against sentences whose words it knows itself; a policy for photographs."""
    found = []
    for prompt in (*SENTENCES, *CHILD_SENTENCES):
        try:
            result = expand(prompt, policy)
            found += [f"{prompt}: {p}" for p in problems(result.prompts)]
            found += [
                f"{prompt}: not closed at {p!r}" for p in result.prompts if expand(p, policy).prompts != result.prompts
            ]
        except (ObclipError, ValueError) as error:
            found.append(f"{prompt}: refused, {error}")
            continue
        if open_words := loose(result.remainder, GENDERED, AGED, ETHNIC, frozenset({"old"})):
            found.append(f"{prompt}: in the open, {sorted(open_words)}")
        said = {(a, v) for a, v in meaning(prompt) if v != "child"}
        if said != set(result.attributes.items()):
            found.append(f"{prompt}: read as {result.attributes}, says {sorted(said)}")
        child = prompt in CHILD_SENTENCES or ("age", "child") in meaning(prompt)
        if child != all(loose(p, CHILDREN) for p in result.prompts):
            found.append(f"{prompt}: {'no' if child else 'a'} child in {result.prompts}")
    return found


def broken(policy: Policy, change: Callable[[dict[str, Any]], None]) -> Policy:
    english = copy.deepcopy(policy.english)
    change(english)
    return replace(policy, english=english)


def moved(word: str, old: str, new: str | None) -> Callable[[dict[str, Any]], None]:
    def change(english: dict[str, Any]) -> None:
        english["nouns"][old].remove(word)
        if new:
            english["nouns"][new].append(word)

    return change


def lopsided(english: dict[str, Any]) -> None:
    pairs = english["roles"]["pairs"]
    pairs[pairs.index(["king/kings", "queen/queens"])] = ["king/kings", "duchess/duchesses"]


def without(section: str, value: str, word: str) -> Callable[[dict[str, Any]], None]:
    return lambda english: english[section][value].remove(word)


def renamed(section: str, word: str, old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def change(english: dict[str, Any]) -> None:
        english[section][old].remove(word)
        english[section][new].append(word)

    return change


MUTATIONS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a lady is a man": (moved("lady/ladies", "woman-any", "man-any"), "read as"),
    "no gentleman": (moved("gentleman/gentlemen", "man-any", None), "gentleman: |gentlemen: "),
    "a boy is an adult": (moved("boy/boys", "man-child", "man-any"), "child"),
    "a girl is a grandmother": (moved("girl/girls", "woman-child", "woman-old"), "child|read as"),
    "a king beside a duchess": (lopsided, "more than protected words|not closed"),
    "old says nothing": (without("age", "old", "old"), "not closed|open"),
    "elderly is young": (
        renamed("age", "elderly", "old", "young"),
        "read as",
    ),
    "medium is no tone": (without("skin", "medium", "medium"), "not closed|refused"),
    "dark is light": (
        renamed("skin", "dark", "dark", "light"),
        "not closed|read as",
    ),
    "adults at ten": (lambda e: e["years"].update(young=10), "15-year-old"),
    "young woman is a phrase": (lambda e: e["context"]["phrases"].append("young woman"), "in the open|not closed"),
    "grandmothers of no age": (moved("grandmother/grandmothers", "woman-old", "woman-any"), "read as"),
}


def test_nothing_is_found_in_the_tables_as_they_are():
    assert findings(DEFAULT) == []
    assert findings(broken(DEFAULT, lambda english: None)) == []


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_table_is_found(name: str):
    change, expected = MUTATIONS[name]
    found = findings(broken(DEFAULT, change))
    assert any(part in problem for part in expected.split("|") for problem in found), found


def test_a_wrong_ethnicity_is_found():
    policy = replace(DEFAULT)
    policy.__dict__["adjectives"] = {w: v for w, v in DEFAULT.adjectives.items() if w != "asian"}
    assert any("an asian woman: " in problem for problem in findings(policy))


def test_a_value_too_few_is_found():
    policy = replace(DEFAULT, values={**DEFAULT.values, "ethnicity": DEFAULT.values["ethnicity"][:4]})
    assert any("not every value of ethnicity" in problem for problem in findings(policy))


def test_swapped_pronouns_are_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(render._PRONOUNS, "possessive", {"woman": "his", "man": "her"})
    assert any("two values of gender" in problem for problem in findings(DEFAULT))


def test_a_pronoun_of_another_case_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(render._PRONOUNS, "reflexive", {"woman": "herself", "man": "him"})
    assert any("more than protected words" in problem for problem in findings(DEFAULT))


def test_girls_and_boys_of_one_form_are_found():
    policy = replace(EMOJI, person_nouns={**EMOJI.person_nouns, "woman-child": "boy/boys"})
    assert any("cross product" in p for p in problems(expand("a girl", policy).prompts, mixed_ages=True))


def test_the_checker_knows_words_that_the_policies_show():
    """Should a policy be given other canonical words, the checker has to learn them too."""
    shown = [v for policy in (DEFAULT, EMOJI) for values in policy.values.values() for v in values]
    assert [v for v in shown if v not in WORDS] == []
