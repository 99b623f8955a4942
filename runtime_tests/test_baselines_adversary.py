"""The adversary that sanitizers are measured with is the best there is; the benchmark of both."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obclip.core.errors import InputError, ModelMissingError
from obclip.edge.oblivious import load_policy
from runtime_tests.baselines.closed import build_lexicon, closed
from runtime_tests.baselines.embeddings import load_phi, mean_distance
from runtime_tests.baselines.reconstruction import (
    Group,
    Limits,
    attack,
    attack_groups,
    bayes_rule,
    merge_outputs,
)
from runtime_tests.baselines.sanitized import Reader, kept, word_groups
from runtime_tests.baselines.santext import Santext, santext
from runtime_tests.baselines.words import Vocabulary, words_of
from runtime_tests.benchmarks import emoji_captions, sanitizers

EMOJI = load_policy("emoji")


def random_channel(rng: np.random.Generator, inputs: int, outputs: int) -> np.ndarray:
    """Rows that sum to 1, with impossible outputs among them."""
    weights = (
        rng.random((inputs, outputs)) ** 3 * (rng.random((inputs, outputs)) < 0.8) + np.eye(inputs, outputs) * 1e-3
    )
    return weights / weights.sum(1, keepdims=True)


# the adversary


@pytest.mark.parametrize("seed", range(8))
def test_no_decision_rule_beats_the_bayes_rule(seed: int):
    rng = np.random.default_rng(seed)
    channel, prior, secrets = random_channel(rng, 4, 5), rng.dirichlet(np.ones(4)), np.array([0, 1, 2, 1])

    def accuracy(rule: tuple[int, ...]) -> float:
        return sum(prior[x] * channel[x, y] for x in range(4) for y in range(5) if rule[y] == secrets[x])

    best = max(accuracy(rule) for rule in itertools.product(range(3), repeat=5))
    assert accuracy(tuple(bayes_rule(channel, prior, secrets))) == pytest.approx(best)
    assert attack(channel, prior, secrets).success == pytest.approx(best)


def test_an_identity_channel_is_always_reversed_and_a_constant_one_leaves_the_prior():
    prior = np.array([0.5, 0.3, 0.2])
    known, blind = attack(np.eye(3), prior), attack(np.tile([0.7, 0.3], (3, 1)), prior)
    bits = -(prior * np.log2(prior)).sum()
    assert (known.success, known.entropy_bits) == pytest.approx((1.0, 0.0))
    assert (blind.success, blind.entropy_bits) == pytest.approx((0.5, bits))
    assert (blind.prior_success, blind.prior_entropy_bits) == pytest.approx((0.5, bits))


def brute_force(factors: list[np.ndarray], prior: np.ndarray, secrets: np.ndarray) -> tuple[float, float]:
    """Success and posterior entropy by listing every output."""
    success = bits = 0.0
    for ys in itertools.product(*(range(f.shape[1]) for f in factors)):
        joint = [prior[x] * math.prod(f[x, y] for f, y in zip(factors, ys, strict=True)) for x in range(len(prior))]
        said = [sum(p for p, s in zip(joint, secrets, strict=True) if s == v) for v in range(secrets.max() + 1)]
        success += max(said)
        bits -= sum(p * math.log2(p / sum(said)) for p in said if p > 0)
    return success, bits


@pytest.mark.parametrize("seed", range(4))
def test_words_drawn_apart_are_attacked_as_one_output(seed: int):
    rng = np.random.default_rng(seed)
    factors = [random_channel(rng, 6, y) for y in (3, 4, 5)]
    prior, secrets = rng.dirichlet(np.ones(6)), np.array([0, 1, 2, 0, 1, 2])
    found = attack_groups([Group(np.arange(6), tuple(factors))], prior, secrets)
    assert (found.success, found.entropy_bits) == pytest.approx(brute_force(factors, prior, secrets))
    assert found.error == 0


def test_the_number_of_words_is_seen_too():
    rng = np.random.default_rng(0)
    prior, secrets = rng.dirichlet(np.ones(4)), np.arange(4)
    one, two = random_channel(rng, 2, 3), random_channel(rng, 2, 3)
    found = attack_groups([Group(np.array([0, 2]), (one,)), Group(np.array([1, 3]), (two,))], prior, secrets)
    whole = np.zeros((4, 6))
    whole[[0, 2], :3], whole[[1, 3], 3:] = one, two
    assert found.success == pytest.approx(attack(whole, prior).success)
    assert found.entropy_bits == pytest.approx(attack(whole, prior).entropy_bits)


def test_the_estimate_agrees_with_the_sum_within_its_error():
    rng = np.random.default_rng(3)
    groups = [Group(np.arange(6), tuple(random_channel(rng, 6, 5) for _ in range(3)))]
    prior, secrets = rng.dirichlet(np.ones(6)), np.array([0, 1, 2, 0, 1, 2])
    exact = attack_groups(groups, prior, secrets)
    drawn = attack_groups(groups, prior, secrets, Limits(outputs=1, draws=5000), seed=4)
    assert 0 < drawn.error < 0.01
    assert abs(drawn.success - exact.success) < 4 * drawn.error
    assert drawn.entropy_bits == pytest.approx(exact.entropy_bits, abs=0.02)


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_merging_outputs_changes_nothing_for_the_adversary(seed: int):
    rng = np.random.default_rng(seed)
    channel, prior = random_channel(rng, 3, 4), rng.dirichlet(np.ones(3))
    split = np.concatenate([0.25 * channel, 0.75 * channel, np.zeros((3, 2))], axis=1)
    assert merge_outputs(split).shape[1] <= 4
    assert attack(split, prior).success == pytest.approx(bayes_mass(channel, prior))


def bayes_mass(channel: np.ndarray, prior: np.ndarray) -> float:
    return float((prior[:, None] * channel).max(0).sum())


# prompts


GIRL = closed("noto style emoji of a girl with dark skin tone", EMOJI)
NAMES = ("noto style emoji of a girl with dark skin tone", "noto style emoji of a woman cook", "a mermaid swimming")


def test_the_lexicon_is_what_tells_members_apart():
    found = [s for name in NAMES if (s := closed(name, EMOJI)) is not None]
    lexicon = build_lexicon(found)
    assert lexicon["girl"] == {"gender": "woman", "age": "child"}
    assert lexicon["woman"] == {"gender": "woman"}
    assert lexicon["older"] == {"age": "older"}
    assert lexicon["medium-dark"] == {"skin": "medium-dark"}
    assert lexicon["mermaid"] == {"gender": "woman"}
    assert not lexicon.keys() & {"a", "an", "skin", "tone", "with", "cook", "noto", "swimming"}


def test_words_have_no_article_that_fits_what_follows():
    assert words_of("An older man, mrs. Claus's medium-dark skin") == (
        "a", "older", "man", "mrs", "claus's", "medium-dark", "skin"
    )  # fmt: skip


def test_a_sanitized_set_is_attacked_as_its_whole_sentences_are():
    """Factors, groups and masks against the channel on whole prompts, listed."""
    secret = closed("a girl", EMOJI)
    assert secret is not None
    lexicon = build_lexicon([secret])
    words = Vocabulary.of(secret.words)
    phi = np.random.default_rng(0).normal(size=(len(words), 4))
    mechanism = santext(words, phi, 1.5)
    prior = np.random.default_rng(1).dirichlet(np.ones(len(secret.words)))
    ages = np.array([("adult", "child", "older").index(v["age"]) for v in secret.values])
    sentences = [
        sentence
        for length in {len(w) for w in secret.words}
        for sentence in itertools.product(words.words, repeat=length)
    ]
    channel = np.array(
        [
            [
                math.prod(mechanism.matrix[words.index[x], words.index[y]] for x, y in zip(member, s, strict=True))
                if len(s) == len(member)
                else 0.0
                for s in sentences
            ]
            for member in secret.words
        ]
    )
    found = attack_groups(word_groups(secret, mechanism, lexicon), prior, ages)
    assert found.success == pytest.approx(attack(channel, prior, ages).success)
    assert found.entropy_bits == pytest.approx(attack(channel, prior, ages).entropy_bits)


def test_what_survives_is_what_samples_still_say():
    assert GIRL is not None
    lexicon = build_lexicon([GIRL])
    words = Vocabulary.of(GIRL.words)
    phi = np.random.default_rng(0).normal(size=(len(words), 4))
    mechanism, reader = santext(words, phi, 2.0), Reader(words, lexicon, phi)
    member, rng = GIRL.found.index, np.random.default_rng(1)
    place = GIRL.words[member].index("girl")
    sent = [mechanism.sanitize(GIRL.words[member], rng)[place] for _ in range(4000)]
    rate = kept(GIRL, mechanism, reader, ["gender"], "says")[member]
    assert np.mean([lexicon.get(w, {}).get("gender") == "woman" for w in sent]) == pytest.approx(rate, abs=0.03)
    both = kept(GIRL, mechanism, reader, ["gender", "age"], "says")[member]
    assert np.mean([w == "girl" for w in sent]) == pytest.approx(both, abs=0.03)
    assert both < rate < kept(GIRL, mechanism, reader, ["gender"], "nearest")[member] <= 1
    assert (kept(GIRL, Santext(words, np.eye(len(words))), reader, list(GIRL.found.attributes), "says") == 1).all()


def test_a_prompt_that_hides_nothing_is_no_secret():
    assert closed("noto style emoji of a cook", EMOJI) is None


# embeddings


def test_words_of_the_embedded_encoder_are_means_of_their_tokens():
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = embedded_pair()
    words = Vocabulary(("incomprehensible", "man", "woman"))
    phi = load_phi(words)
    table = CLIPTextModel.from_pretrained(folder / "text_encoder").text_model.embeddings.token_embedding.weight
    ids = CLIPTokenizer.from_pretrained(folder / "tokenizer")("incomprehensible")["input_ids"][1:-1]
    assert len(ids) > 1
    assert np.allclose(phi[0], table[ids].detach().double().mean(0).numpy())
    assert mean_distance(phi) == pytest.approx(
        np.mean([np.linalg.norm(phi[i] - phi[j]) for i, j in ((0, 1), (0, 2), (1, 2))])
    )


def embedded_pair() -> Path:
    import obclip.cloud

    return Path(next(iter(obclip.cloud.__path__))) / "pairs" / "emoji"


def test_another_encoder_may_be_a_pairs_folder_or_one_folder_with_everything(tmp_path: Path):
    words = Vocabulary(("man", "woman"))
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(embedded_pair() / part, tmp_path, dirs_exist_ok=True)
    assert (load_phi(words, tmp_path) == load_phi(words)).all()
    assert (load_phi(words, embedded_pair()) == load_phi(words)).all()


def test_a_folder_without_an_encoder_is_named(tmp_path: Path):
    with pytest.raises(ModelMissingError, match="no CLIP text encoder"):
        load_phi(Vocabulary(("a",)), tmp_path)


# the benchmark


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("sanitizers")
    rows = [{"caption": c, "split": "train"} for c in emoji_captions.built_in_captions()]
    rows.append({"caption": "noto style emoji of a woman pilot", "split": "test_triple"})
    (folder / "person.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
    options = ["--data", str(folder), "--out", str(folder / "out.json"), "--prompts", "6", "--epsilons", "0", "16"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sanitizers", *options])
        sanitizers.main()
    return json.loads((folder / "out.json").read_text())


def test_the_benchmark_measures_every_method_and_attribute(result: dict):
    methods = {(r["method"], r["epsilon"]) for r in result["rows"]}
    swept = {(m, e) for m in ("SANTEXT", "SANTEXT+", "CAPE") for e in (0.0, 16.0)}
    assert methods == swept | {("plaintext", None), ("ObCLIP", None)}
    assert {r["attribute"] for r in result["rows"]} == {"gender", "skin", "age", "prompt"}
    assert {r["method"] for r in result["losses"]} == {m for m, _ in methods}
    assert result["settings"]["seed"] == 1
    assert "pilot" not in json.dumps(result)


def test_candidates_give_the_adversary_its_prior_and_keep_the_prompt(result: dict):
    ours = [r for r in result["rows"] if r["method"] == "ObCLIP"]
    chance = {"gender": 1 / 2, "skin": 1 / 5, "age": 1 / 3}
    for row in ours:
        assert row["attack_success"] == row["prior_success"]
        assert row["entropy_bits"] == row["prior_entropy_bits"]
        assert row["fidelity"] == 1
        if row["prior"] == "uniform" and row["attribute"] in chance:
            assert row["attack_success"] == pytest.approx(chance[row["attribute"]], abs=1e-5)


def test_the_adversary_knows_a_plaintext_prompt_and_is_never_below_its_prior(result: dict):
    for row in result["rows"]:
        assert row["attack_success"] >= row["prior_success"] - 4 * row["error"] - 1e-6
        if row["method"] == "plaintext":
            assert (row["attack_success"], row["fidelity"], row["fidelity_nearest"]) == (1, 1, 1)


def test_measured_losses_are_within_their_bounds(result: dict):
    bounded = [r for r in result["losses"] if "bound_nats" in r]
    assert len(bounded) == 6
    assert all(r["loss_nats"] <= r["bound_nats"] + 1e-6 for r in bounded)
    assert next(r for r in result["losses"] if r["method"] == "ObCLIP")["loss_nats"] == 0
    assert next(r for r in result["losses"] if r["method"] == "plaintext")["loss_nats"] is None


def test_an_unclosed_set_would_show():
    """The attack on ObCLIP is run, not assumed: sets that differ by member are reversed."""
    secret = closed("a woman", EMOJI)
    assert secret is not None
    assert sanitizers.set_channel(secret).tolist() == [[1.0], [1.0]]
    lone = tuple(closed_set for name in ("a woman", "a girl") if (closed_set := closed(name, EMOJI)) is not None)
    leaky = type(secret)(secret.found, (lone[0].sets[0], lone[1].sets[0]), secret.words, secret.values)
    assert attack(sanitizers.set_channel(leaky), np.array([0.5, 0.5])).success == 1


def test_a_folder_without_captions_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"no person\.jsonl"):
        emoji_captions.load_captions(tmp_path)


def test_built_in_captions_stand_in_for_missing_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(emoji_captions, "FOLDER", tmp_path)
    captions = emoji_captions.load_captions(None)
    assert captions.source == "built-in templates"
    assert all(closed(text, EMOJI) is not None for text in captions.texts[:12])
