"""Bundles of every family at full size, from random weights: what export takes, and that others draw from them.

    python -m runtime_tests.benchmarks.families --work DIR --json docs/results/families.json

One family at a time: a checkpoint is made, exported by `obclip export` in a process whose peak memory the system
reports, opened by ONNX Runtime here and by optimum's pipeline, which draws two steps that diffusers draws from the
checkpoint too. Checkpoint and bundle are removed when their row is done; rows that DIR has are not made again. SDXL's
base has a third of its transformer layers here: whole, its float32 weights alone are 10 GB, export takes a multiple.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from obclip.core.files import atomic_write_bytes
from obclip.core.manifest import Manifest
from obclip.core.noise import initial_noise
from obclip.edge import Bundle
from obclip.edge.machine import machine
from obclip.export.verify import psnr_db

from .checkpoints import make_tiny_decoder

# name -> the architecture and what is changed of it
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "sd15": ("sd15", {}),
    "small-sd": ("small-sd", {}),
    "bk-sdm-small": ("bk-sdm-small", {}),
    "bk-sdm-tiny": ("bk-sdm-tiny", {}),
    "lcm-small": ("small-sd", {"time_cond_proj_dim": 256}),
    "koala-700m": ("koala-700m", {}),
    "sdxl, a third of its layers": ("sdxl", {"transformer_layers_per_block": (1, 1, 3)}),
}
_PROMPT, _STEPS, _PX, _GUIDANCE = "noto style emoji of a woman cook", 2, 256, 7.5


def child(command: list[str], log: Path) -> tuple[str, int]:
    """What it printed, and its own peak of resident memory in bytes. RuntimeError with the last line it complained."""
    with log.open("w") as out, log.with_suffix(".err").open("w") as error:
        process = subprocess.Popen(command, stdout=out, stderr=error)
        _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        said = log.with_suffix(".err").read_text().strip() or f"ended with {status}"
        raise RuntimeError(f"{log.stem}: {said.splitlines()[-1]}")
    return log.read_text().strip(), usage.ru_maxrss * 1024


def exported(work: Path, source: Path, out: Path, tiny: Path, *more: str) -> dict[str, Any]:
    """Seconds, and the peak of resident memory over the bytes of the checkpoint in float32."""
    command = [sys.executable, "-c", "from obclip.edge.cli import main; main()", "export", str(source), str(out)]
    command += ["--targets", "cpu", "--force", "--json", "--tiny-decoder", str(tiny), *more]
    started = time.perf_counter()
    _, peak = child(command, work / "export.log")
    size = sum(p.stat().st_size for p in source.rglob("*.safetensors"))
    return {
        "seconds": round(time.perf_counter() - started, 1), "peak_bytes": peak, "checkpoint_bytes": size,
        "peak_over_checkpoint": round(peak / size, 2),
    }  # fmt: skip


def by_onnx_runtime(folder: Path) -> dict[str, Any]:
    """Every component's file is loaded by a plain session, then one prompt is drawn by our own device."""
    manifest, loaded = Manifest.read(folder), {}
    for component in manifest.components:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_cpu_mem_arena = False
        started = time.perf_counter()
        ort.InferenceSession(folder / component.file, options, providers=["CPUExecutionProvider"])
        loaded[component.name] = round(time.perf_counter() - started, 2)
    Bundle.open(folder)
    return {"load_s": loaded}


def draw(kind: str, folder: str, out: str) -> None:
    """In a process of its own: two guided steps by diffusers from the checkpoint, or by optimum from the bundle."""
    from diffusers import DDIMScheduler, DiffusionPipeline
    from optimum.onnxruntime import ORTDiffusionPipeline

    if kind == "optimum":
        pipeline = ORTDiffusionPipeline.from_pretrained(folder)
    else:
        pipeline = DiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.from_numpy(initial_noise(3, (4, _PX // 8, _PX // 8)))[None].float()
    image = pipeline(
        _PROMPT, latents=latents, num_inference_steps=_STEPS, guidance_scale=_GUIDANCE, height=_PX, width=_PX,
        output_type="np",
    ).images[0]  # fmt: skip
    np.save(out, image)
    print(type(pipeline).__name__)


def by_optimum(work: Path, source: Path, bundle: Path) -> dict[str, Any]:
    pictures, names = [], []
    for kind, folder in (("diffusers", source), ("optimum", bundle)):
        out = work / f"{kind}.npy"
        call = f"from runtime_tests.benchmarks.families import draw; draw({kind!r}, {str(folder)!r}, {str(out)!r})"
        said, _ = child([sys.executable, "-c", call], work / f"{kind}.log")
        pictures.append(np.load(out).astype(np.float64))
        names.append(said.splitlines()[-1])
    return {"pipeline": names[1], "psnr_db": round(psnr_db(*pictures), 1), "spread": round(float(pictures[0].std()), 4)}


def row_of(name: str, work: Path) -> dict[str, Any]:
    architecture, changes = FAMILIES[name]
    source, bundle, tiny = work / "checkpoint", work / "bundle", work / "taesd"
    if not tiny.exists():
        make_tiny_decoder(tiny)
    for folder in (source, bundle):
        shutil.rmtree(folder, ignore_errors=True)
    make = "from pathlib import Path; from runtime_tests.benchmarks.checkpoints import make_checkpoint; "
    child([sys.executable, "-c", f"{make}make_checkpoint({architecture!r}, Path({str(source)!r}), **{changes!r})"],
          work / "checkpoint.log")  # fmt: skip
    row: dict[str, Any] = {"family": name, "architecture": architecture, "changes": changes}
    row["export"] = exported(work, source, bundle, tiny)
    manifest = Manifest.read(bundle)
    row["bundle"] = {
        "family": manifest.family, "size": [manifest.height, manifest.width], "conditioning": manifest.conditioning,
        "bytes": sum(f.bytes for f in manifest.files), "completion": manifest.completion,
        "components": {c.name: c.verification for c in manifest.components},
        "variants": {f"{v.component} {v.role}": v.verification["psnr_db"] for v in manifest.variants},
    }  # fmt: skip
    row["unverified"] = exported(work, source, work / "unverified", tiny, "--no-verify")
    shutil.rmtree(work / "unverified")
    row["onnx_runtime"] = by_onnx_runtime(bundle)
    row["optimum"] = by_optimum(work, source, bundle)
    for folder in (source, bundle):
        shutil.rmtree(folder, ignore_errors=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="20 GB of room")
    parser.add_argument("--only", choices=FAMILIES, nargs="+", default=list(FAMILIES))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in asked.only:
        done = asked.work / f"{name.replace(', ', '-').replace(' ', '-')}.json"
        if not done.is_file():
            atomic_write_bytes(done, json.dumps(row_of(name, asked.work)).encode())
        row = json.loads(done.read_text())
        e, o = row["export"], row["optimum"]
        parts = ", ".join(f"{k} {v['psnr_db']:.0f}" for k, v in row["bundle"]["components"].items())
        print(
            f"{name:28} {e['seconds']:6.0f} s  {e['peak_bytes'] / 1e9:5.1f} GB, {e['peak_over_checkpoint']:.2f} of the "
            f"checkpoint  parts dB: {parts}  completion {row['bundle']['completion']['psnr_db']:.0f} dB  "
            f"optimum {o['pipeline']} {o['psnr_db']} dB",
            flush=True,
        )
        rows.append(row)
    if asked.json:
        result = {"machine": machine(), "rows": rows}
        atomic_write_bytes(asked.json, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
