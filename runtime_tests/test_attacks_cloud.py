"""What a cloud sees and can do beside the words: order, timing, retries, marks, links, second tries, sockets."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from obclip.cloud.text import Encoder
from obclip.edge.oblivious import candidate_set, load_policy
from runtime_tests.benchmarks.attacks import (
    degraded,
    headers,
    inversion,
    linkage,
    marking,
    order,
    pictures,
    redo,
    retries,
    sockets,
    stats,
    timing,
)
from runtime_tests.benchmarks.attacks.loopback import QuickBundle, quick_bundle
from runtime_tests.benchmarks.attacks.sets import examine
from runtime_tests.benchmarks.pair_quality import cloud_steps

POLICY = load_policy("default")
EMOJI = candidate_set("noto style emoji of a cook with dark skin tone", load_policy("emoji")).prompts


@pytest.fixture(scope="module")
def bundle() -> QuickBundle:
    return quick_bundle()


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
