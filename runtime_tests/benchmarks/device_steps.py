"""What cached steps and late guidance cost in quality and save in time: the embedded pair, judged.

    python -m runtime_tests.benchmarks.device_steps --json docs/results/device_steps.json

Candidates of many sets come from the cloud (default plan) at k, and the device finishes each in every way; all ways are
compared with the plain one, and judged. Times are medians of whole completions in turns. `default` is the way that the
rule of `choose` takes: attributes within 0.02 of plain, mean and worst candidate, and 36 dB to plain, at every N and k;
of those the quickest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from obclip.cloud.engine import execute
from obclip.cloud.model import load_model
from obclip.cloud.plans import default_plan, load_planner
from obclip.core.files import atomic_write_bytes
from obclip.core.pairs import load_pair
from obclip.edge import Bundle
from obclip.edge.complete import Guidance, denoise
from obclip.edge.machine import machine
from obclip.edge.steps import PLAIN, Saving, passes, plan_steps
from obclip.export.classifier import load_classifier

from .server_fidelity import candidate_sets, compare, request_for

SAVINGS = (
    PLAIN, Saving(2), Saving(3), Saving(4), Saving(5), Saving(1, 0.8), Saving(1, 0.6), Saving(1, 0.4), Saving(2, 0.8),
    Saving(3, 0.8), Saving(2, 0.6), Saving(3, 0.6), Saving(4, 0.6), Saving(5, 0.6), Saving(3, 0.4), Saving(4, 0.4),
)  # fmt: skip
SETS = {2: 40, 6: 16}
WITHIN, MIN_PSNR_DB = 0.02, 36.0


def choose(rows: list[dict[str, Any]]) -> str:
    """The quickest saving whose attributes, mean and worst, are within WITHIN of plain's, and pictures MIN_PSNR_DB."""
    plain = {(r["n"], r["k"]): r for r in rows if r["saving"] == str(PLAIN)}
    names = list(dict.fromkeys(r["saving"] for r in rows))

    def holds(name: str) -> bool:
        return all(
            r[what] >= plain[r["n"], r["k"]][what] - WITHIN and r["psnr_db"] >= MIN_PSNR_DB
            for r in rows if r["saving"] == name for what in ("attributes", "worst", "activity")
        )  # fmt: skip

    def seconds(name: str) -> float:
        return sum(r["seconds"] for r in rows if r["saving"] == name)

    return min((name for name in names if holds(name)), key=seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--k", type=int, nargs="+", default=[5, 10])
    parser.add_argument("--n", type=int, nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--bundle", default="emoji")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    pair, bundle, judge = load_pair("emoji"), Bundle.open(args.bundle), load_classifier()
    model = load_model(pair, "cpu", "float32")
    planner = load_planner(default_plan(pair.name), pair.steps, model.layered.depth)
    schedule = bundle.schedule(pair.solver, pair.steps)
    here, rows = machine(), list[dict[str, Any]]()
    print(f"{here['cpu']}, {here['cores']} cores, onnxruntime {here['onnxruntime']}; passes whole + shallow")
    print(f"{'n':>3}{'k':>4}  {'saving':50}{'passes':>9}{'seconds':>9}{'/plain':>8}{'attr.':>7}{'worst':>7}{'PSNR':>7}")
    for k in args.k:
        for n in args.n:
            sets, images = candidate_sets(n, SETS[n], 2), dict[str, list[np.ndarray]]()
            seconds: dict[str, list[float]] = {str(s): [] for s in SAVINGS}
            for i, one in enumerate(sets):
                request = request_for(pair, one.prompts, k, 2000 + i)
                latents = execute(planner(request), request, model, pair).latents.astype(np.float32)
                for saving in SAVINGS:
                    drawn = []
                    for prompt, x in zip(one.prompts, latents, strict=True):
                        guide = Guidance(bundle.encode(prompt), bundle.encode(""), pair.guidance)
                        started = time.perf_counter()
                        *_, (_, last, _) = denoise(bundle, schedule, guide, x, k, request.seed, None, saving)
                        seconds[str(saving)].append(time.perf_counter() - started)
                        drawn.append(bundle.decode(last))
                    images.setdefault(str(saving), []).append(np.stack(drawn))
            plain_s = statistics.median(seconds[str(PLAIN)])
            for saving in SAVINGS:
                whole, shallow = passes(plan_steps(k, pair.steps, saving))
                found = compare(judge, sets, images[str(saving)], images[str(PLAIN)])
                middle = statistics.median(seconds[str(saving)])
                row = {
                    "n": n,
                    "k": k,
                    "saving": str(saving),
                    "whole": whole,
                    "shallow": shallow,
                    "seconds": middle,
                } | found
                rows.append(row)
                print(
                    f"{n:3}{k:4}  {saving!s:50}{f'{whole}+{shallow}':>9}{middle:9.4f}{middle / plain_s:8.2f}"
                    f"{found['attributes']:7.3f}{found['worst']:7.3f}{found['psnr_db']:7.1f}", flush=True,
                )  # fmt: skip
    chosen = choose(rows)
    print(f"default by the rule: {chosen}")
    if args.json:
        result = {
            "machine": here,
            "pair": pair.name,
            "within": WITHIN,
            "min_psnr_db": MIN_PSNR_DB,
            "default": chosen,
            "rows": rows,
        }
        atomic_write_bytes(args.json, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
