"""What merging tokens of the widest self-attentions costs in pictures and saves in time.

    python -m runtime_tests.benchmarks.merge_tokens --work DIR --json docs/results/merge_tokens.json
    python -m runtime_tests.benchmarks.merge_tokens --work DIR --checkpoint SMALL_SD --json ...    # seconds

Pictures: the embedded pair's cloud model, which is there as PyTorch, exported as a device has it, with keys and values
of every row and column of tokens, of every second and of every fourth. Each finishes what the cloud gives at k, and
is judged as in `device_steps`. Seconds: whole passes of the checkpoint's device graphs, exported without and with, in
turns. DIR keeps the bundles.
"""

from __future__ import annotations

import argparse
import json
import statistics
from importlib.resources import files
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
from obclip.edge.providers.base import Opening
from obclip.edge.steps import PLAIN
from obclip.edge.timing import time_pass
from obclip.export import export_bundle
from obclip.export.classifier import load_classifier

from .server_fidelity import candidate_sets, compare, request_for

MERGES = (1, 2, 4)
SETS = {2: 40, 6: 16}
EMBEDDED = Path(str(files("obclip.cloud").joinpath("pairs", "emoji")))


def bundles(source: Path, work: Path, merges: tuple[int, ...], **options: Any) -> dict[int, Path]:
    found = {}
    for merge in merges:
        found[merge] = work / f"{source.name}-{merge}"
        if not found[merge].exists():
            export_bundle(source, found[merge], merge=merge, **options)
    return found


def fidelity(work: Path, ks: list[int], ns: list[int]) -> list[dict[str, Any]]:
    pair, judge = load_pair("emoji"), load_classifier()
    model = load_model(pair, "cpu", "float32")
    planner = load_planner(default_plan(pair.name), pair.steps, model.layered.depth)
    opened = {m: Bundle.open(f) for m, f in bundles(EMBEDDED, work, MERGES, targets=("cpu",)).items()}
    schedule, rows = opened[1].schedule(pair.solver, pair.steps), []
    for k in ks:
        for n in ns:
            sets, images = candidate_sets(n, SETS[n], 2), {m: list[np.ndarray]() for m in MERGES}
            for i, one in enumerate(sets):
                request = request_for(pair, one.prompts, k, 2000 + i)
                latents = execute(planner(request), request, model, pair).latents.astype(np.float32)
                for merge, bundle in opened.items():
                    drawn = []
                    for prompt, x in zip(one.prompts, latents, strict=True):
                        guide = Guidance(bundle.encode(prompt), bundle.encode(""), pair.guidance)
                        *_, (_, last, _) = denoise(bundle, schedule, guide, x, k, request.seed, None, PLAIN)
                        drawn.append(bundle.decode(last))
                    images[merge].append(np.stack(drawn))
            for merge in MERGES:
                row = {"n": n, "k": k, "merge": merge} | compare(judge, sets, images[merge], images[1])
                rows.append(row)
                print(
                    f"N {n:2}, k {k:2}, merge {merge}: attributes {row['attributes']:.3f}, worst {row['worst']:.3f}, "
                    f"distance {row['distance']:.3f}, {row['psnr_db']:.1f} dB", flush=True,
                )  # fmt: skip
    return rows


def seconds(checkpoint: Path, work: Path, runs: int) -> list[dict[str, Any]]:
    """Of one whole pass in float32 (bfloat16 where OpenVINO's processor has it), each target's provider in turns."""
    made = bundles(checkpoint, work, (1, 2), targets=("openvino", "cpu"), components=("unet",), verify=False)
    rows = []
    for provider in ("openvino", "cpu"):
        taken: dict[int, list[float]] = {merge: [] for merge in made}
        for _ in range(runs):
            for merge, folder in made.items():
                bundle = Bundle.open(folder, verify=False, provider=provider)
                variant = bundle.variant("unet", "full")
                assert variant is not None
                opening = Opening(arithmetic=bundle.arithmetic)
                taken[merge].append(time_pass(folder / variant.file, variant, bundle.provider, opening, 3))
        for merge, found in taken.items():
            row = {"checkpoint": checkpoint.name, "provider": provider, "merge": merge, "pass_s": found}
            rows.append(row | {"median_s": round(statistics.median(found), 4)})
            print(f"{checkpoint.name}, {provider}, merge {merge}: {statistics.median(found):.3f} s a pass", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--k", type=int, nargs="+", default=[10])
    parser.add_argument("--n", type=int, nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--checkpoint", type=Path, help="a diffusers folder whose passes are timed; no pictures then")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, help="what it holds of the other half stays")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    kept = json.loads(asked.json.read_text()) if asked.json and asked.json.is_file() else {}
    if asked.checkpoint is not None:
        kept["time"] = {"machine": machine(), "rows": seconds(asked.checkpoint, asked.work, asked.runs)}
    else:
        kept["pictures"] = {"pair": "emoji", "rows": fidelity(asked.work, asked.k, asked.n)}
    if asked.json:
        atomic_write_bytes(asked.json, (json.dumps(kept, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
