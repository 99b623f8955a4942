"""Coefficient tables against diffusers' schedulers, step by step, over their configurations."""

from __future__ import annotations

import inspect
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from obclip.core.errors import BundleError, InputError
from obclip.core.noise import step_noise
from obclip.core.schedule import SOLVERS, Schedule, build_schedule
from obclip.core.schedule_config import ScheduleConfig, scheduler_settings

SHAPE = (2, 4, 6, 5)
BETAS = {
    "linear": {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
CLASSES = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpm++2m": DPMSolverMultistepScheduler,
    "lcm": LCMScheduler,
}


def model(x: np.ndarray, t: float) -> np.ndarray:
    """Stands for a UNet: smooth, bounded, dependent on both arguments; float32 in and out."""
    return (np.tanh(0.7 * x + 0.3 * np.roll(x, 1, axis=-1)) + 0.1 * np.sin(t / 100)).astype(np.float32)


def unit(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def use_float64_alphas(scheduler: Any) -> None:
    """diffusers keeps alphas in float32, where 1 - alpha near t = 0 has three digits; give its own formulas float64."""
    c = scheduler.config
    if c.beta_schedule == "squaredcos_cap_v2":

        def bar(t: float) -> float:
            return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

        betas = torch.tensor(
            [min(1 - bar((i + 1) / 1000) / bar(i / 1000), 0.999) for i in range(1000)], dtype=torch.float64
        )
    elif c.beta_schedule == "scaled_linear":
        betas = torch.linspace(c.beta_start**0.5, c.beta_end**0.5, 1000, dtype=torch.float64) ** 2
    else:
        betas = torch.linspace(c.beta_start, c.beta_end, 1000, dtype=torch.float64)
    exact = torch.cumprod(1 - betas, dim=0)
    assert torch.allclose(exact.float(), scheduler.alphas_cumprod, rtol=2e-3, atol=1e-6)
    scheduler.alphas_cumprod = exact
    if not c.get("set_alpha_to_one", True):
        scheduler.final_alpha_cumprod = exact[0]


def diffusers_run(
    solver: str, config: dict[str, Any], steps: int, clear_at: int | None = None, x: np.ndarray | None = None
) -> tuple[list[np.ndarray], list[float]]:
    """Samples before every step and after the last, in variance-preserving space, by diffusers; Euler's sigmas."""
    extra = {"clip_sample": False} if solver in ("ddim", "lcm") else {}
    scheduler = CLASSES[solver](**config, **extra)
    use_float64_alphas(scheduler)
    scheduler.set_timesteps(steps)
    if len(scheduler.timesteps) != steps:
        pytest.skip(f"diffusers itself takes {len(scheduler.timesteps)} steps when asked for {steps}")
    sigmas = [float(s) for s in scheduler.sigmas] if solver == "euler" else [0.0] * (steps + 1)
    sample = torch.from_numpy(unit() if x is None else x) * float(scheduler.init_noise_sigma)
    states = [sample.numpy() / np.sqrt(sigmas[0] ** 2 + 1)]
    for i, t in enumerate(scheduler.timesteps):
        if i == clear_at:
            scheduler.lower_order_nums, scheduler.model_outputs = 0, [None] * 2
        scaled = scheduler.scale_model_input(sample, t)
        output = torch.from_numpy(model(scaled.numpy(), float(t)))
        if solver == "lcm":
            noise = torch.from_numpy(step_noise(9, i, SHAPE))
            with _noise_is(noise):
                sample = scheduler.step(output, t, sample).prev_sample
        else:
            sample = scheduler.step(output, t, sample).prev_sample
        states.append(sample.numpy() / np.sqrt(sigmas[i + 1] ** 2 + 1))
    return states, sigmas


class _noise_is:  # noqa: N801
    """LCM draws its noise inside step(); give it ours."""

    def __init__(self, noise: torch.Tensor) -> None:
        self.noise = noise

    def __enter__(self) -> None:
        import diffusers.schedulers.scheduling_lcm as module

        self.module, self.original = module, module.randn_tensor
        module.randn_tensor = lambda *a, **k: self.noise

    def __exit__(self, *exc: object) -> None:
        self.module.randn_tensor = self.original


def our_run(schedule: Schedule, stop: int | None = None) -> list[np.ndarray]:
    x, previous = schedule.initial_scale * unit(), None
    states = [x]
    for i in range(schedule.steps if stop is None else stop):
        x, previous = schedule.step(i, x, model(x, schedule.timesteps[i]), previous, step_noise(9, i, SHAPE))
        states.append(x)
    return states


def assert_equal_per_step(solver: str, config: dict[str, Any], steps: int, tolerance: float = 1e-5) -> None:
    """Each single step, started from diffusers' own states, so that errors are not carried along."""
    theirs, sigmas = diffusers_run(solver, config, steps)
    schedule = build_schedule(ScheduleConfig.from_dict(config), solver, steps)
    assert schedule.steps == steps
    np.testing.assert_allclose(schedule.initial_scale * unit(), theirs[0], rtol=1e-5)
    previous = None
    for i in range(steps):
        x = theirs[i].astype(np.float32)
        ours, previous = schedule.step(i, x, model(x, schedule.timesteps[i]), previous, step_noise(9, i, SHAPE))
        rms = np.sqrt(np.mean(theirs[i + 1] ** 2))
        # Where sigma falls from thousands to tens, diffusers' float32 arithmetic in sigma space rounds more than we do.
        rounding = 2.0**-23 * sigmas[i] / max(sigmas[i + 1], 1.0)
        error = ours - theirs[i + 1]
        assert np.sqrt(np.mean(error**2)) <= (tolerance + rounding) * rms, f"step {i} of {steps}"
        assert np.abs(error).max() <= 6 * (tolerance + rounding) * rms, f"step {i} of {steps}"


@pytest.mark.parametrize("steps", [4, 7, 20, 25, 50])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("solver", ["ddim", "euler", "dpm++2m"])
def test_steps_equal_diffusers(solver: str, betas: str, spacing: str, prediction: str, steps: int):
    assert_equal_per_step(solver, {**BETAS[betas], "timestep_spacing": spacing, "prediction_type": prediction}, steps)


@pytest.mark.parametrize("steps", [4, 14, 15, 30])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("solver", ["euler", "dpm++2m"])
def test_karras_and_final_sigma_equal_diffusers(solver: str, betas: str, karras: bool, final: str, steps: int):
    config = {**BETAS[betas], "use_karras_sigmas": karras, "final_sigmas_type": final}
    assert_equal_per_step(solver, config, steps)


@pytest.mark.parametrize("steps", [4, 10, 25])
@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("solver", ["euler", "dpm++2m"])
def test_exponential_sigmas_equal_diffusers(solver: str, betas: str, steps: int):
    assert_equal_per_step(solver, {**BETAS[betas], "use_exponential_sigmas": True}, steps)


def test_karras_and_exponential_sigmas_exclude_each_other():
    with pytest.raises(InputError, match="exclude each other"):
        ScheduleConfig.from_dict({"use_karras_sigmas": True, "use_exponential_sigmas": True})


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_lcm_equals_diffusers(steps: int, prediction: str):
    assert_equal_per_step("lcm", {**BETAS["scaled_linear"], "prediction_type": prediction}, steps)


@pytest.mark.parametrize("config", [{"set_alpha_to_one": False, "steps_offset": 1}, {"timestep_spacing": "trailing"}])
def test_stable_diffusion_settings_equal_diffusers(config: dict[str, Any]):
    assert_equal_per_step("ddim", {**BETAS["scaled_linear"], **config}, 25)


def test_dpm_solver_options_equal_diffusers():
    for extra in ({"euler_at_final": True}, {"lower_order_final": False}, {"lambda_min_clipped": -5.1}):
        assert_equal_per_step("dpm++2m", {**BETAS["scaled_linear"], "final_sigmas_type": "sigma_min", **extra}, 12)


@pytest.mark.parametrize("k", [1, 5, 10, 24])
def test_handoff_of_latents_alone_is_diffusers_with_its_history_cleared(k: int):
    config = {**BETAS["scaled_linear"], "prediction_type": "v_prediction"}
    schedule = build_schedule(ScheduleConfig.from_dict(config), "dpm++2m", 25)
    x, previous = our_run(schedule, stop=k)[-1], None
    for i in range(k, 25):
        x, previous = schedule.step(i, x, model(x, schedule.timesteps[i]), previous)
    theirs = diffusers_run("dpm++2m", config, 25, clear_at=k)[0][-1]
    assert np.abs(x - theirs).max() < 1e-4


@settings(max_examples=25)
@given(solver=st.sampled_from(SOLVERS), steps=st.integers(2, 12), data=st.data())
def test_handoff_with_history_continues_exactly(solver: str, steps: int, data: st.DataObject):
    k = data.draw(st.integers(1, steps))
    schedule = build_schedule(ScheduleConfig.from_dict(BETAS["scaled_linear"]), solver, steps)
    x, previous = schedule.initial_scale * unit(), None
    for i in range(steps):
        if i == k:  # what crosses the wire: x and the previous x0, nothing else
            x, previous = x.copy(), None if previous is None else previous.copy()
        x, previous = schedule.step(i, x, model(x, schedule.timesteps[i]), previous, step_noise(9, i, SHAPE))
    np.testing.assert_array_equal(x, our_run(schedule)[-1])


def test_a_pndm_config_without_clip_sample_is_read():
    config = ScheduleConfig.from_dict(
        {"_class_name": "PNDMScheduler", "skip_prk_steps": True, **BETAS["scaled_linear"]}
    )
    assert build_schedule(config, "ddim", 25).steps == 25


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"clip_sample": True}, "clip_sample"),
        ({"thresholding": True}, "thresholding"),
        ({"algorithm_type": "sde-dpmsolver++"}, "algorithm_type"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule"),
        ({"prediction_type": "flow"}, "prediction_type"),
        ({"num_train_timesteps": 1}, "num_train_timesteps"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
    ],
)
def test_what_is_no_table_is_refused_by_name(config: dict[str, Any], word: str):
    with pytest.raises(InputError, match=word):
        ScheduleConfig.from_dict(config)


@pytest.mark.parametrize(("solver", "steps"), [("pndm", 25), ("ddim", 0), ("ddim", 1001), ("lcm", 51), ("ddim", True)])
def test_unknown_solvers_and_steps_are_refused(solver: str, steps: int):
    with pytest.raises(InputError):
        build_schedule(ScheduleConfig(), solver, steps)


def test_unreadable_config_is_a_bundle_error(tmp_path):
    with pytest.raises(BundleError, match="export"):
        ScheduleConfig.from_file(tmp_path / "scheduler_config.json")


@pytest.mark.parametrize(
    "pipeline", [StableDiffusionPipeline, StableDiffusionXLPipeline, LatentConsistencyModelPipeline]
)
@pytest.mark.parametrize("given", [{}, {"steps_offset": 3, "clip_sample": True}])
def test_a_models_settings_are_those_that_its_pipeline_goes_by(tmp_path, pipeline: Any, given: dict[str, Any]):
    """Files of old models lack `steps_offset`; what diffusers' pipeline makes of one is the oracle."""
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(BETAS["scaled_linear"] | given))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline.__name__}))
    parts = dict.fromkeys(
        p for p in inspect.signature(pipeline).parameters if p not in ("scheduler", "add_watermarker")
    )
    flags = {"requires_safety_checker": False, "force_zeros_for_empty_prompt": True}
    parts |= {name: value for name, value in flags.items() if name in parts}
    scheduler = DDIMScheduler.from_config(DDIMScheduler.load_config(tmp_path / "scheduler"))
    theirs = pipeline(**parts, scheduler=scheduler).scheduler.config
    mine = scheduler_settings(tmp_path)
    assert mine.get("steps_offset", 0) == theirs.steps_offset
    assert mine.get("clip_sample", DDIMScheduler().config.clip_sample) == theirs.clip_sample
    assert set(mine) >= set(BETAS["scaled_linear"])
    (tmp_path / "model_index.json").unlink()
    assert scheduler_settings(tmp_path) == BETAS["scaled_linear"] | given


def test_digest_tells_schedules_apart():
    base = ScheduleConfig.from_dict(BETAS["scaled_linear"])
    digests = {build_schedule(base, s, t).digest for s in SOLVERS for t in (8, 9)}
    digests.add(
        build_schedule(ScheduleConfig.from_dict({**BETAS["scaled_linear"], "beta_end": 0.0121}), "ddim", 8).digest
    )
    assert len(digests) == 9
    assert build_schedule(base, "ddim", 8).digest == build_schedule(base, "ddim", 8).digest


@pytest.mark.parametrize("key", ["beta_start", "beta_end", "sigma_min", "steps_offset", "num_train_timesteps"])
@pytest.mark.parametrize("value", ["0.1", -1, True, float("nan"), [1]])
def test_what_is_no_number_is_refused(key: str, value: Any):
    with pytest.raises(InputError, match="scheduler_config"):
        ScheduleConfig.from_dict({key: value})
