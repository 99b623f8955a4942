"""The audit: what shared words say about hidden attributes, its arithmetic, its suggestions, its model."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tally import Tally

from obclip.core.errors import InputError, ModelMissingError, RunError
from obclip.edge.audit import AuditModel, audit
from obclip.edge.audit.evidence import Slot, read_evidence
from obclip.edge.audit.head import Head
from obclip.edge.audit.vocabulary import Vocabulary
from obclip.edge.oblivious import Options, candidate_set, load_policy

DEFAULT, EMOJI = load_policy("default"), load_policy("emoji")
SHIPPED = AuditModel.load()

CLOSED = [
    ("a bride in a white wedding dress", DEFAULT),
    ("an old teacher and his dog", DEFAULT),
    ("an asian woman in a red kimono", DEFAULT),
    ("a man with a beard and a woman in a long red dress", DEFAULT),
    ("a boy with dark skin on a swing", DEFAULT),
    ("emoji of an older woman wearing a turban", EMOJI),
]


@pytest.mark.parametrize(("prompt", "policy"), CLOSED)
def test_every_prompt_of_a_set_gets_the_same_report(prompt: str, policy):
    first = audit(prompt, policy)
    assert first.candidates > 1
    for candidate in first.prompts:
        assert audit(candidate, policy) == first


def test_marked_prompts_of_a_set_get_the_same_report():
    first = audit("a man and [[Alice|Bob|Carol]] with a beard", DEFAULT)
    assert first.candidates == 6
    assert "mark 1" in first.posterior.unknown
    for candidate in candidate_set("a man and [[Alice|Bob|Carol]] with a beard", DEFAULT).marked:
        assert audit(candidate, DEFAULT) == first


nouns = ["woman", "man", "girl", "person", "grandma", "king", "women"]
adjectives = ["", "young ", "old asian ", "beautiful ", "tall bearded "]
tails = ["", " in a red kimono", " with dark skin", " and a man in a tie", ", knitting, grey hair", " on a skateboard"]


def test_posteriors_are_probabilities_and_effective_n_lies_between_one_and_n():
    tally = Tally()

    @settings(max_examples=150)
    @given(
        policy=st.sampled_from([DEFAULT, EMOJI]), adjective=st.sampled_from(adjectives), noun=st.sampled_from(nouns),
        tail=st.sampled_from(tails), prior=st.sampled_from(["careful", "uniform", "captions"]),
    )  # fmt: skip
    def check(policy, adjective: str, noun: str, tail: str, prior) -> None:
        found = tally.candidates(f"a {adjective}{noun}{tail}", policy)
        if found is None:
            return
        posterior = SHIPPED.posterior(found, prior)
        assert len(posterior.probabilities) == len(found.prompts)
        assert sum(posterior.probabilities) == pytest.approx(1)
        assert 1 - 1e-9 <= posterior.effective_n <= len(found.prompts) + 1e-9
        assert posterior.top1 >= 1 / len(found.prompts) - 1e-9
        assert set(posterior.attributes) == set(found.attributes)
        for label, values in posterior.attributes.items():
            assert sum(values.values()) == pytest.approx(1)
            assert set(values) == {row[label] for row in found.values}

    check()
    tally.check(0.6)


@pytest.mark.parametrize(
    ("prompt", "policy"),
    [
        ("a portrait of a woman", DEFAULT),
        ("a man walking down a street", DEFAULT),
        ("a person with light skin", DEFAULT),
        ("a portrait of an indian person", DEFAULT),
        ("noto style emoji of a woman health worker with medium skin tone", EMOJI),
    ],
)
def test_neutral_words_leave_nearly_n(prompt: str, policy):
    report = audit(prompt, policy)
    assert report.uniform.effective_n > 0.93 * report.candidates
    assert report.effective_n > 0.75 * report.candidates


@pytest.mark.parametrize(
    ("prompt", "label", "word", "value"),
    [
        ("a bride in a white wedding dress", "gender", "wedding dress", "woman"),
        ("a woman with a long beard", "gender", "beard", "man"),
        ("a pregnant man", "gender", "pregnant", "woman"),
        ("a man doing a trick on a skateboard", "gender", "skateboard", "man"),
        ("a young person with wrinkles", "age", "wrinkles", "old"),
        ("an african person wearing a kimono", "ethnicity", "kimono", "asian"),
        ("a person with freckles and dark skin", "skin", "freckles", "light"),
        ("a boy with a pacifier, cartoon style, older", "age", "pacifier", "child"),
    ],
)
def test_words_that_leak_are_named_and_lower_effective_n(prompt: str, label: str, word: str, value: str):
    """Whichever value the prompt itself says: the words speak for the same one."""
    policy = EMOJI if "cartoon" in prompt else DEFAULT
    report = audit(prompt.removesuffix(", older"), policy)
    loudest = report.words[label][0]
    assert (loudest.text, loudest.value) == (word, value)
    assert loudest.log_odds > 0
    assert loudest.share > 0.4
    assert report.effective_n < 0.75 * report.candidates
    chances = report.uniform.attributes[label]
    assert max(chances, key=chances.__getitem__) == value


def test_people_are_judged_by_their_own_words():
    report = audit("a man with a beard and a woman in a long red dress", DEFAULT)
    assert report.uniform.attributes["gender"]["man"] > 0.9
    assert report.uniform.attributes["gender of person 2"]["woman"] > 0.8
    best = report.prompts[int(np.argmax(report.posterior.probabilities))]
    assert best == "a man with a beard and a woman in a long red dress"


def test_tied_people_are_judged_by_their_own_words():
    found = candidate_set("a woman with a beard and a man in a long red dress", DEFAULT, Options(tie=True))
    assert len(found.prompts) == 2
    posterior = SHIPPED.posterior(found)
    assert posterior.effective_n < 1.2
    assert found.prompts[int(np.argmax(posterior.probabilities))].startswith("a man with a beard and a woman")


def test_padding_adds_no_doubt():
    plain = audit("a man with a long beard", DEFAULT)
    padded = audit("a man with a long beard", DEFAULT, options=Options(pad=8))
    assert padded.candidates == 8
    assert padded.requests_equal
    assert padded.effective_n == pytest.approx(plain.effective_n)
    assert sorted(padded.posterior.probabilities)[-2:] == pytest.approx(sorted(plain.posterior.probabilities))


def test_a_value_left_unsaid_is_as_likely_as_the_average_of_the_others():
    report = audit("a person with a long beard", DEFAULT, options=Options(hide=("gender",)))
    chances = report.posterior.attributes["gender"]
    assert chances[""] == pytest.approx(1 / 3)
    assert chances["man"] > 0.6


def test_a_prompt_that_hides_nothing_has_one_certain_candidate():
    report = audit("a lighthouse", DEFAULT)
    assert (report.candidates, report.effective_n, report.posterior.top1) == (1, 1.0, 1.0)
    assert report.words == {}
    assert report.suggestions == ()


def test_suggestions_raise_effective_n_as_they_say():
    for prompt in ("a woman in a white wedding dress", "a man with a long beard, riding a motorcycle"):
        report = audit(prompt, DEFAULT)
        steps = [report.effective_n, *(s.effective_n for s in report.suggestions)]
        assert len(steps) > 1
        assert steps == sorted(steps)
        assert steps[-1] > 1.3 * steps[0]
        for suggestion in report.suggestions:
            again = audit(suggestion.remainder.replace("_", "man"), DEFAULT)
            assert again.effective_n == pytest.approx(suggestion.effective_n)


@pytest.mark.parametrize(
    ("prompt", "drop", "remainder"),
    [
        ("a man with a long beard in a garden", "with a long beard", "a _ in a garden"),
        ("a pregnant woman, portrait", "pregnant", "a _, portrait"),
        ("a woman wearing a pink skirt", "wearing a pink skirt", "a _"),
        ("a man with a beard and a hat", "a beard and", "a _ with a hat"),
        ("a photo of a man with a beard, portrait", "with a beard", "a photo of a _, portrait"),
        ("a man stroking his beard", "stroking _ beard", "a _"),
    ],
)
def test_what_a_dropped_word_leaves_hanging_goes_with_it(prompt: str, drop: str, remainder: str):
    suggestion = audit(prompt, DEFAULT, suggestions=1).suggestions[0]
    assert (suggestion.drop, suggestion.remainder) == (drop, remainder)


def test_reports_are_json_and_round_trip():
    said = audit("a young woman in a bikini with her dog", DEFAULT).as_dict()
    assert json.loads(json.dumps(said)) == said
    assert said["candidates"] == len(said["probabilities"]) == 6
    assert said["requests_equal"] is True
    assert said["effective_n"] == min(said["under"][p]["effective_n"] for p in ("uniform", "captions"))
    assert said["words"]["gender"][0]["text"] == "bikini"
    assert said["words"]["gender"][0]["source"] == "both"


def hand_made(temperature: float = 1.0, prior: tuple[float, float] = (0.5, 0.5)) -> AuditModel:
    head = Head(
        attribute="gender", values=("man", "woman"), bias=temperature * np.log(prior), prior=np.array(prior),
        temperature=temperature, weights=np.array([[math.log(9), 0.0], [0.0, math.log(4)]], np.float32),
        captions=np.array([3, 0], np.uint16), judged=np.array([False, True]),
    )  # fmt: skip
    return AuditModel(Vocabulary(("beard", "red skirt")), (head,))


def test_posteriors_against_closed_forms():
    """Odds multiply: prior odds, times nine for a beard, times a quarter for a red skirt."""
    beard, both = (candidate_set(p, DEFAULT) for p in ("a man with a beard", "a man with a beard and a red skirt"))
    assert hand_made().posterior(beard).top1 == pytest.approx(9 / 10)
    assert hand_made().posterior(both).top1 == pytest.approx(9 / 13)
    assert hand_made(temperature=2.0).posterior(beard).top1 == pytest.approx(3 / 4)
    skewed = hand_made(prior=(0.75, 0.25))
    assert skewed.posterior(beard, "captions").top1 == pytest.approx(27 / 28)
    assert skewed.posterior(beard, "uniform").top1 == pytest.approx(9 / 10)
    assert skewed.posterior(beard, "careful").prior == "captions"
    p = np.array([0.9, 0.1])
    assert hand_made().posterior(beard).effective_n == pytest.approx(math.prod(p**-p))


def test_words_and_their_shares_against_closed_forms():
    found = candidate_set("a man with a beard and red skirts", DEFAULT)
    words = hand_made().posterior(found).words["gender"]
    assert [(w.text, w.value, w.source) for w in words] == [
        ("beard", "man", "captions"),
        ("red skirts", "man", "judgement"),
    ]
    assert [w.log_odds for w in words] == pytest.approx([math.log(9), -math.log(4)], abs=1e-6)
    assert words[0].share == pytest.approx(math.log(9) / math.log(36), abs=1e-6)


def test_unknown_values_stay_uniform_and_are_said():
    found = candidate_set("an old man with a beard", DEFAULT)
    posterior = hand_made().posterior(found)
    assert posterior.unknown == ("age",)
    assert list(posterior.attributes["age"].values()) == pytest.approx([1 / 3] * 3)
    assert posterior.effective_n == pytest.approx(3 * 0.9**-0.9 * 0.1**-0.1)


def test_evidence_is_what_all_candidates_share():
    evidence = read_evidence(candidate_set("An old  teacher, and his dog!", DEFAULT))
    assert evidence.remainder == "_ teacher, and _ dog!"
    slots = [p for p in evidence.pieces if isinstance(p, Slot)]
    assert [(s.person, s.labels) for s in slots] == [(0, {"age"}), (0, {"gender"})]
    assert [s.possessive for s in slots] == [False, True]


def test_evidence_rebuilds_every_candidate():
    tally = Tally()

    @settings(max_examples=100)
    @given(noun=st.sampled_from(nouns), adjective=st.sampled_from(adjectives), tail=st.sampled_from(tails))
    def check(noun: str, adjective: str, tail: str) -> None:
        found = tally.candidates(f"a {adjective}{noun}{tail}", DEFAULT)
        if found is None:
            return
        evidence = read_evidence(found)
        for i, prompt in enumerate(found.prompts):
            text = " ".join(p.texts[i] if isinstance(p, Slot) else p for p in evidence.pieces)
            assert " ".join(text.split()) == prompt.replace(",", " ,")

    check()
    tally.check(0.6)


def test_a_phrase_takes_its_words_and_plurals_are_known():
    vocabulary = Vocabulary(("dress", "wedding", "wedding dress", "party"))
    evidence = read_evidence(candidate_set("a man, wedding dresses, a wedding, a party, parties", DEFAULT))
    found = [vocabulary.words[hit.feature] for hit in vocabulary.hits(evidence, 0)]
    assert found == ["wedding dress", "wedding", "party"]


def test_wrong_priors_and_missing_or_damaged_models_are_named(tmp_path: Path):
    with pytest.raises(InputError, match="careful, uniform, captions"):
        SHIPPED.posterior(candidate_set("a man", DEFAULT), "wrong")
    with pytest.raises(ModelMissingError, match="audit_recipe"):
        AuditModel.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(RunError, match="cannot be read"):
        AuditModel.load(tmp_path)


def test_models_survive_saving_byte_for_byte(tmp_path: Path):
    SHIPPED.save(tmp_path)
    shipped = resources.files("obclip.edge.audit").joinpath("model.safetensors").read_bytes()
    assert (tmp_path / "model.safetensors").read_bytes() == shipped


def test_the_audit_loads_no_training_framework_and_a_small_model():
    code = (
        "import sys; from obclip.edge.audit import audit; audit('a man with a beard', 'default');"
        "print([m for m in ('torch', 'transformers', 'diffusers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
    assert resources.files("obclip.edge.audit").joinpath("model.safetensors").stat().st_size < 3_000_000


def fastest_s(call) -> float:
    times = []
    for _ in range(5):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def test_loading_and_auditing_take_no_time_that_a_user_would_notice():
    """The fastest of five, against bounds several times what a slow machine needs."""
    assert fastest_s(AuditModel.load) < 0.25
    found = candidate_set("a young man riding a skateboard down the street", DEFAULT)
    assert fastest_s(lambda: SHIPPED.posterior(found)) < 0.25
    assert fastest_s(lambda: audit("a man with a long beard", DEFAULT)) < 1.0


def test_replacing_the_model_changes_the_audit():
    report = audit("a man in a white wedding dress", DEFAULT, model=hand_made())
    assert report.effective_n == pytest.approx(2)
    assert replace(report, suggestions=()).words == {"gender": ()}
