"""Execution of a plan: the large UNet in PyTorch, one row of solver coefficients per latent."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from diffusers.models.embeddings import get_timestep_embedding

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
    if cancelled():
        raise CancelledError("the request was cancelled")
    predictor = Predictor(model, request, plan)
    noise = torch.from_numpy(initial_noise(request.seed, shape)).to(model.device)
    x = (schedule.initial_scale * noise).repeat(plan.candidates, 1, 1, 1)  # (N, 4, h, w), float32
    x0: torch.Tensor | None = None
    for step in plan.steps:
        if cancelled():
            raise CancelledError("the request was cancelled")
        output = predictor(step.passes, x, float(schedule.timesteps[step.index]))
        x, x0 = solve(schedule, step.index, x, output, x0, request.seed)
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


class Predictor:
    """The UNet with everything about a request that does not change from step to step."""

    def __init__(self, model: CloudModel, request: Request, plan: Plan) -> None:
        """InputError for a prompt that the text encoders cannot read whole."""
        self.unet, self.dtype, self.guided, self.guidance = model.unet, model.dtype, plan.guided, request.guidance
        self.text = model.encode([request.negative_prompt, *request.candidates])
        # Stable Diffusion XL's size conditions: original height and width, crop top and left, target height and width
        size = [request.height, request.width, 0, 0, request.height, request.width]
        self.size = torch.tensor([size], device=model.device, dtype=torch.float32)
        self.scale: torch.Tensor | None = None
        if model.guidance_distilled:  # Meng et al. 2023 (arXiv 2210.03142): the scale is embedded like a timestep
            w = torch.tensor([1000.0 * (request.guidance - 1.0)], device=model.device)
            width = model.unet.config.time_cond_proj_dim
            self.scale = get_timestep_embedding(w, width, downscale_freq_shift=1).to(model.dtype)

    def __call__(self, passes: tuple[Pass, ...], x: torch.Tensor, timestep: float) -> torch.Tensor:
        """The guided model output for every candidate, float32 [N, 4, h, w]; x: float32, the same shape."""
        branches = {branch: torch.zeros_like(x) for branch in Branch}
        for one in passes:
            output = self._run(one, x, timestep)
            for i, row in enumerate(one.rows):
                branches[row.branch][row.candidate] = output[i]
        conditional = branches[Branch.CONDITIONAL]
        if not self.guided:
            return conditional
        unconditional = branches[Branch.UNCONDITIONAL]
        return unconditional + self.guidance * (conditional - unconditional)

    def _run(self, one: Pass, x: torch.Tensor, timestep: float) -> torch.Tensor:
        m = len(one.rows)
        # hidden[0] is the negative prompt's, hidden[i + 1] candidate i's
        words = [0 if row.branch is Branch.UNCONDITIONAL else row.candidate + 1 for row in one.rows]
        added = None
        if self.text.pooled is not None:
            added = {"text_embeds": self.text.pooled[words], "time_ids": self.size.expand(m, -1)}
        rows = x[[row.candidate for row in one.rows]].to(self.dtype)
        return self.unet(
            rows.contiguous(memory_format=torch.channels_last),
            torch.full((m,), timestep, device=x.device, dtype=torch.float32),
            self.text.hidden[words],
            timestep_cond=None if self.scale is None else self.scale.expand(m, -1),
            added_cond_kwargs=added,
        ).sample.float()


def solve(
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
