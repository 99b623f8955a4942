"""The device's steps and decoder against diffusers' pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline

from obclip.core.errors import InputError, RunError
from obclip.core.noise import initial_noise
from obclip.edge import Bundle
from obclip.edge.complete import Guidance, denoise, first_latents
from obclip.export.verify import psnr_db

PROMPT, GUIDANCE, SEED = "noto style emoji of a woman cook", 3.5, 11
SHAPE = (4, 16, 16)
THEIRS = {
    "dpm++2m": lambda config: DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++"),
    "ddim": DDIMScheduler.from_config,
}


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path) -> Bundle:
    return Bundle.open(bundle_folder)


def last(bundle: Bundle, solver: str, steps: int, x: np.ndarray, start: int = 0, x0=None) -> np.ndarray:
    guide = Guidance(bundle.encode(PROMPT), bundle.encode(""), GUIDANCE)
    for _, latents, _ in denoise(bundle, bundle.schedule(solver, steps), guide, x, start, SEED, x0):
        x = latents
    return x


@pytest.mark.parametrize("solver", THEIRS)
def test_a_whole_run_draws_what_diffusers_draws(bundle: Bundle, small_folder: Path, solver: str):
    steps = 12
    pipeline = StableDiffusionPipeline.from_pretrained(small_folder, safety_checker=None, requires_safety_checker=False)
    pipeline.scheduler = THEIRS[solver](pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.from_numpy(initial_noise(SEED, SHAPE))[None].float()
    theirs = pipeline(
        PROMPT, latents=latents, num_inference_steps=steps, guidance_scale=GUIDANCE, height=64, width=64,
        output_type="np",
    ).images[0]  # fmt: skip
    x = last(bundle, solver, steps, first_latents(bundle.schedule(solver, steps), SEED, SHAPE))
    ours = bundle.decode(x) / 255
    assert ours.std() > 0.01
    assert psnr_db(theirs.astype(np.float64), ours) > 40


@pytest.mark.parametrize("k", [1, 4, 11])
def test_with_history_the_hand_off_leaves_no_trace(bundle: Bundle, k: int):
    """Stopping after k steps and going on with latents and x0 is the same as never stopping."""
    schedule = bundle.schedule("dpm++2m", 12)
    guide = Guidance(bundle.encode(PROMPT), bundle.encode(""), GUIDANCE)
    run = list(denoise(bundle, schedule, guide, first_latents(schedule, SEED, SHAPE), 0, SEED))
    done, x, x0 = run[k - 1]
    assert done == k
    np.testing.assert_allclose(last(bundle, "dpm++2m", 12, x, k, x0), run[-1][1], rtol=0, atol=1e-5)


def test_without_history_the_solver_starts_at_first_order(bundle: Bundle, small_folder: Path):
    """diffusers, told to start at the hand-off timestep, is the oracle."""
    steps, k = 12, 5
    schedule = bundle.schedule("dpm++2m", steps)
    x = first_latents(schedule, SEED, SHAPE)
    pipeline = StableDiffusionPipeline.from_pretrained(small_folder, safety_checker=None, requires_safety_checker=False)
    scheduler = THEIRS["dpm++2m"](pipeline.scheduler.config)
    scheduler.set_timesteps(steps)
    ids = [torch.from_numpy(bundle.tokenise(text)) for text in (PROMPT, "")]
    sample = torch.from_numpy(x)[None].float()
    with torch.no_grad():
        text, negative = (pipeline.text_encoder(i).last_hidden_state for i in ids)
        for t in scheduler.timesteps[k:]:
            a, b = (pipeline.unet(sample, t, h).sample for h in (text, negative))
            sample = scheduler.step(b + GUIDANCE * (a - b), t, sample).prev_sample
    assert psnr_db(sample[0].numpy().astype(np.float64), last(bundle, "dpm++2m", steps, x, k)) > 40


def test_guidance_of_one_leaves_the_negative_branch_out(bundle: Bundle):
    schedule, text = bundle.schedule("ddim", 4), bundle.encode(PROMPT)
    x = first_latents(schedule, SEED, SHAPE)
    poison = {name: np.full_like(value, np.nan) for name, value in text.items()}
    *_, (_, latents, _) = denoise(bundle, schedule, Guidance(text, poison, 1.0), x, 0, SEED)
    assert np.isfinite(latents).all()
    with pytest.raises(RunError, match="not finite"):
        list(denoise(bundle, schedule, Guidance(text, poison, 2.0), x, 0, SEED))


def test_tokens_are_padded_and_never_cut(bundle: Bundle):
    ids = bundle.tokenise("a woman")
    assert (ids.shape, ids.dtype) == ((1, 32), np.int64)
    assert (ids[0, 5:] == bundle.manifest.pad_token_id).all()
    with pytest.raises(InputError, match=r"tokens, this model reads 32"):
        bundle.tokenise("cook " * 40)
