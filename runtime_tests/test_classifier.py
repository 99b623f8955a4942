"""The judge of the embedded pair: its arithmetic against closed forms, its training, and what it was shipped as."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data import FOLDER, needs_emoji
from hypothesis import given
from hypothesis import strategies as st

from obclip.core.errors import InputError, ModelMissingError
from obclip.core.pairs import load_pair, resolve_source
from obclip.export.classifier import frechet_distance, load_classifier
from obclip.export.classifier.measure import bootstrap, calibration_error, hits, score, worst
from obclip.export.classifier.train import augment
from obclip.export.recipe.data import load_drawings


@given(
    a=st.lists(st.floats(0.01, 9), min_size=3, max_size=3),
    b=st.lists(st.floats(0.01, 9), min_size=3, max_size=3),
    shift=st.floats(-3, 3),
    seed=st.integers(0, 99),
)
def test_frechet_distance_of_covariances_that_commute(a: list[float], b: list[float], shift: float, seed: int):
    """There it is |m - m'|² + Σ (√a - √b)², in whatever basis."""
    basis, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
    first, second = ((basis * np.array(v)) @ basis.T for v in (a, b))
    expected = 3 * shift**2 + sum((np.sqrt(x) - np.sqrt(y)) ** 2 for x, y in zip(a, b, strict=True))
    assert frechet_distance(np.zeros(3), first, np.full(3, shift), second) == pytest.approx(expected, abs=1e-6)


def test_frechet_distance_is_symmetric_when_nothing_commutes():
    rng = np.random.default_rng(0)
    first, second = (np.cov(rng.standard_normal((50, 4)) @ rng.standard_normal((4, 4)), rowvar=False) for _ in "ab")
    zero, one = np.zeros(4), np.ones(4)
    assert frechet_distance(zero, first, zero, first) == pytest.approx(0, abs=1e-8)
    there, back = frechet_distance(zero, first, one, second), frechet_distance(one, second, zero, first)
    assert there == pytest.approx(back)
    assert there > 4


def row(**values: object) -> dict[str, object]:
    plain = {"gender": "woman", "gender_delta": 9.0, "skin": "dark", "skin_delta": 9.0, "age": "adult"}
    return {**plain, "activity": "portrait", "style": "noto", **values}


def test_rows_that_cannot_show_an_attribute_do_not_count():
    rows = [row(), row(gender="person"), row(gender_delta=0.2), row(skin="default"), row(skin_delta=None)]
    labels = {"gender": ["woman"] * 5, "skin": ["dark"] * 5}
    np.testing.assert_array_equal(hits(rows, labels, "gender"), [1, np.nan, np.nan, 1, 1])
    np.testing.assert_array_equal(hits(rows, labels, "skin"), [1, 1, 1, np.nan, np.nan])


def test_age_is_balanced_over_its_values_and_counts_portraits_alone():
    rows = [row() for _ in range(8)] + [row(age="older"), row(age="child"), row(activity="cook")]
    labels = {"age": ["adult"] * 8 + ["adult", "child", "older"]}
    right = hits(rows, labels, "age")
    assert score(rows, right, "age") == pytest.approx((1 + 0 + 1) / 3)
    assert worst(rows, right, "age") == ("older", 0.0)
    low, high = bootstrap(rows, right, "age", np.random.default_rng(0), 100)
    assert 0.3 < low <= high <= 1


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    odds = np.array([[0.8, 0.2]] * 10)
    assert calibration_error(odds, np.array([1.0] * 8 + [0.0] * 2)) == pytest.approx(0)
    assert calibration_error(odds, np.zeros(10)) == pytest.approx(0.8)


def test_augmentation_keeps_white_outside_and_colours_inside():
    x = torch.ones(4, 3, 64, 64)
    x[:, 0, 16:48, 16:48] = -0.5
    y = augment(x, torch.Generator().manual_seed(0))
    assert y.shape == x.shape
    assert (y[:, :, :4, :4] - 1).abs().mean() < 0.1
    assert (y[:, 0, 30:34, 30:34] + 0.5).abs().mean() < 0.1
    assert not torch.equal(y[0], y[1])


def test_wrong_images_and_missing_weights_are_named(tmp_path: Path):
    judge = load_classifier()
    with pytest.raises(InputError, match="uint8"):
        judge.run(np.zeros((2, 64, 64, 3), np.float32))
    with pytest.raises(InputError, match="64, 64, 3"):
        judge.run(np.zeros((2, 32, 32, 3), np.uint8))
    with pytest.raises(ModelMissingError, match="trains one"):
        load_classifier(tmp_path)


@needs_emoji
def test_the_shipped_classifier_reads_held_out_drawings_as_its_card_says():
    judge = load_classifier()
    drawings = load_drawings(FOLDER / "emoji", 64).split("test_iid")
    said = judge.classify(drawings.images)
    for head in ("gender", "skin", "activity"):
        accuracy = score(drawings.rows, hits(drawings.rows, said, head), head)
        assert accuracy == pytest.approx(judge.card["held_out"]["test_iid"][head]["accuracy"], abs=0.01)
        assert accuracy > 0.9
    grey = np.full_like(drawings.images, 128)
    assert judge.distance(judge.run(drawings.images)[0]) < judge.distance(judge.run(grey)[0])


@needs_emoji
@pytest.mark.slow
def test_training_writes_a_classifier_that_loads(tmp_path: Path):
    """Two steps on a few real drawings: the command, its files, the card."""
    data = tmp_path / "data"
    data.mkdir()
    lines = [
        line for line in (FOLDER / "emoji" / "person.jsonl").read_text("utf8").splitlines() if '"emojitwo"' in line
    ]
    (data / "person.jsonl").write_text("\n".join(lines))
    (data / "person128_emojitwo.webp").symlink_to(FOLDER / "emoji" / "person128_emojitwo.webp")
    vae = resolve_source(load_pair("emoji").cloud, "cloud") / "vae"
    command = [
        sys.executable,
        "-m",
        "obclip.export.classifier",
        "--data",
        data,
        "--vae",
        vae,
        "--out",
        tmp_path / "out",
    ]
    done = subprocess.run(
        [*map(str, command), "--steps", "2", "--batch", "8", "--device", "cpu"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    judge = load_classifier(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "classifier.json").read_text())["steps"] == 2
    assert set(judge.classify(np.zeros((1, 64, 64, 3), np.uint8))) == {"gender", "skin", "age", "activity", "style"}
