"""Closure, judged by a checker that knows nothing of the parser: `closure.py` has word tables of its own.

Word lists of the policies are read here to make prompts from, never to judge what comes out.
"""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Any

import pytest
from closure import (
    AGED,
    CHILDREN,
    ETHNIC,
    GENDERED,
    byte_problems,
    listed,
    loose,
    problems,
    request_digest,
    spellings,
    synonyms,
    words,
)
from data import coco_captions, needs_coco
from hypothesis import given, settings
from hypothesis import strategies as st
from tally import Tally

from obclip.core.errors import InputError, ObclipError, PrivacyError
from obclip.edge.oblivious import Policy, load_policy

POLICIES = {name: load_policy(name) for name in ("default", "emoji")}
DEFAULT, EMOJI = POLICIES["default"], POLICIES["emoji"]
SEEDED = {"derandomize": True, "database": None}
FOLDER = resources.files("obclip.edge")
ENGLISH: dict[str, Any] = tomllib.loads(FOLDER.joinpath("policies", "english.toml").read_text("utf8"))


def all_forms() -> list[tuple[str, str]]:
    """(group, form) of every noun: groups are "woman-old" and such, or "role"."""
    found = [(group, form) for group, nouns in ENGLISH["nouns"].items() for noun in nouns for form in noun.split("/")]
    roles = ENGLISH["roles"]
    found += [("role", form) for pair in roles["pairs"] for noun in pair for form in noun.split("/")]
    return found + [("role", word) for word in (*roles["singles"], *roles["alias"])]


def all_adjectives() -> list[str]:
    groups = (ENGLISH["age"], ENGLISH["ethnicity"], ENGLISH["ethnicity_gender"], ENGLISH["skin_beside"])
    nations = [
        line.rsplit(" ", 1)[0] for line in FOLDER.joinpath("lexicon", "nations.txt").read_text("utf8").split("\n")
    ]
    skinned = [f"{tone}-skinned" for tones in ENGLISH["skin"].values() for tone in tones]
    said = [w for group in groups for several in group.values() for w in several]
    return list(dict.fromkeys([*said, *filter(None, nations), *skinned]))


NOUNS, ADJECTIVES = all_forms(), all_adjectives()
TONES = [tone for tones in ENGLISH["skin"].values() for tone in tones]
COMMON = ["woman", "man", "girl", "boy", "women", "men", "person", "people", "teacher", "doctors", "couple", "king"]


def wrong(prompt: str, policy: Policy, tally: Tally, most: int = 4, public: frozenset[str] = frozenset()) -> list[str]:
    """What the checker and the bytes say against the set of `prompt`; nothing where it is refused.

    tally: counts those that are not. most: candidates whose bytes are compared. public: words that may stay.
    """
    found = tally.candidates(prompt, policy)
    if found is None:
        return []
    said = problems(found.prompts, mixed_ages=policy is EMOJI)
    said += byte_problems(found.prompts, policy, most=most)
    if said_openly := loose(found.remainder, GENDERED, ETHNIC, AGED - CHILDREN) - public:
        said.append(f"in the open: {sorted(said_openly)}")
    return [f"{prompt!r} -> {found.prompts[:4]}: {problem}" for problem in said]


@pytest.mark.parametrize("policy", [DEFAULT, EMOJI], ids=["default", "emoji"])
def test_every_form_of_every_noun(policy: Policy):
    tally = Tally()
    assert [p for _, form in NOUNS for p in wrong(f"a {form}", policy, tally)] == []
    tally.check(0.95)


def test_no_noun_with_a_gender_stands_alone():
    """A set of one would show it; a refusal does not."""
    tally = Tally()
    found = {
        form: tally.candidates(f"a photo of the {form}", DEFAULT)
        for group, form in NOUNS if not group.startswith("any")
    }  # fmt: skip
    assert [form for form, one in found.items() if one is not None and len(one.prompts) == 1] == []
    tally.check(0.95)


def test_every_adjective_beside_a_person():
    tally = Tally()
    assert [p for word in ADJECTIVES for p in wrong(f"a {word} person", DEFAULT, tally)] == []
    tally.check(0.95)


def test_no_adjective_stays_beside_a_person():
    """Whatever an adjective says, candidates either all differ in it or all lack it; public are children, who stay."""
    children = {*ENGLISH["age"]["child"], "adult", "grown"}
    tally = Tally()
    found = {word: tally.candidates(f"a {word} person", DEFAULT) for word in ADJECTIVES if word not in children}
    assert [word for word, one in found.items() if one is not None and word in one.remainder] == []
    tally.check(0.95)


ages = st.one_of(
    st.integers(1, 119).map(lambda n: f", {n} years old"), st.integers(1, 99).map(lambda n: f", aged {n}"),
    st.sampled_from([", sixty-five years old", " in his late thirties", " in her 40s", ", forty-something"]),
)  # fmt: skip
pronouns = st.sampled_from(
    [" and his dog", " holding her hat", " looking at him", " proud of himself", ", she smiles",
     " with a friend of hers",     " and herself", " while he's asleep"]
)  # fmt: skip
skins = st.sampled_from(TONES).flatmap(
    lambda t: st.sampled_from([f" with {t} skin", f" with a {t} skin tone", f", {t} complexion"])
)
tails = st.one_of(st.just(""), st.just(" in an old castle"), st.just(" with black hair"), ages, pronouns, skins)
determiners = st.sampled_from(["a", "the", "two", "an", "some", "A", ""])
adjectives = st.one_of(
    st.just(""), st.just(""), st.sampled_from(ADJECTIVES), st.sampled_from(["tall", "30-year-old", "five year old"])
)
nouns = st.one_of(st.sampled_from(COMMON), st.sampled_from([form for _, form in NOUNS]))
people = st.tuples(determiners, adjectives, adjectives, nouns, st.sampled_from(["", "", "", "'s"])).map(
    lambda parts: " ".join(p for p in parts[:4] if p) + parts[4]
)
ONE = ["{a}{t}", "a photo of {a}{t}", "portrait, {a}{t}, white background", "{a} hat{t}"]
TWO = ["{a}{t} and {b}", "{a} with {b}{t}", "{a} kissing {b}{t}, oil painting", "{a}, {b}{t}", "{a} or {b}", "{a}/{b}"]


def test_one_person():
    tally = Tally(PrivacyError, InputError)

    @settings(max_examples=200, **SEEDED)
    @given(policy=st.sampled_from(sorted(POLICIES)), frame=st.sampled_from(ONE), a=people, t=tails)
    def check(policy: str, frame: str, a: str, t: str) -> None:
        assert wrong(frame.format(a=a, t=t), POLICIES[policy], tally) == []

    check()
    tally.check(0.5)


def test_two_people():
    tally = Tally(PrivacyError, InputError)

    @settings(max_examples=200, **SEEDED)
    @given(policy=st.sampled_from(sorted(POLICIES)), frame=st.sampled_from(TWO), a=people, b=people, t=tails)
    def check(policy: str, frame: str, a: str, b: str, t: str) -> None:
        assert wrong(frame.format(a=a, b=b, t=t), POLICIES[policy], tally, most=3) == []

    check()
    tally.check(0.3)


def test_spelling_does_not_matter():
    """Case, spaces, articles and quotes of a candidate lead to the same bytes; so do synonyms."""
    tally = Tally(ObclipError)

    @settings(max_examples=60, **SEEDED)
    @given(policy=st.sampled_from(sorted(POLICIES)), frame=st.sampled_from(ONE + TWO), a=people, b=people, t=tails)
    def check(policy: str, frame: str, a: str, b: str, t: str) -> None:
        found = tally.candidates(frame.format(a=a, b=b, t=t), POLICIES[policy])
        if found is None:
            return
        candidate = found.prompts[-1]
        sent = request_digest(candidate, POLICIES[policy])
        assert [other for other in spellings(candidate) if request_digest(other, POLICIES[policy]) != sent] == []
        assert {request_digest(other, POLICIES[policy]) for other in synonyms(candidate)} <= {sent, "PrivacyError"}

    check()
    tally.check(0.4)


TITLES = [
    "the mr's hat", "the ms's hat", "a mrs and her dog", "the mister's house", "madam's hat", "Ms's hat",
    "a five year old king", "a child king", "a schoolgirl and a five year old princess", "a king, 3 years old",
]  # fmt: skip
CHILD_ROLES = ["a child king", "a baby king", "a toddler princess", "a child actress", "a boy king"]


@pytest.mark.parametrize("prompt", TITLES)
def test_titles_and_children_in_roles_are_closed_or_refused(prompt: str):
    assert wrong(prompt, DEFAULT, Tally(), most=64) == []


@pytest.mark.parametrize("prompt", CHILD_ROLES)
def test_a_child_in_a_role_stays_a_child(prompt: str):
    found = Tally().candidates(prompt, DEFAULT)
    assert found is None or all(loose(p, CHILDREN) for p in found.prompts)


# -- captions ---------------------------------------------------------------------------------------------------

ANIMALS = listed(
    "alpaca animal bear bears bird birds bull bulls calf cat cats chick chicks cow cows deer dog dogs duck ducks "
    "duckling elephant elephants foal giraffe giraffes goat goats goose horse horses kitten lamb lambs lion lions "
    "monkey ostrich panda parrot peacock pig polar pony puppy rhino seagull seal sheep swan tiger zebra zebras"
)
WHO = listed(  # who may be meant by a pronoun, animal or no
    "catcher chef couple doctor friend friends passengers person player players rider riders skateboarder skier "
    "skiers snowboarder someone surfer teacher umpire"
)


def caption_problems(caption: str, tally: Tally) -> list[str]:
    """Pronouns and mothers among animals are about nobody; nor are Asian countries, man hole covers and snow men."""
    said = set(words(caption.lower()))
    public = ETHNIC | (listed("man men") if said & {"hole", "snow"} else frozenset())
    if said & ANIMALS:
        public |= AGED if said & WHO else AGED | GENDERED
    return wrong(caption, DEFAULT, tally, public=public)


BESIDE_ANIMALS = [
    "a teacher with a dog holding his hat", "a doctor and a cat in her arms", "a rider on a horse waves her hand",
    "a chef holds a duck, he smiles", "someone with a cat in her lap", "a skier flies and crosses his skis",
    "a baseball player with a bat, a ball behind him", "a friend with a dog in her lap",
]  # fmt: skip
WITHOUT_NOUN = [
    "a young playing tennis",
    "the young playing tennis",
    "an elderly sitting on a bench",
    "an asian eating",
]
GLUED = ["a mother2b", "a man4k", "3dwoman portrait", "woman_2b", "1girl, solo", "a wife0A", "an Àactress0x"]
QUOTED = [
    "'a photo of him'", "a man and 'his' dog", "a sign that says 'she'", "the 'elderly' chef", "the 'asian' chef",
    "'young' people", "she'll smile", "a man, he'd smile", "a portrait of a he’", "himself`",
]  # fmt: skip


@pytest.mark.parametrize("prompt", BESIDE_ANIMALS + WITHOUT_NOUN + GLUED + QUOTED)
def test_nothing_beside_a_word_lets_it_through(prompt: str):
    assert wrong(prompt, DEFAULT, Tally(PrivacyError, InputError)) == []


@pytest.mark.parametrize(
    ("prompts", "least"),
    [(TITLES, 0.6), (CHILD_ROLES, 1.0), (BESIDE_ANIMALS + WITHOUT_NOUN, 1.0), (GLUED, 0.4), (QUOTED, 0.6)],
    ids=["titles", "children", "beside", "glued", "quoted"],
)
def test_most_of_what_may_be_refused_is_not(prompts: list[str], least: float):
    tally = Tally()
    for prompt in prompts:
        tally.candidates(prompt, DEFAULT)
    tally.check(least)


@needs_coco
@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_captions_of_photographs(every: int):
    tally = Tally(PrivacyError, InputError)
    assert [p for caption in coco_captions()[::every] for p in caption_problems(caption, tally)] == []
    tally.check(0.95)
