"""Which engine a server runs, from its options, warmed up for every part of the UNet that its plans use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from obclip.cloud.batch import Batcher, Slice
from obclip.cloud.compiled import CompiledForward, bucket, bucket_sizes
from obclip.cloud.denoising import Denoising
from obclip.cloud.limits import Limits
from obclip.cloud.model import CloudModel
from obclip.cloud.parts import Keep, Part
from obclip.cloud.plans import Planner
from obclip.cloud.rowcap import RowCap
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
    by one, on a GPU every batch is padded to max_rows, or to what is left of it after memory ran out. compiled:
    torch.compile, and CUDA graphs on a GPU; batches are padded to a few sizes, each of which is compiled once.
    """
    cap = RowCap(limits.max_rows)
    sizes: tuple[int, ...] = (1,)
    alone = deterministic and model.device.type != "cuda"
    pad: Callable[[int], int] | None = None
    if deterministic and not alone:
        pad = cap.pad
    elif compiled and not alone:
        sizes = bucket_sizes(limits.max_rows)
        pad = partial(bucket, sizes=sizes)
    batcher = Batcher(CompiledForward(model.layered) if compiled else model.layered, pad, row_by_row=alone)
    scheduler = SchedulerLimits(
        max_batch_rows=limits.max_rows,
        max_held_rows=limits.max_held_rows,
        max_waiting_rows=limits.max_waiting_rows,
        max_waiting_jobs=limits.max_waiting,
        queue_timeout_s=limits.queue_timeout_s,
        service_timeout_s=limits.service_timeout_s,
    )
    times = 2 if compiled else 1  # a CUDA graph is recorded when its function runs for the second time
    warm = partial(warm_up, model, pair, planner, batcher, sizes, limits.max_candidates, times)
    return StepEngine(model, pair, scheduler, batcher, warm, cap=cap)


@torch.inference_mode()
def warm_up(
    model: CloudModel,
    pair: Pair,
    planner: Planner,
    batcher: Batcher,
    sizes: Sequence[int],
    max_candidates: int,
    times: int = 1,
) -> None:
    """Run every part of the UNet that a request's plan may have, with all that it may keep, in batches of `sizes` rows,
    each so many times.

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
                    for batch in [[whole]] if one.pivots else [[replace(whole, stop=1)] * size for size in sizes]:
                        for _ in range(times):
                            batcher.run(batch)
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
