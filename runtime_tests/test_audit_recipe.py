"""The audit's model: what it holds, how it is fitted and trained, and what is refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from data import FOLDER, needs_coco

from obclip.core.errors import InputError, ObclipError
from obclip.edge.audit import AuditModel
from obclip.edge.oblivious import candidate_set, load_policy
from obclip.export.audit_recipe.captions import parse_captions, read_captions, split_of
from obclip.export.audit_recipe.fit import best_temperature, fit
from obclip.export.audit_recipe.measure import reliability
from obclip.export.audit_recipe.train import train_audit

DEFAULT = load_policy("default")
SHIPPED = AuditModel.load()
CAPTIONS = FOLDER / "prompts" / "coco_person.jsonl"


def associations() -> dict[str, dict[str, dict[str, float]]]:
    return tomllib.loads(resources.files("obclip.edge.audit").joinpath("associations.toml").read_text("utf8"))


def test_the_shipped_model_holds_the_shipped_judgements():
    """Where no caption has a judged word, its weight is the judgement itself."""
    checked = 0
    for head in SHIPPED.heads:
        for value, words in associations()[head.attribute].items():
            column = {"old": "older"}.get(value, value) if "child" in head.values else value
            for word, strength in words.items():
                i = SHIPPED.vocabulary.index[word]
                if column in head.values and head.captions[i] == 0:
                    assert head.judged[i]
                    assert head.weights[i, head.values.index(column)] == pytest.approx(strength, abs=0.01)
                    checked += 1
    assert checked > 300


def test_no_judgement_is_on_a_word_that_the_parser_replaces():
    words = {w for values in associations().values() for table in values.values() for w in table}
    assert len(words) >= 120
    assert not words & set(DEFAULT.nouns)


def test_fitting_one_word_gives_its_log_odds_and_leaves_unseen_words_alone():
    """Nine of ten men and one of ten women have the word: the maximum likelihood weight is log 81."""
    y = np.repeat([0, 1], 1000)
    x = np.zeros((2000, 2))
    x[:900, 0] = x[1000:1100, 0] = 1
    start = np.array([[0.0, 0.0], [2.5, 0.0]])
    weights, bias = fit(x, y, start, strength=1e-6)
    assert weights[0, 0] - weights[0, 1] == pytest.approx(math.log(81), abs=1e-3)
    assert bias[1] - bias[0] == pytest.approx(math.log(9), abs=1e-3)
    np.testing.assert_array_equal(weights[1], start[1])
    pulled, _ = fit(x, y, np.array([[3.0, 0.0], [0.0, 0.0]]), strength=1e6)
    assert pulled[0, 0] - pulled[0, 1] == pytest.approx(3.0, abs=0.01)


def test_the_temperature_undoes_overconfidence():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 2)) * 2
    y = (rng.random(20_000) < 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))).astype(np.int64)
    assert best_temperature(logits * 2, y) == pytest.approx(2, rel=0.05)
    assert best_temperature(logits / 3, y) == 1.0
    assert best_temperature(logits[:0], y[:0]) == 1.0


def test_reliability_is_the_gap_between_confidence_and_accuracy():
    error, table = reliability(np.array([0.85] * 10 + [0.55] * 10), np.array([1.0] * 10 + [0.0] * 10))
    assert error == pytest.approx((0.15 + 0.55) / 2)
    assert [row["rows"] for row in table] == [10, 10]


@needs_coco
def test_the_shipped_model_does_on_held_out_captions_what_its_card_says():
    """Computed again here, from probabilities alone."""
    card = json.loads(resources.files("obclip.edge.audit").joinpath("card.json").read_text("utf8"))
    loss, confidence, right = [], [], []
    for text in read_captions(CAPTIONS):
        try:
            found = candidate_set(text, DEFAULT)
        except ObclipError:
            continue
        if not found.attributes or split_of(found.prompts) != "held_out":
            continue
        for label, chances in SHIPPED.posterior(found, "captions").attributes.items():
            if label.startswith("gender"):
                truth = found.attributes[label]
                loss.append(-math.log(chances[truth]))
                confidence.append(max(chances.values()))
                right.append(chances[truth] == max(chances.values()))
    said = next(h["held_out"] for h in card["heads"] if h["attribute"] == "gender")
    assert len(loss) == pytest.approx(said["rows"], rel=0.02)
    assert np.mean(loss) == pytest.approx(said["log_loss"], abs=0.01)
    assert np.mean(right) == pytest.approx(said["accuracy"], abs=0.01)
    assert np.mean(confidence) == pytest.approx(np.mean(right), abs=0.05)  # calibrated
    bins = np.minimum((np.array(confidence) * 10).astype(int), 9)
    error = sum(abs(np.sum((np.array(confidence) - np.array(right))[bins == b])) for b in range(10)) / len(bins)
    assert error == pytest.approx(said["ece"], abs=0.01)
    assert error < 0.06
    assert said["gain_95"][0] > 0.03  # the words do say something, and by how much the card tells


TINY = [
    {"prompt": f"a {noun} {thing} number {i}"}
    for i in range(90)
    for noun, thing in (("man", "in a tie"), ("woman", "with a purse"), ("man", "on a bench"), ("girl", "at a table"))
]


@pytest.fixture(scope="module")
def tiny_captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("captions") / "tiny.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in TINY))
    return path


def test_training_is_the_same_every_time_and_learns(tiny_captions: Path, tmp_path: Path):
    command = [sys.executable, "-m", "obclip.export.audit_recipe", "--captions", str(tiny_captions), "--out"]
    done = subprocess.run([*command, str(tmp_path / "a")], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    names = ("model.safetensors", "card.json")
    first = [(tmp_path / "a" / name).read_bytes() for name in names]
    card = train_audit(tiny_captions, tmp_path / "a")  # over its own result
    assert [(tmp_path / "a" / name).read_bytes() for name in names] == first
    gender = card["heads"][0]
    assert gender["learned"]
    assert gender["held_out"]["log_loss"] < gender["held_out"]["log_loss_of_base_rate"] - 0.1
    assert not card["heads"][3]["learned"]
    posterior = AuditModel.load(tmp_path / "a").posterior(candidate_set("a man with a purse", DEFAULT), "uniform")
    assert posterior.attributes["gender"]["woman"] > 0.9


def test_captions_of_one_set_are_in_one_split():
    captions, refused = parse_captions(
        ["A man in a tie", "a woman in a tie", "a lighthouse", "she looks old"], "default"
    )
    assert len(captions) == 2
    assert refused == 1
    assert captions[0].split == captions[1].split
    assert captions[0].truth != captions[1].truth


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[gender.man]\n"one two three four" = 1.0\n', "one to three words"),
        ("[gender.man]\nbeard = 9\n", "from 0 to 6"),
        ("[gender.robot]\nbolt = 1\n", "robot"),
        ("[gender", "cannot be read"),
    ],
)
def test_wrong_associations_are_refused(text: str, reason: str, tiny_captions: Path, tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=reason):
        train_audit(tiny_captions, tmp_path / "out", associations=path)
    assert not (tmp_path / "out").exists()


def test_wrong_captions_are_refused(tmp_path: Path):
    path = tmp_path / "captions.jsonl"
    for text in ('{"text": "a man"}', "a man", '{"prompt": "a lighthouse"}'):
        path.write_text(text)
        with pytest.raises(InputError, match="captions"):
            train_audit(path, tmp_path / "out")
