"""Candidate sets: what they hold, that they are closed to the byte, and what is refused."""

from __future__ import annotations

import itertools
from functools import lru_cache

import pytest
from data import coco_captions, emoji_rows, needs_coco, needs_emoji
from hypothesis import given, settings
from hypothesis import strategies as st
from tally import Tally

from obclip.core.errors import InputError, ObclipError, PrivacyError
from obclip.core.wire import Request
from obclip.edge.oblivious import candidate_set, check_negative, load_policy

EMOJI, DEFAULT = load_policy("emoji"), load_policy("default")
TONES = ["light", "medium-light", "medium", "medium-dark", "dark"]


def request_bytes(prompt: str, policy=EMOJI) -> bytes:
    prompts = candidate_set(prompt, policy).prompts
    return Request("0" * 64, prompts, "", 7, 64, 64, 25, 10, 3.5, "dpm++2m").encode()


GOLDEN = [
    (EMOJI, "a girl", ["a boy", "a girl", "an adult man", "an adult woman", "an older man", "an older woman"]),
    (EMOJI, "A Lady  cook", ["a man cook", "a woman cook"]),
    (EMOJI, "older cook", ["adult person cook", "child cook", "older person cook"]),
    (EMOJI, "a person with dark skin", [f"a person with {t} skin" for t in sorted(TONES)]),
    (EMOJI, "a fair-skinned mermaid", sorted(f"a {t}-skinned {n}" for t in TONES for n in ("merman", "mermaid"))),
    (EMOJI, "a fireman", ["a man firefighter", "a woman firefighter"]),
    (DEFAULT, "a man and his dog", ["a man and his dog", "a woman and her dog"]),
    (DEFAULT, "a portrait of him.", ["a portrait of her.", "a portrait of him."]),
    (DEFAULT, "boys' shoes", ["boys' shoes", "girls' shoes"]),
    (DEFAULT, "the women's team", ["the men's team", "the women's team"]),
    (DEFAULT, "a 5-year-old girl", ["a boy", "a girl"]),
    (DEFAULT, "an old teacher", ["a middle-aged teacher", "a young teacher", "an old teacher"]),
    (
        DEFAULT,
        "a grandmother",
        sorted(f"{a} {n}" for a in ("a young", "a middle-aged", "an old") for n in ("man", "woman")),
    ),
    (DEFAULT, "an old castle with a queen", ["an old castle with a king", "an old castle with a queen"]),
    (DEFAULT, "a man in a white shirt", ["a man in a white shirt", "a woman in a white shirt"]),
    (DEFAULT, "a castle in the fog", ["a castle in the fog"]),
]


@pytest.mark.parametrize(("policy", "prompt", "expected"), GOLDEN)
def test_golden_sets(policy, prompt: str, expected: list[str]):
    assert list(candidate_set(prompt, policy).prompts) == sorted(expected)


@pytest.mark.parametrize(
    ("prompt", "n"),
    [
        ("a portrait photo of a woman", 2),
        ("a portrait photo of a young man", 6),
        ("a portrait photo of a middle-aged asian woman", 30),
        ("a tall dark-haired young Asian woman, 30 years old, her eyes closed", 30),
    ],
)
def test_sizes_of_the_papers_templates(prompt: str, n: int):
    assert len(candidate_set(prompt, DEFAULT).prompts) == n


def test_the_index_points_at_the_real_prompt():
    found = candidate_set("Noto style emoji of an elderly female", EMOJI)
    assert found.prompts[found.index] == "noto style emoji of an older woman"
    assert found.attributes == {"gender": "woman", "age": "older"}


@pytest.mark.parametrize(
    "prompt", ["a boy on a swing", "a photo of a 12-year-old student", "a teenage girl", "children playing"]
)
def test_children_and_adults_never_hide_each_other(prompt: str):
    found = candidate_set(prompt, DEFAULT)
    assert any("child" in note for note in found.public)
    for candidate in found.prompts:
        words = set(candidate.replace("-", " ").split())
        assert words & {"boy", "girl", "child", "children", "boys", "girls"}
        assert not words & {"man", "woman", "men", "women", "young", "old"}


def test_a_prompt_without_attributes_says_so():
    assert "read all that is sent" in candidate_set("a lighthouse", DEFAULT).public[0]


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        ("", InputError), ("  \n", InputError), ("x" * 1001, InputError), ("wom\u200ban", InputError),
        ("a\x00b", InputError),
        ("a wоman", PrivacyError),  # a Cyrillic letter
        ("👩 at work", PrivacyError), ("she looks old", PrivacyError),
        ("mr bean", PrivacyError), ("taylor swift on stage", PrivacyError),
        ("a man with her eyes", PrivacyError), ("an old girl", PrivacyError), ("a woman-like shape", PrivacyError),
        ("a young asian man and an old indian woman", PrivacyError),
    ],
)  # fmt: skip
def test_what_cannot_be_hidden_is_refused(prompt: str, error: type[Exception]):
    with pytest.raises(error):
        candidate_set(prompt, DEFAULT)


def test_the_emoji_policy_refuses_what_it_does_not_hide():
    with pytest.raises(PrivacyError, match="ethnicity"):
        candidate_set("an asian woman", EMOJI)


def test_too_many_candidates_are_refused_by_name():
    with pytest.raises(PrivacyError, match="gender of person 2"):
        candidate_set("a young asian man and a young indian woman", DEFAULT)


def test_negative_prompts():
    check_negative("", EMOJI)
    check_negative("blurry, low quality, an old photo", DEFAULT)
    for bad in ("a man", "old people", "dark skin"):
        with pytest.raises(PrivacyError, match="negative"):
            check_negative(bad, DEFAULT)


def test_unknown_policies_list_the_shipped_ones():
    with pytest.raises(InputError, match="default, emoji"):
        load_policy("none")


@pytest.mark.parametrize(
    "text",
    [
        b"names = 3", b"gender = 3", b"[gender]\nvalues = 3", b"[gender]\nvalues = [[1], [2]]",
        b"[age]\nvalues = ['young', 'old']\nstages = 3", b"[mood]\nvalues = ['glad', 'sad']\nforms = 3",
        b"[mood]\nvalues = ['glad', 'sad']\nforms = { glad = 3, sad = ['sad'] }", b"# caf\xe9",
        b"[gender]\nvalues = [1, 2]", b"[gender]\nbeside_role = 3",
        b"[gender]\nvalues = ['man', 'woman']\nbeside_role = [1, 2]",
    ],
)  # fmt: skip
def test_policy_files_with_values_of_the_wrong_kind_are_refused(tmp_path, text: bytes):
    (tmp_path / "mine.toml").write_bytes(text)
    with pytest.raises(InputError, match=r"mine|UTF-8"):
        load_policy(str(tmp_path / "mine.toml"))


def test_policies_that_would_mix_children_and_adults_unsaid_are_refused(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[age]\nvalues = ["young", "old"]\nstages = { young = "young", old = "old" }\n')
    with pytest.raises(InputError, match="minors"):
        load_policy(str(path))


nouns = [
    "woman",
    "man",
    "lady",
    "guy",
    "girl",
    "boy",
    "child",
    "person",
    "grandma",
    "actress",
    "king",
    "fireman",
    "women",
]
adjectives = [
    "",
    "young ",
    "old ",
    "elderly ",
    "asian ",
    "tall ",
    "young indian ",
    "dark-skinned ",
    "little ",
    "white ",
]
tails = [
    "",
    " with dark skin tone",
    " with pale skin",
    " holding his hat",
    " and her dog",
    ", 45 years old",
    " smiling",
]
frames = [
    "{}",
    "a photo of a {}",
    "noto emoji of an {}",
    "portrait, {}, white background",
    "the {}'s house",
    "A {} cook",
]


def test_sets_are_closed_over_the_lexicon():
    tally = Tally()

    @settings(max_examples=200)
    @given(
        policy=st.sampled_from([EMOJI, DEFAULT]), frame=st.sampled_from(frames), adjective=st.sampled_from(adjectives),
        noun=st.sampled_from(nouns), tail=st.sampled_from(tails),
    )  # fmt: skip
    def check(policy, frame: str, adjective: str, noun: str, tail: str) -> None:
        found = tally.candidates(frame.format(adjective + noun) + tail, policy)
        if found is None:
            return
        assert len({request_bytes(p, policy) for p in found.prompts}) == 1
        assert found.prompts[found.index] in found.prompts
        if found.attributes:
            assert len(found.prompts) > 1

    check()
    tally.check(0.4)


def test_different_values_of_one_attribute_land_in_one_set():
    """Closure across the words people use, not only across our own canonical ones."""
    groups = [
        ["a lady", "a woman", "a gentleman", "a man", "a guy", "a female"],
        ["a girl", "an elderly man", "an older woman", "a boy", "a grandma", "an adult man"],
        ["an emoji of a pale-skinned king", "an emoji of a dark-skinned queen", "an emoji of an olive-skinned king"],
    ]
    for group in groups:
        assert len({request_bytes(p) for p in group}) == 1
    assert len({request_bytes(g[0]) for g in groups}) == 3


GENERATED = [
    f"{style} style emoji of {who}{tone}{post}"
    for style, who, tone, post in itertools.product(
        ["noto", "fluent 3d"],
        ["a woman", "a man firefighter", "an older woman", "a girl", "a pregnant woman", "a person"],
        ["", " with medium-dark skin tone"],
        ["", " wearing a turban", " feeding a baby with a bottle"],
    )
]


@pytest.mark.parametrize("prompt", GENERATED)
def test_generated_captions_are_closed(prompt: str):
    assert len({request_bytes(p) for p in candidate_set(prompt, EMOJI).prompts}) == 1


@lru_cache(maxsize=1)
def caption_rows() -> list[tuple[str, dict[str, str]]]:
    """Each distinct caption with its labels; the eight style words are public literals, so one stands for all."""
    found = {}
    for row in emoji_rows():
        if row["style"] == "noto":
            labels = {
                k: row[k]
                for k, absent in (("gender", "person"), ("age", "adult"), ("skin", "default"))
                if row[k] != absent
            }
            found.update({caption: labels for caption in [row["caption"], *row["captions"]]})
    return sorted(found.items())


@needs_emoji
@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_captions_of_the_drawings_are_read_as_labelled(every: int):
    rows = caption_rows()[::every]
    wrong = [c for c, labels in rows if candidate_set(c, EMOJI).attributes != labels]
    # "man, merman": two person words in a list of tags are taken for two people; closed all the same
    assert all(", white background" in c for c in wrong)
    assert len(wrong) <= 0.01 * len(rows)


@needs_emoji
@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_requests_are_equal_bytes_over_every_candidate_of_the_test_captions(every: int):
    known: dict[str, bytes] = {}
    rows = [r for r in emoji_rows() if r["split"].startswith("test") and r["style"] in ("noto", "fluent3d")]
    for prompt in sorted({c for r in rows for c in [r["caption"], *r["captions"]][:3]})[::every]:
        found = candidate_set(prompt, EMOJI)
        for candidate in found.prompts:
            if candidate not in known:
                known[candidate] = request_bytes(candidate)
        assert len({known[c] for c in found.prompts}) == 1


@needs_coco
def test_captions_of_photographs_are_closed_or_refused():
    tally = Tally(ObclipError)
    for caption in coco_captions()[::12]:
        found = tally.candidates(caption, DEFAULT)
        if found is not None:
            assert len({request_bytes(p, DEFAULT) for p in found.prompts[:6]}) == 1
    tally.check(0.9)
