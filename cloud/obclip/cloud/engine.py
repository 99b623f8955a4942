"""Execution of a plan: the large UNet in PyTorch, one row of solver coefficients per latent."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from obclip.cloud.model import CloudModel
from obclip.cloud.plan import Branch, Pass, Plan
from obclip.core.errors import RunError
from obclip.core.noise import initial_noise, step_noise
from obclip.core.pairs import Pair
from obclip.core.schedule import Schedule, build_schedule
from obclip.core.wire import Request, Response


class CancelledError(RunError):
    """The request was cancelled at a step boundary."""


def never() -> bool:
    return False


@torch.inference_mode()
def execute(
    plan: Plan, request: Request, model: CloudModel, pair: Pair, cancelled: Callable[[], bool] = never
) -> Response:
    """Run `plan` for `request`: latents of all candidates after its steps, or nothing.

    RunError if any latent is not finite; CancelledError at the first step boundary where `cancelled()` is true.
    """
    schedule = build_schedule(model.schedule_config, request.solver, request.steps)
    channels, scale = pair.latent_channels, pair.latent_downscale
    shape = (channels, request.height // scale, request.width // scale)
    text = model.encode([request.negative_prompt, *request.candidates])
    noise = torch.from_numpy(initial_noise(request.seed, shape)).to(model.device)
    x = (schedule.initial_scale * noise).repeat(plan.candidates, 1, 1, 1)  # (N, 4, h, w), float32
    x0: torch.Tensor | None = None
    for step in plan.steps:
        if cancelled():
            raise CancelledError("the request was cancelled")
        output = _predict(step.passes, x, float(schedule.timesteps[step.index]), text, plan, request.guidance, model)
        x, x0 = _solve(schedule, step.index, x, output, x0, request.seed)
    if not bool(torch.isfinite(x).all()):
        raise RunError("the model produced numbers that are not finite; nothing is returned")
    assert x0 is not None
    return Response(
        latents=_to_wire(x),
        x0=_to_wire(x0) if request.want_x0 else None,
        step=request.handoff,
        schedule=schedule.digest,
        model=model.digest,
    )


def _predict(
    passes: tuple[Pass, ...],
    x: torch.Tensor,
    timestep: float,
    text: torch.Tensor,
    plan: Plan,
    guidance: float,
    model: CloudModel,
) -> torch.Tensor:
    """The guided model output for every candidate, float32 [N, 4, h, w]."""
    branches = {branch: torch.zeros_like(x) for branch in Branch}
    for one in passes:
        candidates = [row.candidate for row in one.rows]
        # text[0] is the negative prompt, text[i + 1] candidate i
        words = [0 if row.branch is Branch.UNCONDITIONAL else row.candidate + 1 for row in one.rows]
        rows = x[candidates].to(model.dtype).contiguous(memory_format=torch.channels_last)
        t = torch.full((len(candidates),), timestep, device=x.device, dtype=torch.float32)
        output = model.unet(rows, t, text[words]).sample.float()
        for i, row in enumerate(one.rows):
            branches[row.branch][row.candidate] = output[i]
    conditional = branches[Branch.CONDITIONAL]
    if not plan.guided:
        return conditional
    unconditional = branches[Branch.UNCONDITIONAL]
    return unconditional + guidance * (conditional - unconditional)


def _solve(
    schedule: Schedule, i: int, x: torch.Tensor, output: torch.Tensor, x0_previous: torch.Tensor | None, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """core.schedule.Schedule.step, on the device."""
    a, b = (float(v) for v in schedule.to_x0[i])
    x0 = a * x + b * output
    c = [float(v) for v in schedule.row(i, first_order=x0_previous is None)]
    following = c[0] * x + c[1] * x0
    if x0_previous is not None and c[2]:
        following = following + c[2] * x0_previous
    if c[3]:
        following = following + c[3] * torch.from_numpy(step_noise(seed, i, tuple(x.shape[1:]))).to(x.device)
    return following, x0


def _to_wire(x: torch.Tensor) -> np.ndarray:
    """float16, kept within its range so that a far outlier stays finite."""
    limit = float(np.finfo(np.float16).max)
    return np.asarray(x.clamp(-limit, limit).cpu().numpy().astype(np.float16))
