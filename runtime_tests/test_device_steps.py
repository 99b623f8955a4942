"""Which passes the device runs, and that a bundle with device graphs gives what one without gives."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from diffusers import UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st

from obclip.core.errors import BundleError, InputError
from obclip.core.manifest import Manifest, Variant, list_files
from obclip.core.pairs import load_pair
from obclip.edge import Bundle
from obclip.edge.cli.output import saving_asked
from obclip.edge.complete import Guidance, denoise, first_latents
from obclip.edge.job import prepare
from obclip.edge.modes import DEVICE, HYBRID, OBLIVIOUS, SERVER
from obclip.edge.steps import PLAIN, Saving, default_saving, passes, plan_steps
from obclip.export.graphs import export_device_graphs
from runtime_tests.benchmarks.device_steps import MIN_PSNR_DB, SAVINGS, SETS, WITHIN, choose

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "device_steps.json"
PROMPT, SEED = "noto style emoji of a woman cook", 11


def test_passes_are_left_out_only_where_that_was_measured():
    emoji = load_pair("emoji")
    assert default_saving(emoji).every > 1
    assert default_saving(replace(emoji, policy="default")) == default_saving(emoji, HYBRID) == default_saving(emoji)
    assert default_saving(emoji, DEVICE) == default_saving(emoji, SERVER) == PLAIN
    assert default_saving(load_pair("realistic-vision")) == PLAIN
    assert default_saving(replace(emoji, guidance=3.0)) == PLAIN  # somebody's own pair in a file of that name


def test_what_is_not_asked_for_is_as_it_was_measured():
    emoji = load_pair("emoji")
    usual = default_saving(emoji)
    assert saving_asked(emoji, OBLIVIOUS, None, None) is None
    assert saving_asked(emoji, OBLIVIOUS, 3, None) == Saving(3, usual.guided_share)
    assert saving_asked(emoji, OBLIVIOUS, None, 0.9) == Saving(usual.every, 0.9)
    assert saving_asked(emoji, DEVICE, 1, None) == PLAIN


def test_the_graph_in_the_precision_wanted_runs_even_without_device_graphs_of_it():
    bundle = Bundle.open("emoji")
    assert bundle.pass_role == "full"
    whole = Variant("unet", "whole", "w8a16", "qnn", "unet/qnn_w8a16_whole.onnx", {}, {})
    bundle.manifest = replace(bundle.manifest, variants=(*bundle.manifest.variants, whole))
    bundle.options = replace(bundle.options, precision="w8a16")
    bundle.provider = SimpleNamespace(target="qnn")  # type: ignore[assignment]
    assert bundle.variant("unet", "whole") == whole
    assert (bundle.pass_role, bundle.can_be_shallow) == ("whole", False)
    with pytest.raises(InputError, match="no graphs for cached steps"):
        prepare(PROMPT, bundle, saving=Saving(2))
    assert prepare(PROMPT, bundle).saving.every == 1


@given(st.integers(0, 30), st.integers(1, 30), st.integers(1, 8), st.floats(0, 1))
def test_every_step_once_and_features_are_there_before_they_are_taken(start: int, count: int, every: int, share: float):
    steps = plan_steps(start, start + count, Saving(every, share))
    assert [s.index for s in steps] == list(range(start, start + count))
    assert not steps[0].shallow
    assert not steps[-1].shallow
    assert [s.guided for s in steps] == sorted((s.guided for s in steps), reverse=True)  # guidance ends, once
    since = 0
    for s in steps:
        since = since + 1 if s.shallow else 0
        assert since < every
    whole, shallow = passes(steps)
    assert whole + shallow == count + sum(s.guided for s in steps)
    assert passes(steps, guided=False) == (sum(not s.shallow for s in steps), sum(s.shallow for s in steps))


def test_nothing_is_left_out_where_nothing_is_said():
    assert passes(plan_steps(10, 25)) == (30, 0)
    assert passes(plan_steps(10, 25, Saving(2))) == (16, 14)
    assert passes(plan_steps(10, 25, Saving(2), can_be_shallow=False)) == (30, 0)
    assert passes(plan_steps(10, 25, Saving(1, 0.6))) == (15 + 9, 0)
    assert [str(s) for s in (PLAIN, Saving(3, 0.6))] == [
        "plain", "one step in 3 whole, guided for 60% of the steps"
    ]  # fmt: skip


@pytest.mark.parametrize("wrong", [{"every": 0}, {"guided_share": 1.1}, {"guided_share": -0.1}])
def test_savings_that_are_none(wrong: dict[str, float]):
    with pytest.raises(InputError, match=r"--(whole-every|guided-share)\) is .*wanted"):
        Saving(**wrong)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def plain(bundle_folder: Path) -> Bundle:
    return Bundle.open(bundle_folder)


@pytest.fixture(scope="module")
def graphs(bundle_folder: Path, small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("graphs") / "bundle"
    shutil.copytree(bundle_folder, folder)
    unet = UNet2DConditionModel.from_pretrained(small_folder / "unet").eval()
    variants = export_device_graphs(unet, 16, 16, 32, folder / "unet", ("cpu",), depth=1)
    replace(Manifest.read(folder), variants=variants, files=list_files(folder)).write(folder)
    return Bundle.open(folder)


def last(bundle: Bundle, scale: float, saving: Saving = PLAIN, start: int = 0) -> np.ndarray:
    schedule = bundle.schedule("dpm++2m", 12)
    guide = Guidance(bundle.encode(PROMPT), bundle.encode(""), scale)
    x = first_latents(schedule, SEED, bundle.latent_shape)
    *_, (_, x, _) = denoise(bundle, schedule, guide, x, start, SEED, None, saving)
    return x


@pytest.mark.parametrize("scale", [1.0, 3.5])
def test_device_graphs_draw_the_same(plain: Bundle, graphs: Bundle, scale: float):
    wanted = last(plain, scale)
    assert np.linalg.norm(last(graphs, scale) - wanted) < 1e-3 * np.linalg.norm(wanted)


def test_late_guidance_is_the_same_on_either_bundle_and_something_else_than_plain(plain: Bundle, graphs: Bundle):
    saving = Saving(1, 0.5)
    wanted = last(plain, 3.5, saving)
    assert np.linalg.norm(last(graphs, 3.5, saving) - wanted) < 1e-3 * np.linalg.norm(wanted)
    assert np.linalg.norm(last(plain, 3.5) - wanted) > 1e-2 * np.linalg.norm(wanted)
    assert np.linalg.norm(last(plain, 3.5, Saving(1, 0.0)) - last(plain, 1.0)) == 0


def test_cached_steps_change_little_and_take_a_bundle_that_has_the_graphs(plain: Bundle, graphs: Bundle):
    wanted, saved = last(graphs, 3.5), last(graphs, 3.5, Saving(2))
    difference = np.linalg.norm(saved - wanted) / np.linalg.norm(wanted)
    assert 1e-4 < difference < 0.5  # random weights change much from step to step
    np.testing.assert_array_equal(last(plain, 3.5, Saving(2)), last(plain, 3.5))


def test_cached_steps_asked_for_without_their_graphs_are_refused(plain: Bundle, graphs: Bundle):
    with pytest.raises(InputError, match="no graphs for cached steps"):
        prepare(PROMPT, plain, saving=Saving(2))
    assert prepare(PROMPT, plain).saving == replace(default_saving(load_pair("emoji")), every=1)
    assert prepare(PROMPT, graphs).saving == default_saving(load_pair("emoji"))


def test_the_embedded_pairs_default_is_what_the_rule_takes_from_what_was_measured():
    found = json.loads(RESULTS.read_text())
    measured = {str(s) for s in SAVINGS}
    for n, k in itertools.product(SETS, (5, 10)):
        assert {r["saving"] for r in found["rows"] if (r["n"], r["k"]) == (n, k)} == measured
    assert (found["within"], found["min_psnr_db"]) == (WITHIN, MIN_PSNR_DB)
    assert str(default_saving(load_pair("emoji"))) == choose(found["rows"]) == found["default"]


def test_a_graph_that_a_bundle_does_not_have(plain: Bundle):
    with pytest.raises(BundleError, match="no graph full of unet"):
        plain.session("unet", "full")
