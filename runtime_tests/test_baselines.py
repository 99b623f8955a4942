"""The prompt sanitizers keep their stated bounds, and what they draw follows them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runtime_tests.baselines.bigram import Bigram
from runtime_tests.baselines.cape import Cape, bucket_channel, closeness, fill_buckets, full_bound, size_bound, utility
from runtime_tests.baselines.mechanism import distances, privacy_loss
from runtime_tests.baselines.santext import Santext, santext, santext_channel, santext_plus, santext_plus_channel
from runtime_tests.baselines.words import Vocabulary

DELTA = math.sqrt(20)  # (2B)^lambda_L for B = 10

points = hnp.arrays(np.float64, st.tuples(st.integers(2, 7), st.integers(1, 4)), elements=st.floats(-3, 3, width=32))
budgets = st.floats(0, 20)


def chi_square(counts: np.ndarray, p: np.ndarray) -> tuple[float, float]:
    """Pearson's statistic and its 99.9 % quantile (Wilson and Hilferty's approximation)."""
    expected = counts.sum() * p
    k = len(p) - 1
    quantile = k * (1 - 2 / (9 * k) + 3.09 * math.sqrt(2 / (9 * k))) ** 3
    return float(((counts - expected) ** 2 / expected).sum()), quantile


# SANTEXT


@given(points, budgets)
def test_santext_rows_are_distributions(phi: np.ndarray, epsilon: float):
    channel = santext_channel(phi, epsilon)
    assert channel.min() >= 0
    assert np.allclose(channel.sum(1), 1, atol=1e-12)


@given(points, budgets)
def test_santext_keeps_metric_privacy_for_every_pair_and_output(phi: np.ndarray, epsilon: float):
    channel, d = santext_channel(phi, epsilon), distances(phi)
    for x, other in itertools.product(range(len(phi)), repeat=2):
        assert np.log(channel[x] / channel[other]).max() <= epsilon * d[x, other] + 1e-9


@given(points, budgets, st.data())
def test_santext_plus_keeps_metric_privacy_within_the_sensitive_set(
    phi: np.ndarray, epsilon: float, data: st.DataObject
):
    sensitive = data.draw(hnp.arrays(np.bool_, len(phi)).filter(np.any))
    channel, d = santext_plus_channel(phi, epsilon, sensitive), distances(phi)
    assert np.allclose(channel.sum(1), 1, atol=1e-12)
    assert (channel[sensitive][:, ~sensitive] == 0).all()
    inside = np.flatnonzero(sensitive)
    for x, other in itertools.product(inside, repeat=2):
        assert np.log(channel[x, inside] / channel[other, inside]).max() <= epsilon * d[x, other] + 1e-9


def test_santext_without_budget_is_uniform_and_with_all_of_it_the_identity():
    phi = np.random.default_rng(0).normal(size=(9, 5))
    assert np.allclose(santext_channel(phi, 0.0), 1 / 9, atol=1e-15)
    assert np.allclose(santext_channel(phi, 1e5), np.eye(9), atol=1e-12)
    assert (santext_channel(phi, math.inf) == np.eye(9)).all()


def test_santext_is_its_formula():
    phi = np.array([[0.0, 0.0], [3.0, 4.0]])  # 5 apart
    other = math.exp(-0.5 * 0.4 * 5)
    assert np.allclose(santext_channel(phi, 0.4), np.array([[1, other], [other, 1]]) / (1 + other))


def test_santext_plus_keeps_a_public_word_with_one_minus_p():
    phi = np.array([[0.0], [1.0], [2.0]])
    channel = santext_plus_channel(phi, 2.0, np.array([True, True, False]), p=0.3)
    weights = np.exp([-2.0, -1.0])
    assert np.allclose(channel[2], [*(0.3 * weights / weights.sum()), 0.7])


def test_santext_plus_with_every_word_sensitive_is_santext():
    phi = np.random.default_rng(1).normal(size=(6, 3))
    assert np.allclose(santext_plus_channel(phi, 3.0, np.ones(6, bool)), santext_channel(phi, 3.0))


def test_santext_refuses_what_is_no_mechanism():
    phi = np.zeros((2, 1))
    with pytest.raises(ValueError, match="negative"):
        santext_channel(phi, -1.0)
    with pytest.raises(ValueError, match="sensitive set is empty"):
        santext_plus_channel(phi, 1.0, np.zeros(2, bool))
    with pytest.raises(ValueError, match="probability"):
        santext_plus_channel(phi, 1.0, np.ones(2, bool), p=1.5)


# CAPE


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(2, 5), st.integers(2, 12)), elements=st.floats(0, DELTA)),
    budgets,
    st.integers(1, 50),
)
def test_cape_rows_are_distributions_and_its_loss_is_within_the_full_bound(u: np.ndarray, epsilon: float, count: int):
    channel = bucket_channel(u, epsilon, DELTA, count)
    assert np.allclose(channel.sum(1), 1, atol=1e-12)
    assert privacy_loss(channel) <= full_bound(u, epsilon, DELTA, count) + 1e-9


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(2, 5), st.integers(2, 12)), elements=st.floats(0, DELTA)),
    budgets,
    st.integers(1, 50),
)
def test_capes_published_bound_holds_where_all_inputs_fill_as_many_buckets(u: np.ndarray, epsilon: float, count: int):
    filled = (fill_buckets(u, DELTA, count).size > 0).sum(1)
    u = u[filled == filled[0]]
    assert privacy_loss(bucket_channel(u, epsilon, DELTA, count)) <= size_bound(u, epsilon, DELTA, count) + 1e-9


def test_capes_published_bound_fails_where_inputs_fill_another_number_of_buckets():
    """Why `full_bound` has a term more: x fills three buckets, one with the first word alone; x' fills four."""
    u = np.array([[0.5, 1.5, 1.5, 1.5, 2.5, 2.5], [0.5, 0.5, 0.5, 1.5, 2.5, 3.5]])
    loss = privacy_loss(bucket_channel(u, 0.01, 4.0, 4))
    assert loss > size_bound(u, 0.01, 4.0, 4) + 0.2
    assert loss <= full_bound(u, 0.01, 4.0, 4)


def test_cape_is_its_formula():
    u = utility(np.array([0.0, 30.0, -30.0]), np.array([[1.0, 0.5, 0.5]]), limit=8.0, lambda_l=0.5, lambda_d=2.0)
    assert np.allclose(u, [[math.sqrt(8), 1.0, 0.0]])  # clipped to 8 and -8, shifted by 8; distance squared
    channel = bucket_channel(np.array([[0.1, 0.3, 3.0]]), epsilon=2.0, delta=4.0, count=4)
    low, high = math.exp(2 * 0.2 / 8), math.exp(2 * 3.0 / 8)  # buckets {0.1, 0.3} and {3.0}
    assert np.allclose(channel, [[low / 2 / (low + high), low / 2 / (low + high), high / (low + high)]])


def test_cape_draws_all_buckets_alike_without_budget():
    channel = bucket_channel(np.array([[0.1, 0.3, 3.0]]), 0.0, 4.0, 4)
    assert np.allclose(channel, [[0.25, 0.25, 0.5]])


def test_cape_looks_at_public_words_only():
    words = Vocabulary.of([["a", "woman", "man", "judge"]])
    seen = []

    def logits(context, position):
        seen.append((tuple(context), position))
        return np.zeros(len(words))

    phi = np.random.default_rng(0).normal(size=(len(words), 3))
    cape = Cape(words, closeness(phi), logits, frozenset({"woman", "man"}), 5.0)
    sent = cape.sanitize(["a", "woman", "judge", "man", "unheard-of"], np.random.default_rng(0))
    assert seen == [(("a", None, "judge", None, "unheard-of"), 1), (("a", None, "judge", None, "unheard-of"), 3)]
    assert (sent[0], sent[2], sent[4]) == ("a", "judge", "unheard-of")


def test_closeness_lies_between_one_over_e_and_one():
    close = closeness(np.random.default_rng(0).normal(size=(8, 3)))
    assert np.allclose(np.diag(close), 1)
    assert close.min() == pytest.approx(1 / math.e)
    assert (closeness(np.zeros((3, 2))) == 1).all()


# the language model


def test_bigram_prefers_what_it_has_seen_between_two_words():
    sentences = [s.split() for s in ("a woman runs", "a man runs", "a dog barks", "the cat barks")]
    words = Vocabulary.of(sentences)
    logits = Bigram.train(words, sentences)(["a", None, "barks"], 1)
    assert words.words[int(logits.argmax())] == "dog"
    assert logits.mean() == pytest.approx(0)
    assert (
        np.argsort(logits)[-2:].tolist()
        != np.argsort(Bigram.train(words, sentences)(["a", None, "runs"], 1))[-2:].tolist()
    )


def test_bigram_is_a_ratio_of_smoothed_counts():
    words = Vocabulary(("a", "b"))
    logits = Bigram.train(words, [["a", "b"], ["a", "a"]], alpha=1.0)([None, None, None], 1)
    # nothing is known on either side: the words alone, counted after anything: a 3 + 3, b 1 + 3
    assert logits[0] - logits[1] == pytest.approx(math.log(6 / 4))


def test_bigram_does_not_look_at_the_word_itself():
    words = Vocabulary(("a", "b", "c"))
    model = Bigram.train(words, [["a", "b", "c"], ["c", "b", "a"]])
    assert (model(["a", "b", "c"], 1) == model(["a", "c", "c"], 1)).all()


# samplers


@pytest.mark.parametrize("method", ["santext", "santext+", "cape"])
def test_drawn_words_follow_the_channel(method: str):
    rng = np.random.default_rng(5)
    words = Vocabulary(tuple("abcdef"))
    phi, sensitive = rng.normal(size=(6, 3)), frozenset("abcd")
    model = Bigram.train(words, [list("abcdef"), list("fbd")])
    makers = {
        "santext": lambda epsilon: santext(words, phi, epsilon),
        "santext+": lambda epsilon: santext_plus(words, phi, epsilon, sensitive),
        "cape": lambda epsilon: Cape(words, closeness(phi), model, sensitive, epsilon),
    }
    mechanism, other = makers[method](2.0), makers[method](12.0)
    prompt, context = ("e", "b", "f"), ("e", None, "f")
    drawn = [mechanism.sanitize(prompt, rng)[1] for _ in range(6000)]
    row, wrong = (m.channel(context, 1)[words.index["b"]] for m in (mechanism, other))
    possible = row > 0
    counts = np.array([drawn.count(w) for w in words.words])
    assert counts[~possible].sum() == 0
    statistic, quantile = chi_square(counts[possible], row[possible])
    assert statistic < quantile
    assert chi_square(counts[possible], wrong[possible])[0] > 10 * quantile


def test_draws_are_a_function_of_the_seed():
    words = Vocabulary(tuple("abcdef"))
    mechanism = santext(words, np.random.default_rng(0).normal(size=(6, 3)), 1.0)
    first, again, other = (mechanism.sanitize("abcabcabc", np.random.default_rng(s)) for s in (1, 1, 2))
    assert first == again != other


def test_santext_turns_an_unknown_word_into_any_known_one():
    words = Vocabulary(("a", "b", "c"))
    mechanism = Santext(words, np.eye(3))
    rng = np.random.default_rng(0)
    counts = np.array([mechanism.sanitize(["zebra"] * 3000, rng).count(w) for w in words.words])
    statistic, quantile = chi_square(counts, np.full(3, 1 / 3))
    assert statistic < quantile
