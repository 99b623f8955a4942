"""The engine against diffusers' own pipeline, and plans against what is counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tiny import diffusers_latents
from torch.utils.flop_counter import FlopCounterMode

from obclip.cloud.cost import plan_macs, profile_unet
from obclip.cloud.engine import execute
from obclip.cloud.errors import CancelledError
from obclip.cloud.model import CloudModel, load_model
from obclip.cloud.plan import Branch, plain_plan
from obclip.cloud.unet import LayeredUNet
from obclip.core.errors import InputError, ModelMissingError, RunError
from obclip.core.pairs import load_pair
from obclip.core.wire import Request

PAIR = load_pair("emoji")
REQUEST = Request(
    pair=PAIR.digest, candidates=("a man", "a woman", "a woman firefighter"), negative_prompt="red", seed=11, height=64,
    width=64, steps=8, handoff=8, guidance=3.5, solver="ddim",
)  # fmt: skip


def run(model: CloudModel, request: Request, max_rows: int = 64):
    return execute(plain_plan(request, max_rows), request, model, PAIR)


def pipeline_latents(folder: Path, request: Request, prompt: str) -> np.ndarray:
    """The same steps by diffusers: its pipeline, its scheduler, our noise. float32 [4, h, w] after `handoff` steps."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    kind = {"ddim": DDIMScheduler, "dpm++2m": DPMSolverMultistepScheduler}[request.solver]
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
    return diffusers_latents(pipeline, request, prompt)


@pytest.mark.parametrize(
    ("solver", "handoff", "guidance"), [("ddim", 8, 3.5), ("dpm++2m", 8, 3.5), ("dpm++2m", 3, 1.0)]
)
def test_latents_equal_diffusers(model: CloudModel, large_folder: Path, solver: str, handoff: int, guidance: float):
    request = replace(REQUEST, solver=solver, handoff=handoff, guidance=guidance)
    ours = run(model, request)
    assert ours.latents.shape == (3, 4, 16, 16)
    for prompt, latents in zip(request.candidates, ours.latents, strict=True):
        theirs = pipeline_latents(large_folder, request, prompt)
        assert np.abs(latents.astype(np.float32) - theirs).max() < 2e-3 * max(1.0, np.abs(theirs).max())


def test_results_do_not_depend_on_the_width_of_passes(model: CloudModel):
    request = replace(REQUEST, handoff=3)
    wide, narrow = run(model, request, 64), run(model, request, 2)
    np.testing.assert_allclose(wide.latents.astype(float), narrow.latents.astype(float), atol=4e-3)


def test_a_candidates_latents_do_not_depend_on_its_companions(model: CloudModel):
    request = replace(REQUEST, handoff=3)
    alone = run(model, replace(request, candidates=("a woman",)))
    np.testing.assert_allclose(alone.latents[0].astype(float), run(model, request).latents[1].astype(float), atol=4e-3)


def test_x0_comes_when_asked_for(model: CloudModel):
    request = replace(REQUEST, handoff=8, solver="ddim", want_x0=True)
    response = run(model, request)
    # DDIM's last step to sigma = 0 returns x0 itself
    np.testing.assert_allclose(response.x0.astype(float), response.latents.astype(float), atol=2e-3)


def test_over_long_prompts_are_refused_not_cut(model: CloudModel):
    with pytest.raises(InputError, match="takes 32"):
        run(model, replace(REQUEST, candidates=("a woman " * 40,)))


def test_cancellation_stops_at_the_next_step(model: CloudModel):
    calls = []

    def cancelled() -> bool:
        calls.append(1)
        return len(calls) == 3

    with pytest.raises(CancelledError):
        execute(plain_plan(REQUEST, 64), REQUEST, model, PAIR, cancelled)
    assert len(calls) == 3


def test_numbers_that_are_not_finite_are_not_returned(model: CloudModel, large_folder: Path):
    broken = load_model(PAIR, "cpu", "float32", large_folder)
    with torch.no_grad():
        broken.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(RunError, match="finite"):
        run(broken, replace(REQUEST, handoff=1))


def test_a_plain_plan_is_every_candidate_in_both_branches():
    plan = plain_plan(replace(REQUEST, handoff=5), max_rows=4)
    assert plan.rows == 5 * 3 * 2
    assert plan.widest == 4
    for step in plan.steps:
        rows = [row for p in step.passes for row in p.rows]
        assert len(rows) == len(set(rows)) == 6
    unguided = plain_plan(replace(REQUEST, guidance=1.0), max_rows=64)
    assert {row.branch for p in unguided.steps[0].passes for row in p.rows} == {Branch.CONDITIONAL}


def test_predicted_cost_is_what_pytorch_counts(model: CloudModel):
    request = replace(REQUEST, handoff=2)
    plan = plain_plan(request, 64)
    profile = profile_unet(model.layered, PAIR.latent_shape, model.text.max_tokens)
    text = torch.zeros(6, model.text.max_tokens, model.unet.config.cross_attention_dim)
    with torch.inference_mode(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        counter = FlopCounterMode(display=False)
        with counter:
            for _ in plan.steps:
                model.unet(torch.zeros(6, 4, 16, 16), torch.zeros(6), text)
    assert plan_macs(plan, profile).total == pytest.approx(counter.get_total_flops() / 2, rel=0.01)


def test_profiles_without_weights_give_the_published_cost_of_stable_diffusion():
    """338.8 GMAC for Stable Diffusion 1.x at 512 px leaves the products of attention out; 402 has them."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)
        )
    row = profile_unet(LayeredUNet(unet), (4, 64, 64), 77).row
    assert row.layers / 1e9 == pytest.approx(338.8, rel=0.01)
    assert row.total / 1e9 == pytest.approx(402, rel=0.01)


@pytest.mark.parametrize(
    ("device", "dtype", "word"),
    [("cpu", "float16", "float16"), ("cpu", "int8", "int8"), ("cuda", "float32", "CUDA"), ("foo", "float32", "foo")],
)
def test_unusable_devices_and_dtypes_are_refused(large_folder: Path, device: str, dtype: str, word: str):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA GPU, so asking for one is no error")
    with pytest.raises(InputError, match=word):
        load_model(PAIR, device, dtype, large_folder)


def test_bfloat16_stays_near_float32(model: CloudModel, large_folder: Path):
    request = replace(REQUEST, handoff=3)
    half = run(load_model(PAIR, "cpu", "bfloat16", large_folder), request).latents.astype(float)
    full = run(model, request).latents.astype(float)
    assert np.sqrt(((half - full) ** 2).mean()) < 0.05 * np.sqrt((full**2).mean())


def test_folders_that_are_no_model_are_named(tmp_path: Path):
    with pytest.raises(ModelMissingError, match="unet"):
        load_model(PAIR, "cpu", source=tmp_path)
