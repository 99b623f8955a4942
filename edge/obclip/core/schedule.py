"""Solvers as tables of coefficients, in variance-preserving space, computed once in float64.

Every supported solver is linear in (x, x0, previous x0, fresh noise). With alpha = 1/sqrt(1 + sigma^2), a latent is
x = alpha * x_clean + alpha * sigma * noise at every step, Euler's included, so the UNet is always fed x itself.

    DDIM, eta = 0   Song et al. 2021 (arXiv 2010.02502), eq. 12
    Euler           Karras et al. 2022 (arXiv 2206.00364), algorithm 1 without churn
    DPM-Solver++ 2M Lu et al. 2022 (arXiv 2211.01095), algorithm 2, midpoint form
    LCM             Luo et al. 2023 (arXiv 2310.04378), algorithm 3

In one step from sigma to sigma', the first three share the first-order update
x' = (alpha' sigma')/(alpha sigma) x + alpha' (1 - sigma'/sigma) x0; they differ in which sigmas they visit, and 2M adds
a correction from the previous x0.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obclip.core.errors import InputError
from obclip.core.schedule_config import ScheduleConfig
from obclip.core.sigmas import Grid, solver_grid

SOLVERS = ("ddim", "euler", "dpm++2m", "lcm")
MAX_STEPS = 1000
_DIGEST_VERSION = 1

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Schedule:
    """What both sides need to take step i of T, i from 0.

    timesteps: float64 [T], given to the UNet. coefficients: float64 [T, 4], of (x, x0, previous x0, noise).
    restart: the same at first order, for a step whose previous x0 is unknown. to_x0: float64 [T, 2], of (x, output).
    alphas: float64 [T], of the clean latents in x at each step.
    """

    solver: str
    timesteps: Float64
    coefficients: Float64
    restart: Float64
    to_x0: Float64
    alphas: Float64
    initial_scale: float
    digest: str

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    @cached_property
    def needs_history(self) -> bool:
        return bool(np.any(self.coefficients[:, 2]))

    @cached_property
    def needs_noise(self) -> bool:
        return bool(np.any(self.coefficients[:, 3]))

    def row(self, i: int, first_order: bool) -> Float64:
        """float64 [4]: the coefficients of step i."""
        table = self.restart if first_order else self.coefficients
        return np.asarray(table[i])

    def x0(self, i: int, x: Float32, model_output: Float32) -> Float32:
        """The clean latents that the model's output implies at step i."""
        a, b = self.to_x0[i]
        return (np.float32(a) * x + np.float32(b) * model_output).astype(np.float32)

    def step(
        self,
        i: int,
        x: Float32,
        model_output: Float32,
        x0_previous: Float32 | None = None,
        noise: Float32 | None = None,
    ) -> tuple[Float32, Float32]:
        """One step: (x at step i + 1, x0 at step i), float32, shaped like x.

        Without `x0_previous` the step is of first order. InputError if the solver needs noise and none is given.
        """
        x0 = self.x0(i, x, model_output)
        c = self.row(i, first_order=x0_previous is None).astype(np.float32)
        following = c[0] * x + c[1] * x0
        if x0_previous is not None and c[2]:
            following = following + c[2] * x0_previous
        if c[3]:
            if noise is None:
                raise InputError(f"step {i} of {self.solver} needs noise; pass step_noise(seed, {i}, shape)")
            following = following + c[3] * noise
        return following.astype(np.float32), x0


def build_schedule(config: ScheduleConfig, solver: str, steps: int) -> Schedule:
    """The schedule of `solver` in `steps` steps. InputError for an unknown solver or step count."""
    if solver not in SOLVERS:
        raise InputError(f"solver is {solver!r}; choose one of {', '.join(SOLVERS)}")
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= min(MAX_STEPS, config.train_steps):
        raise InputError(f"steps is {steps!r}; it must be an integer from 1 to {min(MAX_STEPS, config.train_steps)}")
    grid = solver_grid(config, solver, steps)
    first = _consistency_rows(config, grid) if solver == "lcm" else _first_order_rows(grid)
    rows = first
    if solver == "dpm++2m":
        last = config.euler_at_final or (config.lower_order_final and steps < 15) or config.final_sigmas_type == "zero"
        rows = _second_order_rows(grid, first, last_is_first_order=last)
    return Schedule(
        solver=solver,
        timesteps=_frozen(grid.timesteps),
        coefficients=_frozen(rows),
        restart=_frozen(first),
        to_x0=_frozen(_x0_rows(config.prediction_type, grid.sigmas)),
        alphas=_frozen(_alpha(grid.sigmas)),
        initial_scale=grid.initial_scale,
        digest=_digest(config, solver, steps),
    )


def _alpha(sigma: Float64) -> Float64:
    return np.asarray(1.0 / np.sqrt(1.0 + sigma**2))


def _first_order_rows(grid: Grid) -> Float64:
    s, t = grid.sigmas, grid.following
    zero = np.zeros_like(s)
    return np.stack([_alpha(t) * t / (_alpha(s) * s), _alpha(t) * (1 - t / s), zero, zero], axis=1)


def _second_order_rows(grid: Grid, first: Float64, last_is_first_order: bool) -> Float64:
    rows = first.copy()
    sigmas = np.append(grid.sigmas, grid.following[-1])
    lambdas = -np.log(np.where(sigmas > 0, sigmas, 1.0))  # a final sigma of zero never reaches second order
    for i in range(1, len(rows)):
        if i == len(rows) - 1 and last_is_first_order:
            continue
        h, h_previous = lambdas[i + 1] - lambdas[i], lambdas[i] - lambdas[i - 1]
        correction = 0.5 * first[i, 1] * h / h_previous
        rows[i, 1] += correction
        rows[i, 2] = -correction
    return rows


def _consistency_rows(config: ScheduleConfig, grid: Grid) -> Float64:
    t = grid.timesteps * config.timestep_scaling
    sigma_data = 0.5
    c_skip = sigma_data**2 / (t**2 + sigma_data**2)
    c_out = t / np.sqrt(t**2 + sigma_data**2)
    following = grid.following
    alpha = _alpha(following)
    noise = alpha * following
    alpha[-1], noise[-1] = 1.0, 0.0  # the last step returns the denoised latents themselves
    return np.stack([alpha * c_skip, alpha * c_out, np.zeros_like(t), noise], axis=1)


def _x0_rows(prediction: str, sigma: Float64) -> Float64:
    alpha = _alpha(sigma)
    if prediction == "epsilon":
        return np.stack([1 / alpha, -sigma], axis=1)
    if prediction == "v_prediction":
        return np.stack([alpha, -alpha * sigma], axis=1)
    return np.stack([np.zeros_like(sigma), np.ones_like(sigma)], axis=1)


def _frozen(table: Float64) -> Float64:
    table = np.ascontiguousarray(table, np.float64)
    table.setflags(write=False)
    return table


def _digest(config: ScheduleConfig, solver: str, steps: int) -> str:
    """Over what the tables are computed from, which is exact, rather than over floats, which libms round apart."""
    inputs: dict[str, Any] = {"version": _DIGEST_VERSION, "solver": solver, "steps": steps, **config.to_dict()}
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
