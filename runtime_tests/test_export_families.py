"""Bundles of the other families in optimum's pipelines, and exports that are killed or run out of disk."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from optimum.onnxruntime import (
    ORTLatentConsistencyModelPipeline,
    ORTStableDiffusionPipeline,
    ORTStableDiffusionXLPipeline,
)
from tiny import make_sd_folder, make_sdxl_folder

import obclip.export.bundle as bundle_module
from obclip.core.errors import RunError
from obclip.core.manifest import Manifest
from obclip.core.noise import initial_noise
from obclip.core.pairs import load_pair
from obclip.edge import Bundle
from obclip.edge.bench import run_bench
from obclip.edge.complete import Guidance, denoise, first_latents
from obclip.export import export_bundle
from obclip.export.verify import psnr_db

pytestmark = pytest.mark.usefixtures("traces")


def make_lcm_folder(path: Path) -> Path:
    """A latent consistency model: the guidance scale is an input of its UNet."""
    made = StableDiffusionPipeline.from_pretrained(make_sd_folder(path / "sd"))
    torch.manual_seed(3)
    unet = UNet2DConditionModel.from_config({**made.unet.config, "time_cond_proj_dim": 16})
    LatentConsistencyModelPipeline(
        vae=made.vae, text_encoder=made.text_encoder, tokenizer=made.tokenizer, unet=unet,
        scheduler=LCMScheduler.from_config(made.scheduler.config), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(path / "lcm")  # fmt: skip
    return path / "lcm"


FAMILIES: dict[str, tuple[Callable[[Path], Path], Any, Any, str]] = {
    "no middle block": (
        lambda p: make_sd_folder(p / "sd", mid=False, vae="kl"),
        StableDiffusionPipeline, ORTStableDiffusionPipeline, "sd",
    ),
    "SDXL": (lambda p: make_sdxl_folder(p / "xl"), StableDiffusionXLPipeline, ORTStableDiffusionXLPipeline, "sdxl"),
    "LCM": (make_lcm_folder, LatentConsistencyModelPipeline, ORTLatentConsistencyModelPipeline, "lcm"),
}  # fmt: skip


@pytest.fixture(
    scope="module",
    params=["SDXL", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "SDXL")],
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A family's pipelines (diffusers', optimum's), its name, the source, and its bundle with device graphs."""
    make, theirs, optimums, name = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("family")
    source = make(folder)
    export_bundle(source, folder / "bundle", targets=("cpu",))
    return theirs, optimums, name, source, folder / "bundle"


def test_optimum_draws_from_the_bundle_what_diffusers_draws_from_the_source(exported):
    theirs, optimums, name, source, bundle = exported
    manifest = Manifest.read(bundle)
    assert manifest.family == name
    assert {v.role for v in manifest.variants} == {"time", "text", "full", "shallow"}
    for variant in manifest.variants:  # the graphs hold together without the exporter
        ort.InferenceSession(bundle / variant.file, providers=["CPUExecutionProvider"])
    pictures = []
    for kind, folder in ((theirs, source), (optimums, bundle)):
        pipeline = kind.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        settings: dict[str, Any] = {"generator": torch.Generator().manual_seed(1)} if name == "lcm" else {}
        made = pipeline(
            "a woman cook", latents=latents, num_inference_steps=4, guidance_scale=3.5, height=64, width=64,
            output_type="np", **settings,
        )  # fmt: skip
        pictures.append(np.asarray(made.images, np.float64))
    assert pictures[0].std() > 0.01
    assert psnr_db(*pictures) > 40


def test_the_device_draws_what_diffusers_draws(exported):
    """By device graphs and by the whole graph, with guidance, through every step; latent consistency in one, for with
    more both add noise of their own."""
    theirs, _, name, source, folder = exported
    pipeline = theirs.from_pretrained(source)
    pipeline.set_progress_bar_config(disable=True)
    if name == "sdxl":
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    noise, steps = initial_noise(3, (4, 16, 16)), 1 if name == "lcm" else 6
    wanted = pipeline(
        "a woman cook", latents=torch.from_numpy(noise)[None].float(), num_inference_steps=steps, guidance_scale=3.5,
        height=64, width=64, output_type="np",
    ).images[0]  # fmt: skip
    assert wanted.std() > 0.01
    graphs = Bundle.open(folder)
    for bundle in (graphs, Bundle(folder, replace(graphs.manifest, variants=()), graphs.options)):
        schedule = bundle.schedule("lcm" if name == "lcm" else "ddim", steps)
        guide = Guidance(bundle.encode("a woman cook"), bundle.encode(""), 3.5)
        x = first_latents(schedule, 3, (4, 16, 16))
        for _, latents, _ in denoise(bundle, schedule, guide, x, 0, 3):
            x = latents
        sample = bundle._decode(x / np.float32(bundle.manifest.latent_scale))  # not yet rounded to bytes
        assert psnr_db(np.asarray(wanted, np.float64), (sample.transpose(1, 2, 0) / 2 + 0.5).clip(0, 1)) > 60


def test_bench_measures_every_family_without_device_graphs(exported, monkeypatch: pytest.MonkeyPatch):
    folder = exported[-1]
    graphs = Bundle.open(folder)
    monkeypatch.setattr(
        Bundle, "open", lambda *_: Bundle(folder, replace(graphs.manifest, variants=()), graphs.options)
    )
    report = run_bench(folder, load_pair("emoji"), runs=1, warmup=0, handoff=24)
    assert all(t.median_s > 0 for t in report.timings)


def fill_the_disk(monkeypatch: pytest.MonkeyPatch, at: str) -> Callable[[], None]:
    """Until the function that it returns is called, there is no room for the part `at`."""
    whole = bundle_module.export_onnx

    def full(part: Any, *rest: Any) -> None:
        if part.name == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(part, *rest)

    monkeypatch.setattr(bundle_module, "export_onnx", full)
    return lambda: monkeypatch.setattr(bundle_module, "export_onnx", whole)


def test_a_full_disk_keeps_what_is_done(small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    phases: list[Any] = []
    make_room = fill_the_disk(monkeypatch, "vae_decoder")
    with pytest.raises(RunError, match=r"No space left.*what is done is kept"):
        export_bundle(small_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    make_room()
    export_bundle(small_folder, tmp_path / "out", progress=lambda part, phase, _: phases.append((part, phase)))
    assert [part for part, phase in phases if phase == "done before"] == ["text_encoder", "unet"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    Manifest.read(tmp_path / "out").verify_files(tmp_path / "out")


def test_other_options_take_nothing_over(small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    phases: list[Any] = []
    make_room = fill_the_disk(monkeypatch, "unet")
    with pytest.raises(RunError):
        export_bundle(small_folder, tmp_path / "out")
    make_room()
    export_bundle(small_folder, tmp_path / "out", weights="fp16", progress=lambda *told: phases.append(told[1]))
    assert "done before" not in phases


def test_another_index_takes_nothing_over(small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It names the class of each part."""
    phases: list[Any] = []
    fill_the_disk(monkeypatch, "unet")
    source = tmp_path / "model"
    shutil.copytree(small_folder, source)
    for edited in (False, True):
        if edited:
            index = json.loads((source / "model_index.json").read_text())
            (source / "model_index.json").write_text(json.dumps(index | {"_diffusers_version": "0"}))
        with pytest.raises(RunError):
            export_bundle(source, tmp_path / "out", progress=lambda *told: phases.append(told[1]))
    assert "done before" not in phases


def test_a_killed_export_leaves_no_bundle_and_goes_on(small_folder: Path, tmp_path: Path):
    """A real process, killed once it says that the UNet is done."""
    out = tmp_path / "out"
    program = "from obclip.edge.cli import main; main()"
    command = [sys.executable, "-c", program, "export", str(small_folder), str(out), "--targets", "none"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any(line.startswith("unet: verified") for line in process.stderr)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "text_encoder: done before" in done.stderr
    own = re.compile(r"(text_encoder|unet|vae_decoder|vae_encoder|completion): .* \(\d+\.\d s\)")
    assert [line for line in done.stderr.splitlines() if not own.fullmatch(line)] == []  # of no library's
    assert len(json.loads(done.stdout)["components"]) == 4
    Manifest.read(out).verify_files(out)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
