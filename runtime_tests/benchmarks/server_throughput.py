"""The engine against a plain diffusers pipeline that does the same work: k steps for N candidates, to latents.

    python -m runtime_tests.benchmarks.server_throughput --json docs/results/server_throughput.json
    python -m runtime_tests.benchmarks.server_throughput --pair realistic-vision --dtype float16 --compile    # a GPU

Systems take turns in one process: diffusers eager, diffusers with its UNet compiled (`--compile`), the engine with the
plain plan (the same evaluations of the UNet) and with the default plan. With several clients, diffusers takes their
requests in one call, the most that its API allows; the engine gets each by itself. First every system's latents are
compared with the pipeline's: nothing is timed that does something else. Full-size pairs have random weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.models.attention_processor import AttnProcessor2_0

from obclip.cloud.engines import step_engine
from obclip.cloud.limits import Limits
from obclip.cloud.model import CloudModel, load_model
from obclip.cloud.plans import Planner, default_plan, load_planner
from obclip.cloud.work import Job
from obclip.core.files import atomic_write_bytes
from obclip.core.noise import initial_noise
from obclip.core.pairs import Pair, load_pair, resolve_source
from obclip.core.wire import Request
from obclip.edge.machine import machine

from .server_cost import random_model
from .server_fidelity import candidate_sets, request_for

Latents = list[np.ndarray]  # one [N, 4, h, w] a request
MAX_ERROR = {"float32": 5e-3, "bfloat16": 0.2, "float16": 0.05}  # relative; answers are float16


@dataclass
class Pipeline:
    """diffusers, with a copy of the UNet that has its own attention again."""

    pair: Pair
    pipe: Any

    @classmethod
    def of(cls, model: CloudModel, pair: Pair, compiled: bool) -> Pipeline:
        unet = copy.deepcopy(model.unet)
        unet.set_attn_processor(AttnProcessor2_0())
        config: dict[str, Any] = model.schedule_config.to_dict()
        source = resolve_source(pair.cloud, "cloud")
        if isinstance(source, Path):
            scheduler = DPMSolverMultistepScheduler.from_pretrained(source / "scheduler")
        else:
            scheduler = DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++", solver_order=2)
        texts = model.text.encoders
        if len(texts) == 1:
            pipe = StableDiffusionPipeline(
                None, texts[0].model, texts[0].tokenizer, unet, scheduler, None, None, requires_safety_checker=False
            )
        else:
            pipe = StableDiffusionXLPipeline(
                None, texts[0].model, texts[1].model, texts[0].tokenizer, texts[1].tokenizer, unet, scheduler
            )
        pipe.set_progress_bar_config(disable=True)
        if compiled:
            mode = "reduce-overhead" if model.device.type == "cuda" else "default"
            pipe.unet = torch.compile(unet, mode=mode, fullgraph=True)
        return cls(pair, pipe)

    @torch.inference_mode()
    def run(self, requests: Sequence[Request]) -> Latents:
        """All of `requests`, which have N, k and guidance in common, in one call that is interrupted after k steps."""
        n, k = len(requests[0].candidates), requests[0].handoff
        noise = [torch.from_numpy(initial_noise(r.seed, self.pair.latent_shape)) for r in requests]
        latents = torch.stack(noise).repeat_interleave(n, 0).to(self.pipe.device, self.pipe.unet.dtype)

        def stop(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            pipe._interrupt = i + 1 >= k
            return {}

        out = self.pipe(
            [p for r in requests for p in r.candidates], num_inference_steps=requests[0].steps,
            guidance_scale=requests[0].guidance, height=self.pair.height, width=self.pair.width, latents=latents,
            negative_prompt=[r.negative_prompt for r in requests for _ in r.candidates], output_type="latent",
            callback_on_step_end=stop,
        ).images  # fmt: skip
        return list(out.float().cpu().numpy().reshape(len(requests), n, *out.shape[1:]))


class Engine:
    """The step engine in this process, warmed up; every request comes from a thread of its own."""

    def __init__(self, model: CloudModel, pair: Pair, planner: Planner, compiled: bool) -> None:
        limits = Limits(max_rows=64, max_waiting=256, max_waiting_rows=100_000, max_candidates=32)
        self.planner = planner
        self.engine = step_engine(model, pair, limits, planner, compiled=compiled)
        self.engine.start()

    def run(self, requests: Sequence[Request]) -> Latents:
        def one(request: Request) -> np.ndarray:
            job = Job(request, self.planner(request), f"client {request.seed}")
            return np.asarray(self.engine.submit(job).future.result(600).latents, np.float32)

        with ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(one, requests))


def error(found: Latents, wanted: Latents) -> float:
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(found, wanted, strict=True))


def timed(run: Callable[[Sequence[Request]], Latents], requests: list[Request], clients: int) -> list[float]:
    """Seconds of each round of `clients` requests at once."""
    seconds = []
    for i in range(0, len(requests), clients):
        started = time.perf_counter()
        run(requests[i : i + clients])
        seconds.append(time.perf_counter() - started)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", default="emoji")
    parser.add_argument("--n", type=int, default=2)
    parser.add_argument("--k", type=int, help="default: the pair's")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float16" if torch.cuda.is_available() else "float32")
    parser.add_argument("--compile", action="store_true", help="also diffusers compiled, and the engine then as well")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    pair = load_pair(args.pair)
    k = args.k or pair.handoff
    model = load_model(pair, dtype=args.dtype) if args.pair == "emoji" else random_model(pair, args.dtype)
    planners = {
        name: load_planner(source, pair.steps, model.layered.depth, guidance_distilled=model.guidance_distilled)
        for name, source in (("plain", "plain"), ("default", default_plan(pair.name)))
    }
    systems: dict[str, Any] = {"diffusers eager": Pipeline.of(model, pair, False)}
    if args.compile:
        systems["diffusers compiled"] = Pipeline.of(model, pair, True)
    systems |= {f"obclip, {name} plan": Engine(model, pair, p, args.compile) for name, p in planners.items()}
    prompts = candidate_sets(args.n, 1, 1)[0].prompts
    requests = [request_for(pair, prompts, k, seed) for seed in range(max(args.clients) * args.rounds)]

    wanted = systems["diffusers eager"].run(requests[:2])
    errors = {name: error(system.run(requests[:2]), wanted) for name, system in systems.items()}
    for name, off in errors.items():
        print(f"{name}: latents {off:.2g} from diffusers eager (relative)")
    if errors["obclip, plain plan"] > MAX_ERROR[args.dtype]:
        print("the plain plan does not do the same work: nothing is timed", file=sys.stderr)
        return 1

    here = machine() | {"torch": torch.__version__, "diffusers": version("diffusers")}
    here["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    print(f"{here['gpu'] or here['cpu']}, {args.dtype}, N = {args.n}, k = {k}, {args.rounds} rounds, in turns")
    print(f"{'system':22}{'clients':>8}{'requests/s':>12}{'spread':>14}{'rows/s':>9}{'p95 s':>8}{'/eager':>8}")
    rows: list[dict[str, Any]] = []
    for clients in args.clients:
        seconds: dict[str, list[float]] = {name: [] for name in systems}
        for i in range(-1, args.rounds):  # the first round does not count
            for name, system in systems.items():
                took = timed(system.run, requests[max(i, 0) * clients : (max(i, 0) + 1) * clients], clients)
                seconds[name] += took if i >= 0 else []
        eager = statistics.median(seconds["diffusers eager"])
        for name, took in seconds.items():
            middle = statistics.median(took)
            row = {
                "system": name, "clients": clients, "requests_per_s": clients / middle,
                "slowest": clients / max(took), "fastest": clients / min(took),
                "unet_rows_per_s": 2 * args.n * k * clients / middle, "p95_s": float(np.quantile(took, 0.95)),
                "over_eager": eager / middle, "error": errors[name],
            }  # fmt: skip
            rows.append(row)
            print(
                f"{name:22}{clients:8}{row['requests_per_s']:12.3f}{row['slowest']:7.2f}{row['fastest']:7.2f}"
                f"{row['unet_rows_per_s']:9.1f}{row['p95_s']:8.2f}{row['over_eager']:8.2f}", flush=True,
            )  # fmt: skip
    if args.json:
        settings = {"pair": pair.name, "n": args.n, "k": k, "dtype": args.dtype, "rounds": args.rounds}
        result = {"machine": here, **settings, "rows": rows}
        atomic_write_bytes(args.json, (json.dumps(result, indent=1) + "\n").encode())
    for system in systems.values():
        if isinstance(system, Engine):
            system.engine.close(10.0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
