"""Which engine a server runs, from its options, warmed up for every part of the UNet that its plans use."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from obclip.cloud.batch import Batcher, Slice
from obclip.cloud.compiled import BUCKETS, CompiledForward, bucket
from obclip.cloud.denoising import Denoising
from obclip.cloud.limits import Limits
from obclip.cloud.model import CloudModel
from obclip.cloud.parts import Keep, Part
from obclip.cloud.plans import Planner
from obclip.cloud.scheduler import SchedulerLimits
from obclip.cloud.stepper import StepEngine
from obclip.core.pairs import Pair
from obclip.core.wire import Request


def step_engine(
    model: CloudModel,
    pair: Pair,
    limits: Limits,
    planner: Planner,
    *,
    deterministic: bool = False,
    compiled: bool = False,
) -> StepEngine:
    """The step batcher.

    deterministic: what a request gets does not depend, bit for bit, on what shares its batches; on a CPU rows run one
    by one, on a GPU every batch is padded to max_rows. compiled: torch.compile, and CUDA graphs on a GPU.
    """
    cuda = model.device.type == "cuda"
    forward = CompiledForward(model.layered) if compiled else model.layered
    pad = partial(bucket, buckets=(limits.max_rows,) if deterministic else BUCKETS)
    batcher = Batcher(forward, bucket=pad if cuda or compiled else None, row_by_row=deterministic and not cuda)
    sizes = [b for b in BUCKETS if b <= limits.max_rows] if compiled and not deterministic else [1]
    scheduler = SchedulerLimits(
        max_batch_rows=limits.max_rows,
        max_held_rows=limits.max_held_rows,
        max_waiting_rows=limits.max_waiting_rows,
        max_waiting_jobs=limits.max_waiting,
        queue_timeout_s=limits.queue_timeout_s,
        service_timeout_s=limits.service_timeout_s,
    )
    warm = partial(warm_up, model, pair, planner, batcher, sizes, limits.max_candidates)
    return StepEngine(model, pair, scheduler, batcher, warm)


@torch.inference_mode()
def warm_up(
    model: CloudModel, pair: Pair, planner: Planner, batcher: Batcher, sizes: list[int], max_candidates: int
) -> None:
    """Run every part of the UNet that a request's plan may have, with all that it may keep, in batches of `sizes` rows.

    Passes with pivots run as wide as their request is: their graphs depend on which rows are pivots.
    """
    seen: set[tuple[Part, Keep]] = set()
    for request in _kinds_of_requests(pair, planner, max_candidates):
        plan = planner(request)
        if all((one.part, one.keep) in seen for step in plan.steps for one in step.passes):
            continue
        state = Denoising(model, pair, request, plan)
        for step in plan.steps:
            for one in step.passes:
                whole = Slice(state, step, one, 0, len(one.rows))
                if (one.part, one.keep) not in seen:
                    seen.add((one.part, one.keep))
                    for size in () if one.pivots else sizes:
                        batcher.run([replace(whole, stop=1)] * size)
                batcher.run([whole])
            state.advance(step)


def _kinds_of_requests(pair: Pair, planner: Planner, max_candidates: int) -> list[Request]:
    """Requests of every number of steps, as wide as each class of the planner takes; the pair's own come first."""
    widths = {min(one.candidates, max_candidates) for one in planner.classes} | {min(2, max_candidates)}
    steps = sorted(range(1, pair.steps + 1), key=lambda k: k != pair.handoff)
    return [
        Request(
            pair=pair.digest, candidates=tuple(sorted(f"a person {i}" for i in range(n))), negative_prompt="", seed=0,
            height=pair.height, width=pair.width, steps=pair.steps, handoff=k, guidance=pair.guidance,
            solver=pair.solver,
        )
        for n in sorted(widths) for k in steps
    ]  # fmt: skip
