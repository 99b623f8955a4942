"""Which noise levels a solver visits: betas, timestep spacing, Karras or exponential sigmas, the final one.

Behaviour follows diffusers' schedulers (scheduling_ddim, _euler_discrete, _dpmsolver_multistep, _lcm), in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from obclip.core.errors import InputError
from obclip.core.schedule_config import ScheduleConfig

Float64 = NDArray[np.float64]
_DEFAULT_SPACING = {"ddim": "leading", "euler": "linspace", "dpm++2m": "linspace", "lcm": "leading"}


@dataclass(frozen=True)
class Grid:
    """sigmas, following: float64 [T], the noise level before and after each step; timesteps: float64 [T].

    DDIM steps to t - train_steps // T, which with rounded spacings is not always the next timestep it visits; for every
    other solver following[i] is sigmas[i + 1].
    """

    sigmas: Float64
    following: Float64
    timesteps: Float64
    initial_scale: float


def alphas_cumprod(config: ScheduleConfig, solver: str) -> Float64:
    """The product of (1 - beta) up to each of the training timesteps, float64 [train_steps]."""
    n = config.train_steps
    start, end, kind = (0.00085, 0.012, "scaled_linear") if solver == "lcm" else (0.0001, 0.02, "linear")
    start = config.beta_start if config.beta_start is not None else start
    end = config.beta_end if config.beta_end is not None else end
    kind = config.beta_schedule if config.beta_schedule is not None else kind
    if config.trained_betas is not None:
        betas = np.array(config.trained_betas, np.float64)
    elif kind == "linear":
        betas = np.linspace(start, end, n)
    elif kind == "scaled_linear":
        betas = np.linspace(math.sqrt(start), math.sqrt(end), n) ** 2
    else:  # Nichol & Dhariwal 2021, eq. 17
        t = np.arange(n + 1) / n
        bar = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
    return np.asarray(np.cumprod(1 - betas))


def solver_grid(config: ScheduleConfig, solver: str, steps: int) -> Grid:
    """The sigmas and timesteps of `steps` steps."""
    bar = alphas_cumprod(config, solver)
    all_sigmas = np.sqrt((1 - bar) / bar)
    if solver == "lcm":
        return _lcm_grid(config, all_sigmas, steps)
    spacing = config.timestep_spacing or _DEFAULT_SPACING[solver]
    if solver == "ddim":
        timesteps = _checked(np.round(_spaced(config.train_steps, spacing, steps, config.steps_offset)), config, steps)
        before = timesteps - config.train_steps // steps
        final = 0.0 if config.set_alpha_to_one else float(all_sigmas[0])
        visited = all_sigmas[timesteps.astype(int)]
        following = np.where(before >= 0, all_sigmas[np.maximum(before, 0).astype(int)], final)
        return Grid(visited, following, timesteps, 1.0)
    return _sigma_grid(config, solver, spacing, all_sigmas, steps)


def _sigma_grid(config: ScheduleConfig, solver: str, spacing: str, all_sigmas: Float64, steps: int) -> Grid:
    n = config.train_steps
    if solver == "euler":
        timesteps = _spaced(n, spacing, steps, config.steps_offset)
        timesteps = np.round(timesteps) if spacing != "linspace" else timesteps
    else:
        timesteps = _dpm_timesteps(config, all_sigmas, spacing, steps)
    timesteps = _checked(timesteps, config, steps)
    sigmas = np.interp(timesteps, np.arange(n), all_sigmas)
    if config.use_karras_sigmas or config.use_exponential_sigmas:
        low, high = (sigmas[-1], sigmas[0]) if solver == "euler" else (all_sigmas[0], all_sigmas[-1])
        if solver == "euler":
            low = config.sigma_min if config.sigma_min is not None else low
            high = config.sigma_max if config.sigma_max is not None else high
        ramp = _karras if config.use_karras_sigmas else _exponential
        sigmas = ramp(float(low), float(high), steps)
        timesteps = _timestep_of(sigmas, np.log(all_sigmas))
        if solver == "dpm++2m":
            rounded = config.use_karras_sigmas and config.beta_schedule != "squaredcos_cap_v2"
            timesteps = np.round(timesteps) if rounded else np.trunc(timesteps)
    final = 0.0 if config.final_sigmas_type == "zero" else float(all_sigmas[0])
    scale = 1.0
    if solver == "euler" and spacing in ("linspace", "trailing"):
        scale = float(sigmas[0] / math.sqrt(1 + sigmas[0] ** 2))
    return Grid(sigmas, np.append(sigmas[1:], final), timesteps, scale)


def _spaced(n: int, spacing: str, steps: int, offset: int) -> Float64:
    """Timesteps by the three spacings of Lin et al. 2024 (arXiv 2305.08891), table 2; not rounded for linspace."""
    if spacing == "linspace":
        return np.linspace(0, n - 1, steps)[::-1].copy()
    if spacing == "leading":
        return np.asarray((np.arange(steps) * (n // steps))[::-1] + float(offset), np.float64)
    return np.round(np.arange(n, 0, -n / steps))[:steps] - 1.0


def _dpm_timesteps(config: ScheduleConfig, all_sigmas: Float64, spacing: str, steps: int) -> Float64:
    n = config.train_steps
    if config.lambda_min_clipped is not None:
        n -= int(np.searchsorted(-np.log(all_sigmas)[::-1], config.lambda_min_clipped))
    if spacing == "linspace":
        return np.round(np.linspace(0, n - 1, steps + 1))[::-1][:-1].copy()
    if spacing == "leading":
        return np.asarray((np.arange(steps + 1) * float(n // (steps + 1)))[::-1][:-1] + config.steps_offset, np.float64)
    return np.round(np.arange(n, 0, -config.train_steps / steps))[:steps] - 1.0


def _checked(timesteps: Float64, config: ScheduleConfig, steps: int) -> Float64:
    if len(timesteps) != steps or timesteps.max() > config.train_steps - 1 or len(np.unique(timesteps)) != steps:
        raise InputError(
            f"{steps} steps with steps_offset {config.steps_offset} do not fit {config.train_steps} training "
            "timesteps; ask for fewer steps"
        )
    return timesteps


def _karras(low: float, high: float, steps: int) -> Float64:
    """Karras et al. 2022, eq. 5, rho = 7."""
    rho = 7.0
    ramp = np.linspace(0, 1, steps)
    return np.asarray((high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho)


def _exponential(low: float, high: float, steps: int) -> Float64:
    """Equal ratios from one noise level to the next: Karras' ramp for rho to infinity."""
    return np.exp(np.linspace(math.log(high), math.log(low), steps))


def _timestep_of(sigmas: Float64, log_sigmas: Float64) -> Float64:
    """The (fractional) training timestep at which the noise level is sigma, by interpolation in log sigma."""
    return np.interp(np.log(sigmas), log_sigmas, np.arange(len(log_sigmas), dtype=np.float64))


def _lcm_grid(config: ScheduleConfig, all_sigmas: Float64, steps: int) -> Grid:
    original = config.original_inference_steps
    if steps > original or original > config.train_steps:
        raise InputError(f"steps is {steps}; LCM takes at most original_inference_steps ({original})")
    origin = (np.arange(1, original + 1) * (config.train_steps // original) - 1)[::-1]
    timesteps = origin[np.floor(np.linspace(0, original, steps, endpoint=False)).astype(int)]
    visited = all_sigmas[timesteps]
    return Grid(visited, np.append(visited[1:], visited[-1]), timesteps.astype(np.float64), 1.0)
