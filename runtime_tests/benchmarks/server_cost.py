"""What N private candidates cost the cloud: policies against vanilla and Hybrid SD, in multiply-accumulates and time.

    python -m runtime_tests.benchmarks.server_cost --json docs/results/server_cost.json         # the embedded pair
    python -m runtime_tests.benchmarks.server_cost --pair realistic-vision --macs-only          # a shape, in seconds
    python -m runtime_tests.benchmarks.server_cost --pair realistic-vision --n 2 --k 10         # random weights, timed

`rows`: one a plan, N and k. Hybrid SD is one candidate, its prompt in the clear; "server only" all steps of it. On the
embedded pair every candidate is finished on the device's UNet and judged (server_fidelity); plans are timed in turns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from obclip.cloud.cost import Profile, plan_macs, profile_unet
from obclip.cloud.denoising import Denoising
from obclip.cloud.engine import run_step
from obclip.cloud.model import CloudModel, load_model
from obclip.cloud.plan import Plan, Policy, build_plan, plain_plan
from obclip.cloud.plans import Planner, default_plan, load_planner
from obclip.cloud.policies import (
    DeepCache,
    GuidanceFrom,
    Prefix,
    PublishedCache,
    PublishedReuse,
    SharedDeep,
    SharedUnconditional,
    Tree,
)
from obclip.cloud.unet import LayeredUNet
from obclip.core.errors import InputError
from obclip.core.files import atomic_write_bytes
from obclip.core.pairs import Pair, load_pair
from obclip.edge.machine import machine

from .architectures import CLOUD_UNETS, TOKENS
from .server_fidelity import CandidateSet, candidate_sets, compare, draw, request_for

SETS = {2: 40, 6: 16, 10: 10, 30: 4}  # candidate sets judged for each N
TIMED_RUNS = 3


def published_points(pair: Pair, k: int) -> tuple[int, int]:
    """The paper's r and s: the pair's own, and 3 and 3 at k = 5."""
    return (min(3, pair.cache_from), min(3, pair.skip_from)) if k <= 5 else (pair.cache_from, pair.skip_from)


def plans_to_compare(pair: Pair, k: int, depth: int, planner: Planner) -> dict[str, list[Policy] | Planner]:
    """Name to policies."""
    r, s = published_points(pair, k)
    shared = SharedUnconditional()
    block = 3  # up layers of the outermost block, in every shipped pair's cloud UNet

    def cache(d: int, first: int = 1) -> DeepCache:
        return DeepCache.every(2, d, k, first)

    return {
        "published cache": [PublishedCache(r, s, depth)],
        "published cache + reuse": [PublishedCache(r, s, depth), PublishedReuse(r)],
        "guidance from 2": [GuidanceFrom(2)],
        "shared unconditional": [shared],
        "prefix 3": [Prefix(3)],
        "deep cache 1": [cache(1)],
        "deep cache 3": [cache(3)],
        "shared deep 3 from 3": [SharedDeep(block, 3)],
        "shared + prefix 3": [shared, Prefix(3)],
        "shared + prefix 5": [shared, Prefix(5)],
        "shared + tree 3, 6": [shared, Tree((3, 6))],
        "shared + deep cache 1": [shared, cache(1)],
        "shared + prefix 3 + deep cache 3": [shared, Prefix(3), cache(3)],
        "shared + prefix 4 + deep cache 1": [shared, Prefix(4), cache(1)],
        f"default ({planner.name})": planner,
    }


def macs_row(profile: Profile, n: int, k: int, name: str, plan: Plan) -> dict[str, Any]:
    macs = plan_macs(plan, profile)
    return {
        "n": n, "k": k, "plan": name, "macs": macs.total, "macs_published": macs.published, "macs_layers": macs.layers,
        "rows": plan.rows, "passes": sum(len(s.passes) for s in plan.steps),
    }  # fmt: skip


def plan_of(
    pair: Pair, prompts: Sequence[str], k: int, policies: list[Policy] | Planner, distilled: bool = False
) -> Plan:
    request = request_for(pair, prompts, k, 0)
    return policies(request) if isinstance(policies, Planner) else build_plan(request, policies, 64, distilled)


def policies_of(pair: Pair, prompts: Sequence[str], k: int, policies: list[Policy] | Planner) -> list[Policy]:
    return policies.policies(request_for(pair, prompts, k, 0)) if isinstance(policies, Planner) else policies


@torch.inference_mode()
def timed(
    model: CloudModel, pair: Pair, prompts: Sequence[str], k: int, plans: dict[str, Plan], runs: int
) -> dict[str, tuple[list[float], int, int]]:
    """name -> (seconds of every run, peak bytes over what was there before, bytes of kept features), runs in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    memory, kept = dict.fromkeys(plans, 0), dict.fromkeys(plans, 0)
    for _ in range(runs):
        for name, plan in plans.items():
            asked = request_for(pair, prompts if plan.candidates > 1 else prompts[:1], k, 0)
            with PeakMemory(model.device) as peak:
                started = time.perf_counter()
                state = Denoising(model, pair, asked, plan)
                for step in plan.steps:
                    run_step(state, step)
                    kept[name] = max(kept[name], sum(f.numel() * f.element_size() for f in state.features.values()))
                if model.device.type == "cuda":
                    torch.cuda.synchronize()
                seconds[name].append(time.perf_counter() - started)
            memory[name] = max(memory[name], peak.bytes)
    return {name: (seconds[name], memory[name], kept[name]) for name in plans}


class PeakMemory:
    """Most memory used inside, over what was used on entry: of the GPU's allocator, or of this process on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0

    def __enter__(self) -> PeakMemory:
        import threading

        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return self
        self.done = threading.Event()
        self.before = _resident()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated() - self.before
            return
        self.done.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.done.wait(0.005):
            self.bytes = max(self.bytes, _resident() - self.before)


def _resident() -> int:
    import psutil  # comes with accelerate

    return int(psutil.Process().memory_info().rss)


def random_model(pair: Pair, dtype: str) -> CloudModel:
    """The pair's cloud UNet at full size with random weights, behind the embedded pair's text encoder made as wide."""
    from .random_weights import random_cloud_model

    return random_cloud_model(CLOUD_UNETS[pair.name], dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", default="emoji")
    parser.add_argument("--n", type=int, nargs="+", choices=sorted(SETS), default=[2, 6, 30])
    parser.add_argument("--k", type=int, nargs="+", help="default: 5 and 10, or the pair's own if it has few steps")
    parser.add_argument("--plans", nargs="+", help="only plans whose name holds one of these words")
    parser.add_argument("--plan", default=None, help="the default to compare: a pair's name or a TOML file")
    parser.add_argument("--macs-only", action="store_true", help="no weights, no times")
    parser.add_argument("--no-fidelity", action="store_true")
    parser.add_argument("--runs", type=int, default=TIMED_RUNS, help="timed ones; 0 for none")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", action="store_true", help="keep the points that the --json file has")
    parser.add_argument("--plot", type=Path, help="an SVG: fidelity against cost")
    args = parser.parse_args()
    pair = load_pair(args.pair)
    model = None
    if args.pair != "emoji" and args.macs_only:
        with torch.device("meta"):
            layered = LayeredUNet(UNet2DConditionModel(**CLOUD_UNETS[args.pair]))
        profile, distilled = profile_unet(layered, pair.latent_shape, TOKENS), pair.solver == "lcm"
    else:
        model = load_model(pair, dtype=args.dtype) if args.pair == "emoji" else random_model(pair, args.dtype)
        layered, distilled = model.layered, model.guidance_distilled
        profile = profile_unet(layered, pair.latent_shape, model.text.max_tokens)
    planner = load_planner(
        args.plan or default_plan(pair.name), pair.steps, layered.depth, guidance_distilled=distilled
    )
    one = candidate_sets(2, 1, 1)[0].prompts[:1]
    server = plan_macs(plain_plan(request_for(pair, one, pair.steps, 0), 64, distilled), profile)
    result: dict[str, Any] = {
        "machine": machine(), "pair": pair.name, "steps": pair.steps, "dtype": args.dtype, "runs": args.runs,
        "server_only_macs": server.total, "server_only_macs_published": server.published, "rows": [],
    }  # fmt: skip
    if args.keep and args.json and args.json.exists():
        result["rows"] = _points_kept(json.loads(args.json.read_text()), result)
    for k in args.k or ([5, 10] if pair.steps > 10 else [pair.handoff]):
        for n in args.n:
            if any((r["n"], r["k"]) == (n, k) for r in result["rows"]):
                continue
            result["rows"] += point(pair, model, profile, planner, n, k, args)
            if args.json:  # after every point, so that a long run that is cut off leaves what it has
                args.json.parent.mkdir(parents=True, exist_ok=True)
                atomic_write_bytes(args.json, (json.dumps(result, indent=1) + "\n").encode())
    if args.plot:
        plot(result, args.plot)
    show(result)


def _points_kept(before: dict[str, Any], now: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of an earlier run. InputError if it was of another pair, type, number of runs or cost."""
    same = ("pair", "steps", "dtype", "runs", "server_only_macs")
    if any(before.get(name) != now[name] for name in same):
        raise InputError(f"the file is of another run ({', '.join(same)} differ); leave --keep out to replace it")
    return list(before["rows"])


def point(
    pair: Pair, model: CloudModel | None, profile: Profile, planner: Planner, n: int, k: int, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """All plans at one N and k."""
    sets = candidate_sets(n, SETS[n], 1)
    prompts = sets[0].prompts
    distilled = planner.guidance_distilled
    chosen: dict[str, list[Policy] | Planner] = {"vanilla": []}
    chosen |= plans_to_compare(pair, k, len(profile.up), planner)
    if args.plans:
        chosen = {name: p for name, p in chosen.items() if any(w in name for w in ["vanilla", "default", *args.plans])}
    plans = {name: plan_of(pair, prompts, k, p, distilled) for name, p in chosen.items()}
    alone: dict[str, list[Policy] | Planner] = {
        "hybrid sd": [],
        "hybrid sd + published cache": plans_to_compare(pair, k, len(profile.up), planner)["published cache"],
        f"hybrid sd + default ({planner.name})": planner,
    }  # fmt: skip
    plans |= {name: plan_of(pair, prompts[:1], k, p, distilled) for name, p in alone.items()}
    rows = [macs_row(profile, n, k, name, plan) for name, plan in plans.items()]
    if model is None:
        return rows
    times = timed(model, pair, prompts, k, plans, args.runs) if args.runs else {}
    for row in rows if times else ():
        seconds, memory, kept = times[row["plan"]]
        row |= {"seconds": round(statistics.median(seconds), 4), "seconds_min": round(min(seconds), 4)}
        row |= {"seconds_max": round(max(seconds), 4), "peak_bytes": memory, "kept_bytes": kept}
    if pair.name == "emoji" and not args.no_fidelity:
        add_fidelity(rows, model, pair, sets, k, chosen)
    return rows


def add_fidelity(
    rows: list[dict[str, Any]], model: CloudModel, pair: Pair, sets: Sequence[CandidateSet], k: int,
    chosen: dict[str, list[Policy] | Planner],
) -> None:  # fmt: skip
    from obclip.edge import Bundle
    from obclip.export.classifier import load_classifier

    bundle, judge = Bundle.open("emoji"), load_classifier()
    vanilla = draw(model, bundle, pair, sets, k, [])
    for row in rows:
        if row["plan"] not in chosen:
            continue
        policies = policies_of(pair, sets[0].prompts, k, chosen[row["plan"]])
        images = vanilla if row["plan"] == "vanilla" else draw(model, bundle, pair, sets, k, policies)
        row["fidelity"] = compare(judge, sets, images, vanilla)
        print(f"n {row['n']} k {k} {row['plan']}: {row['fidelity']}", file=sys.stderr, flush=True)


def plot(result: dict[str, Any], path: Path) -> None:
    """Cost against fidelity, one panel a point (N, k); the Pareto front joined."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ns, ks = (sorted({r[name] for r in result["rows"]}) for name in ("n", "k"))
    figure, panels = pyplot.subplots(
        len(ks), len(ns), figsize=(3.8 * len(ns), 3.4 * len(ks)), layout="constrained", squeeze=False
    )
    for axes, (k, n) in zip(panels.flat, itertools.product(ks, ns), strict=True):
        rows = [r for r in result["rows"] if (r["n"], r["k"]) == (n, k) and "fidelity" in r and r["plan"] != "vanilla"]
        front, best = [], -1.0
        for r in sorted(rows, key=lambda r: r["macs"]):
            if r["fidelity"]["psnr_db"] > best:
                best = r["fidelity"]["psnr_db"]
                front.append(r)
        cost = [r["macs"] / result["server_only_macs"] for r in front]
        axes.plot(cost, [r["fidelity"]["psnr_db"] for r in front], color="0.7", zorder=0)
        named: list[tuple[bool, float, float, str]] = []
        for r in rows:
            colour = "tab:red" if "published" in r["plan"] else "tab:green" if "default" in r["plan"] else "tab:blue"
            x, y = r["macs"] / result["server_only_macs"], r["fidelity"]["psnr_db"]
            axes.scatter([x], [y], color=colour, s=18)
            named += [(colour == "tab:blue", x, y, r["plan"])] if r in front or colour != "tab:blue" else []
        axes.margins(x=0.25, y=0.08)
        to_axes, taken = axes.transData + axes.transAxes.inverted(), list[tuple[float, float]]()
        for _, x, y, name in sorted(named):  # ours and the paper's first; no name over another
            a, b = to_axes.transform((x, y))
            if all(abs(a - c) > 0.4 or abs(b - d) > 0.04 for c, d in taken):
                taken.append((a, b))
                axes.annotate(name, (x, y), fontsize=6.5, xytext=(4, 2), textcoords="offset points")
        axes.set_title(f"N = {n}, k = {k}", fontsize=9)
    figure.supxlabel("cloud cost, in images without privacy", fontsize=9)
    figure.supylabel("PSNR of finished pictures to the plain plan's, dB", fontsize=9)
    figure.savefig(path)


def show(result: dict[str, Any]) -> None:
    server, published = result["server_only_macs"], result["server_only_macs_published"]
    here = result["machine"]
    print(f"{result['pair']}: one image without privacy is {server / 1e12:.4g} T MACs ({published / 1e12:.4g} in the")
    print("paper's way of counting)")
    print(f"{here['cpu']}, {here['cores']} cores, torch {torch.__version__}, {result['dtype']}, runs: {result['runs']}")
    timed = any("seconds" in r for r in result["rows"])
    head = ("T MACs", "paper", "/server", "/hybrid", *(("s", "kept MB") if timed else ()))
    print(f"{'n':>3} {'k':>3} {'plan':38}" + "".join(f"{h:>9}" for h in head))
    for r in result["rows"]:
        hybrid = next(h["macs"] for h in result["rows"] if (h["n"], h["k"], h["plan"]) == (r["n"], r["k"], "hybrid sd"))
        measured = f"{r['seconds']:8.3f} {r['kept_bytes'] / 1e6:8.2f}" if "seconds" in r else ""
        print(
            f"{r['n']:3} {r['k']:3} {r['plan']:38} {r['macs'] / 1e12:9.4f} {r['macs_published'] / 1e12:8.3f} "
            f"{r['macs'] / server:8.3f} {r['macs'] / hybrid:8.3f} {measured}"
        )


if __name__ == "__main__":
    main()
