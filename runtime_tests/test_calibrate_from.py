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
from obclip.edge.job import prepare as prepare_job
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
    settings = dict(steps=6, handoff=2, guidance=3.0, solver="ddim", negative_prompt="") | asked
    request = Request(
        pair=pair.digest, candidates=candidates, seed=seed, height=64, width=64, want_x0=True,
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
    assert (pair.steps_on_device, pair.guidance, pair.solver_on_device) == (6, 3.0, "ddim")
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
    bundle = Bundle.open(bundle_folder)
    assert setting.schedule.digest == bundle.schedule("ddim", 6).digest
    for t, b in zip((setting.calibrate[0], *setting.judge, setting.calibrate[1]), begun, strict=True):
        assert [p.step for p in t.passes] == [2, 2, 3, 3, 4, 4, 5, 5]
        guide = Guidance(bundle.encode(b.prompt), bundle.encode(""), 3.0)
        known = b.x0 if history else None
        *_, (_, last, _) = denoise(bundle, bundle.schedule("ddim", 6), guide, b.x, 2, b.seed, known)
        np.testing.assert_allclose(t.last, last, atol=1e-4)


@pytest.mark.parametrize(
    ("own", "asked"),
    [
        ({"device_solver": "ddim", "device_steps": 25, "timestep_shift": 8}, {"steps": 4, "handoff": 2}),
        ({"device_solver": "ddim", "device_steps": 25, "timestep_shift": 8}, {"steps": 40, "handoff": 20}),
        ({"device_solver": "ddim"}, {"steps": 16, "handoff": 8}),
        ({"device_steps": 25, "timestep_shift": 8}, {"solver": "ddim", "steps": 8, "handoff": 4}),
        ({}, {"steps": 16, "handoff": 8}),
    ],
)
def test_calibration_runs_the_steps_that_the_device_would(
    tmp_path: Path, bundle_folder: Path, own: dict[str, object], asked: dict[str, object]
):
    """Of T, k and solver that are not the pair's, `prepare` says which steps the device runs."""
    pair = replace(EMOJI, solver="euler", steps=8, handoff=4, **own)
    settings = {"solver": "euler"} | asked
    bundle = Bundle.open(bundle_folder)
    config = ScheduleConfig.from_dict(bundle.manifest.schedule_config)
    file = save(tmp_path / "l", SETS[0], 0, pair, config=config, **settings)
    job = prepare_job("a woman", bundle, pair=pair, policy="default", seed=0, **settings)
    found, begun = begun_by_cloud([file], 2, config, pair)
    assert {b.start for b in begun} == {job.start}
    assert device_schedule(found, bundle_folder).digest == job.device_schedule.digest


def test_many_candidates_are_taken_from_all_over_the_set(tmp_path: Path):
    names = tuple(f"person {i:02}" for i in range(30))
    found = [save(tmp_path / f"{i}", names, i) for i in range(2)]
    _, begun = begun_by_cloud(found, 7, CONFIG)
    assert [(b.seed, b.prompt[-2:]) for b in begun] == [
        (0, "00"), (1, "00"), (0, "10"), (1, "10"), (0, "19"), (1, "19"), (0, "29")
    ]  # fmt: skip


def test_the_other_branch_reads_the_negative_prompt(tmp_path: Path, bundle_folder: Path):
    bundle = Bundle.open(bundle_folder)
    config = ScheduleConfig.from_dict(bundle.manifest.schedule_config)
    file = save(tmp_path / "l", SETS[0], 0, negative_prompt="a red house", config=config)
    pair, begun = begun_by_cloud([file], 2, config)
    setting = prepare(pair, bundle_folder, (), 1.0, begun=begun)
    wanted = bundle.encode("a red house")["encoder_hidden_states"]
    np.testing.assert_allclose(setting.judge[0].branches[1]["encoder_hidden_states"], wanted, atol=1e-5)


def test_what_cannot_be_gone_on_from_is_said(files: tuple[Path, ...], tmp_path: Path, bundle_folder: Path):
    with pytest.raises(InputError, match=r"asked for with different settings: steps \(6, not 8\)"):
        begun_by_cloud([*files, save(tmp_path / "other", SETS[0], 2, steps=8)], 9, CONFIG)
    with pytest.raises(InputError, match="the device has 0 steps to run"):
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


def test_what_calibration_cannot_go_on_from_stops_an_export_before_its_work(run, small_folder: Path, tmp_path: Path):
    own = ScheduleConfig.of_model(small_folder)
    good = save(tmp_path / "l", SETS[0], 0, config=own)
    for files, size, said in (
        ([tmp_path / "nowhere"], (), "cannot be read"), ([good], ("--height", "128", "--width", "128"), "--height"),
        ([save(tmp_path / "one", ("a man",), 0, config=own)], (), "at least two latents"),
    ):  # fmt: skip
        words = [word for file in files for word in ("--calibrate-from", file)]
        code, _, told = run("export", small_folder, tmp_path / "b", "--precisions", "w8", *words, *size)
        assert (code, said in told, "exported (" in told) == (2, True, False), told
        assert not (tmp_path / "b").exists()


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
