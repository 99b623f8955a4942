"""Execution of a plan for one request: pass by pass, step by step."""

from __future__ import annotations

from collections.abc import Callable

import torch

from obclip.cloud.denoising import Denoising
from obclip.cloud.errors import CancelledError
from obclip.cloud.model import CloudModel
from obclip.cloud.plan import Plan, Step
from obclip.core.pairs import Pair
from obclip.core.wire import Request, Response


def never() -> bool:
    return False


@torch.inference_mode()
def execute(
    plan: Plan, request: Request, model: CloudModel, pair: Pair, cancelled: Callable[[], bool] = never
) -> Response:
    """Run `plan` for `request`: latents of all candidates after its steps, or nothing.

    RunError if any latent is not finite; CancelledError at the first step boundary where `cancelled()` is true.
    """
    if cancelled():
        raise CancelledError("the request was cancelled")
    state = Denoising(model, pair, request, plan)
    for step in plan.steps:
        if cancelled():
            raise CancelledError("the request was cancelled")
        run_step(state, step)
    return state.response()


def run_step(state: Denoising, step: Step) -> None:
    """All passes of one step, then the solver's."""
    for one in step.passes:
        x, inputs, kept = state.inputs(step, one, 0, len(one.rows))
        output, features = state.model.layered(x, inputs, one.part, kept, one.keep, one.pivots)
        state.take(one, 0, len(one.rows), output, features)
    state.advance(step)
