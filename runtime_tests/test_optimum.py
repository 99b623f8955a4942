"""Bundles in optimum's pipeline, unchanged: another application draws from them what this one does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline
from optimum.onnxruntime import ORTStableDiffusionPipeline

from obclip.core.noise import initial_noise
from obclip.edge import Bundle
from obclip.edge.complete import Guidance, denoise, first_latents
from obclip.export.verify import psnr_db

PROMPT, GUIDANCE, SEED, STEPS = "noto style emoji of a woman cook", 3.5, 11, 12
SHAPE = (4, 16, 16)
SCHEDULERS = {
    "dpm++2m": lambda config: DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++"),
    "ddim": lambda config: DDIMScheduler.from_config(config, clip_sample=False),
}


def with_optimum(folder: Path, solver: str) -> np.ndarray:
    """float [H, W, 3] in 0..1, by optimum's pipeline and diffusers' scheduler, on our noise."""
    pipeline = ORTStableDiffusionPipeline.from_pretrained(folder)
    pipeline.scheduler = SCHEDULERS[solver](pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.from_numpy(initial_noise(SEED, SHAPE))[None].float()
    return pipeline(
        PROMPT, latents=latents, num_inference_steps=STEPS, guidance_scale=GUIDANCE, height=64, width=64,
        output_type="np",
    ).images[0].astype(np.float64)  # fmt: skip


def with_obclip(bundle: Bundle, solver: str) -> np.ndarray:
    schedule = bundle.schedule(solver, STEPS)
    guide = Guidance(bundle.encode(PROMPT), bundle.encode(""), GUIDANCE)
    x = first_latents(schedule, SEED, SHAPE)
    for _, latents, _ in denoise(bundle, schedule, guide, x, 0, SEED):
        x = latents
    return bundle.decode(x) / 255


@pytest.mark.parametrize("solver", SCHEDULERS)
def test_the_embedded_bundle_draws_the_same_picture_in_optimum(solver: str):
    bundle = Bundle.open("emoji")
    ours = with_obclip(bundle, solver)
    assert ours.std() > 0.1
    assert psnr_db(with_optimum(bundle.folder, solver), ours) > 40


@pytest.mark.parametrize("solver", SCHEDULERS)
def test_an_exported_bundle_draws_the_same_picture_in_optimum(bundle_folder: Path, solver: str):
    ours = with_obclip(Bundle.open(bundle_folder), solver)
    assert ours.std() > 0.01
    assert psnr_db(with_optimum(bundle_folder, solver), ours) > 40


def test_optimum_draws_what_diffusers_draws_from_the_source(bundle_folder: Path, small_folder: Path):
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    settings = {"num_inference_steps": 4, "guidance_scale": 3.5, "height": 64, "width": 64, "output_type": "np"}
    theirs = ORTStableDiffusionPipeline.from_pretrained(bundle_folder)
    source = StableDiffusionPipeline.from_pretrained(small_folder, safety_checker=None, requires_safety_checker=False)
    a, b = (np.asarray(p("a woman", latents=latents.clone(), **settings).images) for p in (theirs, source))
    assert a.std() > 0.01
    assert psnr_db(b, a) > 40
