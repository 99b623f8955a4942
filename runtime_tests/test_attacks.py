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

from obclip.edge.oblivious import candidate_set, load_policy
from runtime_tests.baselines.word_swap import word_swap
from runtime_tests.benchmarks.attacks import (
    closure,
    context,
    decoys,
    detection,
    fuzz,
    presence,
    repeats,
    stats,
)
from runtime_tests.benchmarks.attacks.bayes import posterior, train
from runtime_tests.benchmarks.attacks.row import Row, table
from runtime_tests.benchmarks.attacks.sets import Known, examine, shared_words
from runtime_tests.benchmarks.attacks.settings import QUICK

POLICY = load_policy("default")
TINY = replace(QUICK, captions=200, users=400, runs=20, drawings=1, marks=4, fuzz=20)


def ours(prompt: str) -> tuple[str, ...]:
    return candidate_set(prompt, POLICY).prompts


def pick(rows: list[Row], target: str, metric: str) -> Row:
    (row,) = [r for r in rows if r.target == target and r.metric.startswith(metric)]
    return row


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
