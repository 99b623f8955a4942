"""Closure of sets made with options and marks, and of what is written around a word, by the checker of `closure.py`."""

from __future__ import annotations

import pytest
from closure import (
    GENDERED,
    byte_problems,
    loose,
    problems,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tally import Tally

from obclip.core.errors import InputError, PrivacyError
from obclip.edge.oblivious import CandidateSet, Options, Policy, candidate_set, load_policy

DEFAULT, EMOJI = load_policy("default"), load_policy("emoji")
SEEDED = {"derandomize": True, "database": None}


def option_problems(found: CandidateSet, policy: Policy, options: Options, *, tied: bool = False) -> list[str]:
    said = problems(found.prompts, mixed_ages=policy is EMOJI, tied=tied, marks=found.marked != found.prompts)
    return said + byte_problems(found.prompts, policy, options, sources=found.marked)


@pytest.mark.parametrize("policy", [DEFAULT, EMOJI], ids=["default", "emoji"])
@pytest.mark.parametrize(
    ("prompt", "n"),
    [("a man and a woman", 2), ("a young man, a young woman and an old woman", 6), ("two kings and a queen's dog", 2)],
)
def test_tied_people_are_closed(policy: Policy, prompt: str, n: int):
    options = Options(tie=True)
    found = candidate_set(prompt, policy, options)
    assert option_problems(found, policy, options, tied=True) == []
    assert len(found.prompts) == n


@pytest.mark.parametrize(
    ("prompt", "hide", "n"),
    [
        ("a teacher", ("gender",), 3), ("two men in a park", ("gender",), 3), ("a king", ("gender",), 2),
        ("a man with his dog", ("age",), 8), ("an old woman doctor", ("gender", "age"), 12),
        ("a man", ("ethnicity",), 12),
        ("a teacher and an old cook", ("age",), 16), ("a doctor and his dog", ("gender",), 3),
        ("a girl with a dog", ("age",), 2), ("the teacher's hat", ("gender",), 3), ("a castle", ("gender", "age"), 1),
    ],
)  # fmt: skip
def test_hidden_absence_is_closed(prompt: str, hide: tuple[str, ...], n: int):
    options = Options(hide=hide)
    found = candidate_set(prompt, DEFAULT, options)
    assert option_problems(found, DEFAULT, options) == []
    assert len(found.prompts) == n


MARKED = [
    ("[[Alice|Bob|Carol]] and her dog", 6), ("[[Alice|Bob]] meets [[Paris|Rome|Oslo]] in [[Paris|Rome|Oslo]]", 6),
    ("a man named [[Tom Jones|Bob]]", 4), ("a [[red|blue]] hat on an old woman", 12), ("a [[apple|pear]] by a man", 4),
    ("[[İstanbul|Straße]] in the fog", 2), ("[[O’Neil|Bob]] and [[A  B|C]]", 4),
]  # fmt: skip


@pytest.mark.parametrize(("prompt", "n"), MARKED)
def test_marks_are_closed(prompt: str, n: int):
    found = candidate_set(prompt, DEFAULT)
    assert option_problems(found, DEFAULT, Options()) == []
    assert len(found.prompts) == len(found.marked) == n
    assert not any("[[" in sent or "|" in sent for sent in found.prompts)


def test_protect_marks_every_occurrence():
    found = candidate_set("Alice and alice's dog, a man", DEFAULT, Options(protect=("Alice|Bob",)))
    assert option_problems(found, DEFAULT, Options()) == []
    assert len(found.prompts) == 4
    assert {p.count("alice") for p in found.prompts} == {0, 2}


@pytest.mark.parametrize("pad", [2, 3, 10, 64])
@pytest.mark.parametrize("prompt", ["a man", "a castle", "a woman, smiling,"])
def test_padding_gives_exactly_so_many_and_the_same_from_each(prompt: str, pad: int):
    options = Options(pad=pad)
    found = candidate_set(prompt, DEFAULT, options)
    assert len(set(found.prompts)) == pad
    assert list(found.prompts) == sorted(found.prompts)
    assert byte_problems(found.prompts, DEFAULT, options, sources=candidate_set(prompt, DEFAULT).prompts) == []


def test_a_set_too_big_to_pad_is_refused():
    with pytest.raises(PrivacyError):
        candidate_set("a young man", DEFAULT, Options(pad=5))


@pytest.mark.parametrize(
    ("prompt", "span", "n"),
    [
        ("mr bean and a man", "mr bean", 2), ("Taylor Swift and an old man", "Taylor Swift", 6),
        ("a woman reads the old man and the sea", "The Old Man and the Sea", 2),
    ],
)  # fmt: skip
def test_what_is_allowed_stays_and_the_rest_is_closed(prompt: str, span: str, n: int):
    options = Options(allow=(span,))
    found = candidate_set(prompt, DEFAULT, options)
    assert option_problems(found, DEFAULT, options) == []
    assert len(found.prompts) == n
    assert all(span.lower() in p for p in found.prompts)


# -- what is written around a word ------------------------------------------------------------------------------

around = st.one_of(
    st.text(st.sampled_from(" .,;:!?-_/\\'\"()[]{}*#@+&|~<>=^%$0123456789"), max_size=4),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=2),
    st.sampled_from([" ", ", ", " and a "]),
)


def test_nothing_written_around_a_word_lets_it_through():
    tally = Tally(PrivacyError, InputError)
    pieces = st.lists(st.tuples(around, st.sampled_from(sorted(GENDERED))), min_size=1, max_size=3)

    @settings(max_examples=400, **SEEDED)
    @given(parts=pieces, end=around)
    def check(parts: list[tuple[str, str]], end: str) -> None:
        prompt = "a " + "".join(before + word for before, word in parts) + end
        found = tally.candidates(prompt, DEFAULT)
        if found is None:
            return
        assert loose(found.remainder) == set()
        assert problems(found.prompts, marks="[[" in prompt) == []
        assert byte_problems(found.prompts, DEFAULT, most=4, sources=found.marked) == []

    check()
    tally.check(0.3)
