"""Calibration that goes on from what a cloud really sent: files of `obclip generate --save-latents`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from obclip.core.errors import InputError
from obclip.core.pairs import Pair, load_pair
from obclip.core.received import Received
from obclip.core.schedule import build_schedule
from obclip.core.schedule_config import ScheduleConfig
from obclip.core.wire import Request, Response
from obclip.edge import Bundle
from obclip.edge.complete import Guidance, denoise
from obclip.export import Calibration
from obclip.export.quantise.begun import begun_by_cloud
from obclip.export.quantise.trajectories import device_schedule
from obclip.export.quantise.variants import prepare

pytestmark = pytest.mark.usefixtures("traces")

EMOJI = load_pair("emoji")
CONFIG = ScheduleConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SETS = (("emoji of a man", "emoji of a woman"), ("a man", "a person", "a woman"))


def save(path: Path, candidates: tuple[str, ...], seed: int, pair: Pair = EMOJI, **asked: object) -> Path:
    """A file as `generate --save-latents` writes it, with latents of the seed's."""
    config = asked.pop("config", CONFIG)
    settings = dict(steps=6, handoff=2, guidance=3.0, solver="ddim") | asked
    request = Request(
        pair=pair.digest, candidates=candidates, negative_prompt="", seed=seed, height=64, width=64, want_x0=True,
        **settings,
    )  # fmt: skip
    digest = build_schedule(config, request.solver, request.steps).digest
    x = np.random.default_rng(seed).standard_normal((2, len(candidates), 4, 16, 16)).astype(np.float16)
    Received(request, Response(x[0], x[1], request.handoff, digest, "b" * 64)).save(path)
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, ...]:
    return tuple(save(tmp_path / f"{i}.latents", candidates, i) for i, candidates in enumerate(SETS))


def test_latents_of_all_files_are_taken_in_turn_with_the_settings_they_were_asked_for_with(files: tuple[Path, ...]):
    pair, begun = begun_by_cloud(files, 9, CONFIG)
    assert (pair.steps, pair.handoff, pair.guidance, pair.solver) == (6, 2, 3.0, "ddim")
    assert [b.prompt for b in begun] == [SETS[0][0], SETS[1][0], SETS[0][1], SETS[1][1], SETS[1][2]]
    assert {b.start for b in begun} == {2}
    for b in begun:
        x = Received.load(files[b.seed]).response
        np.testing.assert_array_equal(b.x, x.latents[SETS[b.seed].index(b.prompt)].astype(np.float32))
        assert b.x0 is not None
        assert x.x0 is not None
        np.testing.assert_array_equal(b.x0, x.x0[SETS[b.seed].index(b.prompt)].astype(np.float32))
    assert [b.prompt for b in begun_by_cloud(files, 3, CONFIG)[1]] == [SETS[0][0], SETS[1][0], SETS[0][1]]


@pytest.mark.parametrize("history", [False, True])
def test_calibration_goes_on_as_the_device_does(bundle_folder: Path, files: tuple[Path, ...], history: bool):
    pair, begun = begun_by_cloud(files, 3, CONFIG)
    pair = replace(pair, handoff_history=history)
    setting = prepare(pair, bundle_folder, (), 1.0, begun=begun)
    assert len(setting.calibrate) + len(setting.judge) == 3
    assert setting.schedule.digest == device_schedule(pair, bundle_folder).digest
    bundle = Bundle.open(bundle_folder)
    for t, b in zip((setting.calibrate[0], *setting.judge, setting.calibrate[1]), begun, strict=True):
        assert [p.step for p in t.passes] == [2, 2, 3, 3, 4, 4, 5, 5]
        guide = Guidance(bundle.encode(b.prompt), bundle.encode(""), 3.0)
        known = b.x0 if history else None
        *_, (_, last, _) = denoise(bundle, bundle.schedule("ddim", 6), guide, b.x, 2, b.seed, known)
        np.testing.assert_allclose(t.last, last, atol=1e-4)


def test_a_device_with_steps_of_its_own_begins_where_the_cloud_ended(tmp_path: Path):
    own = replace(EMOJI, solver="lcm", steps=8, handoff=4, timestep_shift=8, device_solver="ddim", device_steps=25)
    file = save(tmp_path / "l", SETS[0], 0, own, steps=4, handoff=2, solver="lcm")
    assert {b.start for b in begun_by_cloud([file], 2, CONFIG, own)[1]} == {12}


def test_what_cannot_be_gone_on_from_is_said(files: tuple[Path, ...], tmp_path: Path, bundle_folder: Path):
    with pytest.raises(InputError, match=r"asked for with different settings: steps \(6, not 8\)"):
        begun_by_cloud([*files, save(tmp_path / "other", SETS[0], 2, steps=8)], 9, CONFIG)
    with pytest.raises(InputError, match="all 6 steps have run"):
        begun_by_cloud([save(tmp_path / "done", SETS[0], 2, handoff=6)], 9, CONFIG)
    with pytest.raises(InputError, match="another pair than sd14"):
        begun_by_cloud(files, 9, CONFIG, load_pair("sd14"))
    with pytest.raises(InputError, match="another schedule than this model's"):
        begun_by_cloud(files, 9, replace(CONFIG, beta_end=0.02))
    strange = save(tmp_path / "strange", SETS[0], 2, replace(EMOJI, guidance=2.5))
    with pytest.raises(InputError, match="name its file with --pair"):
        begun_by_cloud([strange], 9, CONFIG)
    with pytest.raises(InputError, match="nowhere cannot be read"):
        begun_by_cloud([tmp_path / "nowhere"], 9, CONFIG)
    with pytest.raises(InputError, match="leave one out"):
        Calibration(large=tmp_path, received=files)
    with pytest.raises(InputError, match="1 latents: at least two"):
        prepare(EMOJI, bundle_folder, (), 1.0, begun=begun_by_cloud(files, 1, CONFIG)[1])


def test_export_from_the_command_line(run, small_folder: Path, tmp_path: Path):
    own, out = ScheduleConfig.of_model(small_folder), tmp_path / "bundle"
    files = [save(tmp_path / f"{i}.latents", candidates, i, config=own) for i, candidates in enumerate(SETS)]
    words = ("export", small_folder, out, "--components", "text_encoder,unet,vae_decoder", "--no-verify")
    from_files = [word for file in files for word in ("--calibrate-from", file)]
    code, _, told = run(*words, "--precisions", "w8", "--picture-psnr", "20", *from_files, "--json")
    assert code == 0, told
    assert "calibration: 5 trajectories" in told
    listed = json.loads((out / "obclip.json").read_text())["variants"]
    assert ("unet", "w8") in {(v["component"], v["precision"]) for v in listed}
