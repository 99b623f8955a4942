"""The attacks succeed where they should, fail where the design says so, and their formulas hold."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from obclip.cloud.text import Encoder
from obclip.edge.oblivious import candidate_set, load_policy
from runtime_tests.baselines.word_swap import word_swap
from runtime_tests.benchmarks.attacks import (
    closure,
    context,
    decoys,
    degraded,
    detection,
    fuzz,
    headers,
    inversion,
    linkage,
    marking,
    order,
    pictures,
    presence,
    redo,
    repeats,
    retries,
    sockets,
    stats,
    timing,
)
from runtime_tests.benchmarks.attacks.bayes import posterior, train
from runtime_tests.benchmarks.attacks.loopback import QuickBundle, quick_bundle
from runtime_tests.benchmarks.attacks.row import Row, table
from runtime_tests.benchmarks.attacks.sets import Known, examine, shared_words
from runtime_tests.benchmarks.attacks.settings import QUICK
from runtime_tests.benchmarks.pair_quality import cloud_steps

POLICY = load_policy("default")
TINY = replace(QUICK, captions=200, users=400, runs=20, drawings=1, marks=4, fuzz=20)
EMOJI = candidate_set("noto style emoji of a cook with dark skin tone", load_policy("emoji")).prompts


def ours(prompt: str) -> tuple[str, ...]:
    return candidate_set(prompt, POLICY).prompts


def pick(rows: list[Row], target: str, metric: str) -> Row:
    (row,) = [r for r in rows if r.target == target and r.metric.startswith(metric)]
    return row


@pytest.fixture(scope="module")
def bundle() -> QuickBundle:
    return quick_bundle()


# closure


@pytest.mark.parametrize("prompt", ["a lady with a hat", "a gentleman with a hat", "a guy by the sea"])
def test_the_naive_swap_gives_the_real_prompt_away(prompt: str):
    assert closure.guess(word_swap, prompt, word_swap(prompt)) == (1.0, 1)


@pytest.mark.parametrize("prompt", ["a lady with a hat", "a guy by the sea", "an elderly lady and her dog"])
def test_our_sets_leave_every_member_standing(prompt: str):
    members = ours(prompt)
    for real in members:
        assert closure.guess(ours, real, members) == (1 / len(members), len(members))


def test_articles_give_the_naive_swap_away_where_closure_does_not():
    members = word_swap("an old man")
    assert closure.guess(word_swap, "an old man", members) == (0.25, 4)
    success, left = closure.guess(word_swap, "an old man", members, lambda p: "an young" not in p)
    assert (success, left) == (0.5, 2)


def test_the_closure_attack_beats_chance_on_the_naive_swap_only():
    rows = closure.run(TINY)
    naive = pick(rows, "naive word swap", "guess by closure and")
    assert naive.chance is not None
    assert naive.value > naive.chance + 0.01
    mine = [r for r in rows if r.target == "ours"]
    assert [r.value for r in mine] == pytest.approx([r.chance for r in mine])


# context


def test_words_that_go_with_a_value_move_the_posterior_and_others_do_not():
    rng = np.random.default_rng(0)
    rows = [(frozenset({"hat", "beard"}), "man"), (frozenset({"hat", "veil"}), "woman")] * 40
    models = {"gender": train(rows, ("woman", "man"), rng)}

    def asked(*words: str) -> Known:
        known = examine("a woman with a hat", POLICY)
        assert known is not None
        return replace(known, words=frozenset(words))

    men = [p.startswith("a man") for p in ours("a woman with a hat")]
    assert posterior(models, asked("beard"), "uniform")[men.index(True)] > 0.9
    assert posterior(models, asked("veil"), "uniform")[men.index(True)] < 0.1
    np.testing.assert_allclose(posterior(models, asked("hat"), "uniform"), [0.5, 0.5])


def test_the_adversary_sees_only_the_words_that_all_candidates_share():
    known = examine("an old woman and her dog", POLICY)
    assert known is not None
    assert known.words == {"and", "dog"}


def test_no_adversary_beats_chance_on_neutral_templates_and_one_does_on_leaking_ones():
    rows = context.run(TINY)
    neutral = pick(rows, "ours: 10 neutral templates", "top-1")
    leaking = pick(rows, "ours: 10 leaking, with clues", "top-1 on what")
    assert neutral.value == pytest.approx(neutral.chance)
    assert leaking.low is not None
    assert leaking.chance is not None
    assert leaking.low > leaking.chance


def test_ties_are_drawn_in_top_1():
    assert context.success(np.array([0.4, 0.4, 0.2]), 0) == 0.5
    assert context.success(np.array([0.4, 0.4, 0.2]), 2) == 0


# presence


def test_what_is_mentioned_is_read_off_the_set_unless_it_is_always_there():
    rows = presence.run(TINY)
    assert pick(rows, "ours", "attributes mentioned, from the set").value == 1
    padded = pick(rows, "ours, padded to 30", "attributes mentioned, from N")
    assert padded.value == padded.chance
    always = pick(rows, "ours, gender and age always", "attributes mentioned, from the set")
    assert always.value < 1


# repeated queries


@pytest.mark.parametrize(("n_all", "n_sent", "queries"), [(30, 6, 1), (30, 6, 2), (12, 8, 4), (10, 10, 7)])
def test_random_subsets_keep_as_many_as_the_formula_says(n_all: int, n_sent: int, queries: int):
    counts = repeats.simulate_subsets(n_all, n_sent, queries, 20_000, np.random.default_rng(3))[:, -1]
    error = 4 * counts.std() / math.sqrt(len(counts)) + 1e-9
    assert counts.mean() == pytest.approx(repeats.survivors(n_all, n_sent, queries), abs=error)


def test_queries_add_up_for_the_naive_swap_and_for_context_but_not_for_closed_sets():
    rng = np.random.default_rng(0)
    known = [k for p in ("a lady runs", "a woman runs", "a gentleman sits") if (k := examine(p, POLICY))]
    naive = repeats.closure_odds(known, word_swap, lambda k: k.prompt)
    closed = repeats.closure_odds(known, ours, lambda k: k.found.prompts[k.found.index])
    assert naive.tolist() == [repeats.CERTAIN, 0, repeats.CERTAIN]
    assert closed.tolist() == [0, 0, 0]
    np.testing.assert_array_equal(repeats.curve([closed, closed], 1000, rng), 0.5)
    leaning = repeats.curve([np.array([1.0, -0.8]), np.array([1.0, -0.8])], 4000, rng)
    assert leaning[0] < 0.55 < leaning[-1]


# order, length, seed


def test_the_place_of_the_real_prompt_is_uniform_and_all_members_send_one_request(bundle: QuickBundle):
    rng = np.random.default_rng(1)
    known = [k for i in range(40) if (k := examine(f"a woman with {i + 2} red hats", POLICY))]
    counts = order.positions(known * 10, 2, rng)
    assert stats.chi_square(counts, rng)[1] > 0.01
    assert stats.chi_square(np.array([len(known), 0]), rng)[1] < 0.001
    rows = order.byte_rows(known[:5], bundle)
    assert [(r.value, r.n) for r in rows] == [(0, 5), (0, 5)]


# timing


def test_separation_finds_a_delay_of_one_index_and_nothing_where_there_is_none():
    rng = np.random.default_rng(2)
    indices, times = rng.integers(10, size=2000), rng.gamma(4.0, 1e-3, 2000)
    assert timing.separation(indices, times)[1] > 0.01
    assert timing.separation(indices, times + 2e-3 * (indices == 3))[1] < 1e-6


def test_the_clouds_clock_and_the_devices_are_read_for_every_picture(bundle: QuickBundle):
    indices, times = timing.measure(bundle, EMOJI, 5, np.random.default_rng(0))
    assert len(indices) == 5
    assert set(times) == {
        "device: prepare (nothing sent yet)", "device: extraction to end", "cloud sees: handshake to request",
        "cloud sees: answer to close",
    }  # fmt: skip
    assert all(len(v) == 5 and (v > 0).all() for v in times.values())


def test_every_timed_prompt_has_as_many_candidates_as_it_says():
    sizes = {n: len(candidate_set(p, load_policy("emoji")).prompts) for n, p in timing.PROMPTS.items()}
    assert sizes == {n: n for n in timing.PROMPTS}


# retries


def test_a_spoilt_latent_looks_the_same_for_every_real_index_and_gives_a_lazy_client_away(bundle: QuickBundle):
    members = candidate_set("noto style emoji of a woman cook", load_policy("emoji")).prompts
    mine = retries.observe(bundle, members, "nan", lazy=False)
    lazy = retries.observe(bundle, members, "nan", lazy=True)
    assert len(mine) == len(members) ** 2 == 4
    assert len(set(mine.values())) == 1
    assert next(iter(mine.values()))[0] == "CloudResponseError"
    assert retries.leaked_bits(mine) == 0
    assert retries.leaked_bits(lazy) == pytest.approx(1)


# marks and linkage


def test_marks_have_the_strength_they_are_given_and_differ():
    marks = marking.patterns(6, (4, 16, 16), np.random.default_rng(0))
    np.testing.assert_allclose(np.sqrt((marks**2).mean((1, 2, 3))), 1, rtol=1e-5)
    assert np.abs(np.fft.fft2(marks)[..., 5:12, 5:12]).max() < 0.05 * np.abs(np.fft.fft2(marks)).max()
    flat = marks.reshape(6, -1)
    assert np.abs(flat @ flat.T / flat.shape[1] - np.eye(6)).max() < 0.5


def test_a_marked_picture_is_found_among_its_copies_and_an_odd_latent_stands_out():
    rng = np.random.default_rng(0)
    copies = rng.integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)
    noisy = np.clip(copies[3] + rng.normal(0, 20, copies[3].shape), 0, 255).astype(np.uint8)
    assert marking.detect(noisy, copies) == 3
    latents = rng.normal(size=(6, 4, 8, 8)).astype(np.float32)
    latents[2] *= 3
    assert marking.distances(latents).argmax() == 2


def test_renoising_keeps_the_size_of_a_latent():
    x = np.random.default_rng(0).normal(size=(4, 16, 16)).astype(np.float32)
    y = marking.renoise(x, 0.3, np.random.default_rng(1))
    assert y.std() == pytest.approx(x.std(), rel=0.1)
    assert np.corrcoef(x.ravel(), y.ravel())[0, 1] == pytest.approx(math.sqrt(1 - 0.09), abs=0.02)


def test_pictures_are_linked_to_the_nearest_copy():
    rng = np.random.default_rng(0)
    copies = rng.integers(0, 256, (4, 64, 64, 3)).astype(np.uint8)
    assert linkage.link(linkage.jpeg(copies, 90, None), copies, linkage._pixels) == (4, 4)
    assert linkage.link(np.roll(copies, 1, 0), copies, linkage._pixels) == (0, 4)


@pytest.mark.slow
def test_the_embedded_pairs_published_pictures_are_linked_and_marks_are_named():
    """What is outside the theorem does happen, on the embedded pair."""
    prompts = ["noto style emoji of a man cook", "noto style emoji of a woman cook"]
    latents = cloud_steps(pictures.sides(), pictures.setting(), prompts, [7, 7], (10,))[10][0]
    drawn = pictures.finish(prompts, latents, 10)
    assert linkage.link(linkage.jpeg(drawn, 75, 48), drawn, linkage._pixels) == (2, 2)
    marks = marking.patterns(4, latents.shape[1:], np.random.default_rng(0))
    copies = pictures.finish(prompts[:1] * 4, latents[0] + np.float32(0.2 * pictures.rms(latents[0])) * marks, 10)
    encoded = linkage.jpeg(copies, 90, None)
    named = [marking.detect(copy, encoded) for copy in encoded]
    assert named == [0, 1, 2, 3]


# embeddings


def test_words_are_read_back_from_a_causal_text_encoder(large_folder: Path):
    from transformers import CLIPTextModel, CLIPTokenizer

    encoder = Encoder(
        CLIPTokenizer.from_pretrained(large_folder / "tokenizer"),
        CLIPTextModel.from_pretrained(large_folder / "text_encoder").eval(),
    )
    ids = inversion.tokens(encoder, "an older woman with dark skin")
    assert inversion.invert(inversion.embed(encoder, ids), encoder) == ids


# second tries


@pytest.mark.parametrize(("q1", "q0", "bits"), [(1.0, 0.0, 1.0), (0.3, 0.3, 0.0), (0.0, 0.0, 0.0)])
def test_a_redo_tells_a_bit_if_users_always_react_and_nothing_if_they_never_do(q1: float, q0: float, bits: float):
    assert degraded.redo_bits(q1, q0) == pytest.approx(bits)
    assert degraded.gained_on_redo(q1, q0) == pytest.approx(bits)


def test_simulated_redos_tell_what_the_closed_form_says():
    rng = np.random.default_rng(0)
    bad, honest = (np.array([rng.random(5000) < q], float).T for q in (0.8, 0.1))
    expected = degraded.redo_bits(float(bad.mean()), float(honest.mean()))
    assert degraded.simulate(bad, honest, 40_000, rng) == pytest.approx(expected, abs=0.02)


def test_the_check_on_the_device_sees_half_of_the_latents_too_loud_but_not_exchanged():
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(10, 4, 16, 16)).astype(np.float32)
    half = np.arange(10) < 4
    mixed = np.where(half[:, None, None, None], degraded.loud(latents, rng), latents)
    assert degraded.ranges(mixed)[0] > 10 * degraded.ranges(latents)[0]
    np.testing.assert_allclose(degraded.ranges(degraded.other(latents, rng)), degraded.ranges(latents))
    assert (degraded.other(latents, rng) != latents).any((1, 2, 3)).all()


def test_redo_bits_are_those_of_the_posterior():
    assert redo.bits(np.array([0.2, 0.2, 0.2, 0.2])) == pytest.approx(0)
    assert redo.bits(np.array([0.3, 0.0])) == pytest.approx(1)
    q = np.array([0.05, 0.15])
    assert redo.simulate(q, 400_000, np.random.default_rng(0)) == pytest.approx(redo.bits(q), abs=0.01)


def test_redo_rates_come_from_the_committed_report():
    found = redo.redo_rates("skin", 5)
    assert found is not None
    rates, pictures_judged = found
    assert pictures_judged > 0
    assert rates.max() == rates[0]
    assert ((rates >= 0) & (rates < 1)).all()


# decoys


def test_decoys_that_change_leave_the_real_word_alone():
    first, later = ("alice", "bob", "carol"), ("alice", "dave", "erin")
    assert decoys.intersection(first, later) == ("alice",)
    assert decoys.intersection(first, first) == first
    rows = decoys.run(TINY)
    assert pick(rows, "decoys that change", "names left after 3").value < 1.1
    assert pick(rows, "ours, the user's own marks", "candidates left, decoys changed").value == 1
    assert pick(rows, "ours, the user's own marks", "candidates left, decoys kept").value == 3
    assert pick(rows, "ours, the user's own marks", "warnings, decoys changed").value == 1
    assert pick(rows, "ours, the user's own marks", "warnings, decoys kept").value == 0


# sockets and headers


def test_no_socket_is_touched_after_extraction():
    before, after, requests = sockets.count_calls(EMOJI[0], handoff=24)
    assert before > 0
    assert (after, requests) == (0, 2)


def test_two_runs_alike_send_the_same_and_settings_show_in_their_own_fields(bundle: QuickBundle):
    plain = headers.captured(bundle)
    assert headers.moved(plain, headers.captured(bundle)) == set()
    assert headers.moved(plain, headers.captured(bundle, token="secret")) == {"header authorization"}
    assert headers.moved(plain, headers.captured(bundle, solver="ddim")) - headers._FOLLOWS == {"field solver"}


# detection


def test_scores_count_hits_refusals_and_false_finds():
    labels = {
        "an old woman": [("old", "age"), ("woman", "gender")],
        "a woman walks": [("walks", "gender")],
        "a portrait of Alice, a lady": [("Alice", "name"), ("lady", "gender")],
    }
    rows = [
        {"prompt": prompt, "mentions": [{"text": t, "attribute": a} for t, a in mentions]}
        for prompt, mentions in labels.items()
    ]
    scores = detection.detection_scores(rows)
    assert (scores["age"].recall, scores["age"].precision) == (1, 1)
    gender = scores["gender"]
    assert (gender.labelled, gender.refused, gender.found, gender.matched) == (3, 1, 2, 1)
    assert gender.recall == pytest.approx(2 / 3)
    assert (gender.recall_not_refused, gender.precision) == (0.5, 0.5)


def test_a_word_is_clear_only_if_every_candidate_has_it():
    assert detection.outcome("a woman with a hat", "woman", POLICY) == "hidden"
    assert detection.outcome("a woman with a hat", "hat", POLICY) == "clear"
    assert detection.outcome("a house", "house", POLICY) == "refused"
    assert shared_words(ours("a woman with a hat")) == {"a", "with", "hat"}


@pytest.mark.parametrize("kind", fuzz.TYPOS)
def test_a_typo_changes_one_word_and_nothing_else(kind: str):
    rng = np.random.default_rng(0)
    for _ in range(20):
        altered = fuzz.alter("a Woman with a womanly hat", "woman", kind, rng)
        assert altered is not None
        prompt, word = altered
        assert prompt == f"a {word} with a womanly hat"
        assert abs(len(word) - 5) <= 1
        assert word != "woman"


def test_labelled_prompts_give_rates_of_each_attribute(tmp_path: Path):
    row = {"prompt": "a woman on a bench", "mentions": [{"text": "woman", "attribute": "gender"}]}
    (tmp_path / "heldout.jsonl").write_text(json.dumps(row) + "\n")
    rows = detection.run(TINY, tmp_path)
    assert pick(rows, "ours: heldout", "recall, gender").value == 1
    assert {r.metric for r in rows if r.metric.startswith("sent in the clear")} == {
        f"sent in the clear, {kind}" for kind in (*fuzz.TYPOS, "paraphrase")
    }


# statistics and the command


def test_p_values_agree_with_known_ones():
    """Kolmogorov's limit law has Q(1.3581) = 0.05, and chi-square with one degree of freedom P(> 3.841) = 0.05."""
    n = 100_000
    a = (np.arange(n) + 0.5) / n
    shift = 1.3581 / math.sqrt(n / 2)
    d, p = stats.kolmogorov_smirnov(a, a + shift)
    assert d == pytest.approx(shift, rel=0.01)
    assert p == pytest.approx(0.05, abs=0.003)
    rng = np.random.default_rng(0)
    _, p = stats.chi_square(np.array([5000 + 98, 5000 - 98]), rng, 20_000)
    assert p == pytest.approx(0.05, abs=0.01)


def test_information_and_intervals():
    assert stats.mutual_information([0, 0, 1, 1], [5, 5, 7, 7]) == pytest.approx(1)
    assert stats.mutual_information([0, 0, 1, 1], [5, 7, 5, 7]) == pytest.approx(0)
    low, high = stats.wilson(50, 100)
    assert (round(low, 3), round(high, 3)) == (0.404, 0.596)


def test_the_command_prints_the_machine_and_a_table_and_writes_json(tmp_path: Path):
    out = tmp_path / "attacks.json"
    command = [sys.executable, "-m", "runtime_tests.benchmarks.attacks", "--quick", "--only", "redo", "decoys"]
    root = Path(__file__).parent.parent
    done = subprocess.run([*command, "--json", str(out)], capture_output=True, text=True, cwd=root, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert {r["attack"] for r in report["rows"]} == {"redo", "decoys"}
    assert {"python", "numpy", "onnxruntime", "cpu"} <= report["machine"].keys()
    assert {"attack", "target", "metric", "value", "chance", "n", "covered", "note"} <= report["rows"][0].keys()
    assert "numpy" in done.stdout
    assert table([Row(**r) for r in report["rows"]]) in done.stdout
