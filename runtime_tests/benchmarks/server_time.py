"""Seconds and memory of plans at full size, composed from passes: minutes where running them whole would take hours.

    python -m runtime_tests.benchmarks.server_time --pair realistic-vision --dtype bfloat16 --json OUT

The pair's cloud UNet with random weights where it ships none. A plan's passes are of few kinds (part of the UNet, rows,
what is kept); each kind is run and timed `--runs` times in its place, and counted as often as the plan has it. Solver
and text encoders are timed once a plan. On the embedded pair `--whole` runs the plans as well, for comparison.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from obclip.cloud.cost import plan_macs, profile_unet
from obclip.cloud.denoising import Denoising
from obclip.cloud.engine import run_step
from obclip.cloud.model import CloudModel, load_model
from obclip.cloud.plan import Pass, Plan, Step, build_plan
from obclip.cloud.plans import default_plan, load_planner
from obclip.cloud.policies import PublishedCache
from obclip.cloud.unet import Features
from obclip.core.files import atomic_write_bytes
from obclip.core.pairs import Pair, load_pair
from obclip.edge.machine import machine

from .server_cost import PeakMemory, published_points, random_model
from .server_fidelity import candidate_sets, request_for

MAX_ROWS = 8  # of a pass: on a CPU wider ones are no faster, and the kinds of passes stay few


Made = dict[tuple[Any, ...], tuple[list[float], Any]]  # kind of pass -> seconds, and what it gave


class Aliased(Denoising):
    """Passes of one kind give the same features here; kept without copies, those of thirty candidates take little."""

    def take(self, one: Pass, start: int, stop: int, output: torch.Tensor, features: Features) -> None:
        for i, row in enumerate(one.rows[start:stop]):
            self.outputs[row] = output[i]
            self.features |= {(row, name): value[i] for name, value in features.items()}


@dataclass(frozen=True)
class Composed:
    """seconds: of the whole plan; spread: of its passes' slowest to fastest runs, weighted alike. kept_bytes: features
    held from one step to another, at most."""

    seconds: float
    fastest: float
    slowest: float
    peak_bytes: int
    kept_bytes: int


@torch.inference_mode()
def compose(
    model: CloudModel,
    pair: Pair,
    prompts: Sequence[str],
    k: int,
    plan: Plan,
    runs: int,
    made: Made | None = None,
    request_state: type[Denoising] = Denoising,
) -> Composed:
    """made: kinds of passes that were timed before, for other plans of the same model; new ones are added.

    request_state: `Aliased` where memory would not do; peak_bytes is then less than a request takes.
    """
    request = request_for(pair, prompts, k, 0)
    made = {} if made is None else made
    totals = [0.0, 0.0, 0.0]  # median, fastest, slowest
    kept_bytes = 0

    def spend(seconds: Sequence[float]) -> None:
        for i, of in enumerate((statistics.median, min, max)):
            totals[i] += of(seconds)

    with PeakMemory(model.device) as peak:
        started = time.perf_counter()
        state = request_state(model, pair, request, plan)
        spend([time.perf_counter() - started])
        for step in plan.steps:
            for one in step.passes:
                kind = (one.part, len(one.rows), one.keep, len(one.pivots))
                if kind not in made:
                    made[kind] = _timed(model, state, step, one, runs)
                seconds, (output, features) = made[kind]
                spend(seconds)
                state.take(one, 0, len(one.rows), output, features)
                kept_bytes = max(kept_bytes, sum(f.numel() * f.element_size() for f in state.features.values()))
            started = time.perf_counter()
            state.advance(step)
            spend([time.perf_counter() - started])
    return Composed(totals[0], totals[1], totals[2], peak.bytes, kept_bytes)


def _timed(model: CloudModel, state: Denoising, step: Step, one: Pass, runs: int) -> tuple[list[float], Any]:
    seconds, result = [], None
    for _ in range(runs + 1):  # the first does not count
        x, inputs, kept = state.inputs(step, one, 0, len(one.rows))
        started = time.perf_counter()
        result = model.layered(x, inputs, one.part, kept, one.keep, one.pivots)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds[1:], result


@torch.inference_mode()
def whole(model: CloudModel, pair: Pair, prompts: Sequence[str], k: int, plan: Plan, runs: int) -> float:
    """Median seconds of running `plan` as the engine does."""
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        state = Denoising(model, pair, request_for(pair, prompts, k, 0), plan)
        for step in plan.steps:
            run_step(state, step)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", default="emoji")
    parser.add_argument("--n", type=int, nargs="+", default=[2, 6, 30])
    parser.add_argument("--k", type=int, nargs="+", help="default: 5 and 10, or the pair's own if it has few steps")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--whole", action="store_true", help="run the plans whole, too")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    pair = load_pair(args.pair)
    model = load_model(pair, dtype=args.dtype) if args.pair == "emoji" else random_model(pair, args.dtype)
    layered, distilled = model.layered, model.guidance_distilled
    profile = profile_unet(layered, pair.latent_shape, model.text.max_tokens)
    planner = load_planner(default_plan(pair.name), pair.steps, layered.depth, MAX_ROWS, distilled)
    here = machine()
    print(f"{pair.name}, {args.dtype}, {here['cpu']}, {here['cores']} cores, torch {torch.__version__}; composed")
    columns = ("T MACs", "seconds", "fastest", "slowest", "/hybrid", "of MACs", "peak MB", "kept MB")
    print(f"{'n':>3}{'k':>4}  {'plan':18}" + "".join(f"{c:>9}" for c in columns))
    rows: list[dict[str, Any]] = []

    def point(n: int, k: int) -> None:
        prompts = candidate_sets(n, 1, 1)[0].prompts
        r, s = published_points(pair, k)

        def built(names: Sequence[str], *policies: Any) -> Plan:
            return build_plan(request_for(pair, names, k, 0), policies, MAX_ROWS, distilled)

        plans: dict[str, tuple[Sequence[str], Plan]] = {
            "hybrid sd": (prompts[:1], built(prompts[:1])),
            "vanilla": (prompts, built(prompts)),
            "published cache": (prompts, built(prompts, PublishedCache(r, s, len(profile.up)))),
            "default": (prompts, planner(request_for(pair, prompts, k, 0))),
        }
        first: dict[str, Any] | None = None
        for name, (names, plan) in plans.items():
            found, macs = compose(model, pair, names, k, plan, args.runs), plan_macs(plan, profile).total
            row = {"n": n, "k": k, "plan": name, "macs": macs} | vars(found)
            first = first or row
            row |= {"over_hybrid": found.seconds / first["seconds"], "macs_over_hybrid": macs / first["macs"]}
            if args.whole:
                row["whole_seconds"] = whole(model, pair, names, k, plan, args.runs)
            rows.append(row)
            print(
                f"{n:3}{k:4}  {name:18}{macs / 1e12:9.3f}{found.seconds:9.2f}{found.fastest:9.2f}{found.slowest:9.2f}"
                f"{row['over_hybrid']:9.3f}{row['macs_over_hybrid']:9.3f}{found.peak_bytes / 1e6:9.0f}"
                f"{found.kept_bytes / 1e6:9.1f}", flush=True,
            )  # fmt: skip

    for k in args.k or ([5, 10] if pair.steps > 10 else [pair.handoff]):
        for n in args.n:
            point(n, k)
            if args.json:
                result = {"machine": here, "pair": pair.name, "dtype": args.dtype, "runs": args.runs, "rows": rows}
                atomic_write_bytes(args.json, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
