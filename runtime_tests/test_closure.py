"""Closure, judged by a checker that knows nothing of the parser: `closure.py` has word tables of its own.

Word lists of the policies are read here to make prompts from, never to judge what comes out.
"""

from __future__ import annotations

import copy
import itertools
import tomllib
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from typing import Any

import pytest
from closure import (
    AGED,
    CHILDREN,
    ETHNIC,
    GENDERED,
    WORDS,
    byte_problems,
    listed,
    loose,
    meaning,
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
from obclip.edge.oblivious import CandidateSet, Options, Policy, candidate_set, load_policy, render
from obclip.edge.oblivious.candidates import _expand
from obclip.edge.oblivious.parse import parse
from obclip.edge.oblivious.text import normalise

POLICIES = {name: load_policy(name) for name in ("default", "emoji")}
DEFAULT, EMOJI = POLICIES["default"], POLICIES["emoji"]
SEEDED = {"derandomize": True, "database": None, "deadline": None}
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


# -- the checker itself -----------------------------------------------------------------------------------------


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


# -- over all the words -----------------------------------------------------------------------------------------


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
def test_captions_of_photographs():
    tally = Tally(PrivacyError, InputError)
    assert [p for caption in coco_captions()[::40] for p in caption_problems(caption, tally)] == []
    tally.check(0.9)


@needs_coco
@pytest.mark.slow
def test_all_captions_of_photographs():
    tally = Tally(PrivacyError, InputError)
    assert [p for caption in coco_captions() for p in caption_problems(caption, tally)] == []
    tally.check(0.95)


# -- options ----------------------------------------------------------------------------------------------------


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
