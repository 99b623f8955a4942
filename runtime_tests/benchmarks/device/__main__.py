"""The device's half beside its peers: from received latents to the PNG, on one random-weight checkpoint.

    make peers      # optimum-intel and stable-diffusion.cpp, in an environment of their own
    python -m runtime_tests.benchmarks.device --work DIR --json docs/results/device.json
    python -m runtime_tests.benchmarks.device --work DIR --checkpoint bk-sdm-tiny --k 10   # with stable-diffusion.cpp

Every run is a process of its own, and systems take turns, so that a machine that slows down slows all of them. DIR
keeps the checkpoint, our bundle, what peers prepare once, and each run's result: a run that was interrupted goes on
where it was. All take DDIM's steps k..T-1 with guidance from the same latents, and encode their texts before the clock
starts. PSNR is of the picture, to diffusers in float32 with the same decoder; with cached steps and late guidance it
says little here, for random weights are no trained ones: `device_steps` judges those on the embedded pair.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from obclip.core.files import atomic_write_bytes
from obclip.core.noise import initial_noise
from obclip.core.pairs import load_pair
from obclip.core.received import Received
from obclip.core.schedule import build_schedule
from obclip.core.schedule_config import ScheduleConfig
from obclip.core.wire import Request, Response
from obclip.edge.machine import machine
from obclip.export import Calibration, export_bundle
from obclip.export.quantise.prompts import PEOPLE

from ..checkpoints import make_checkpoint, make_tiny_decoder
from .report import peaks, summary, table
from .systems import System, has_bf16, systems_of

STEPS = 25
FLOORS_DB = {"openvino": 33.0, "cpu": 34.0}  # UNet and decoder each, so that together they are above 30
_SETTINGS: dict[str, Any] = {
    "prompt": "noto style emoji of a woman cook", "negative": "", "guidance": 7.5, "steps": STEPS, "height": 512,
    "width": 512,
}  # fmt: skip
_PAIR = """solver = "ddim"
steps = 25
handoff = 10
guidance = 7.5
height = 512
width = 512
latent_channels = 4
latent_downscale = 8
[cloud]
source = "cloud"
[device]
source = "device"
"""


def prepare(work: Path, checkpoint: str, prompts: int) -> None:
    """The checkpoint, the tiny decoder, our bundle with int8 graphs for both runtimes."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "pair.toml").write_text(_PAIR)
    if not (work / checkpoint).exists():
        make_checkpoint(checkpoint, work / checkpoint)
    if not (work / "taesd").exists():
        make_tiny_decoder(work / "taesd")
    if not (work / "bundle").exists():
        export_bundle(
            str(work / checkpoint), work / "bundle", targets=("openvino", "cpu"), tiny_decoder=work / "taesd",
            precisions=() if checkpoint == "bk-sdm-tiny" else ("int8",), progress=_tell,
            calibration=Calibration(
                load_pair(str(work / "pair.toml")), prompts=prompts, floor_db=FLOORS_DB,
                received=received(work, checkpoint, prompts),
            ),
        )  # fmt: skip


def _tell(part: str, phase: str, seconds: float) -> None:
    print(f"{part}: {phase} ({seconds:.0f} s)", file=sys.stderr, flush=True)


def latents_at(work: Path, checkpoint: str, k: int, number: int = 0) -> tuple[NDArray[np.float16], str]:
    """[1, 4, 64, 64], as a cloud would return at step k: smooth clean latents of unit variance under the schedule's
    noise; and the schedule's digest. Each number has latents of its own."""
    schedule = build_schedule(ScheduleConfig.of_model(work / checkpoint), "ddim", STEPS)
    coarse = torch.from_numpy(initial_noise(1 + 2 * number, (4, 16, 16)))[None]
    clean = torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic")[0].numpy()
    clean /= clean.std()
    alpha = float(schedule.alphas[k])
    x = alpha * clean + np.sqrt(1 - alpha**2) * initial_noise(2 + 2 * number, (4, 64, 64))
    return x.astype(np.float16)[None], schedule.digest


def received(work: Path, checkpoint: str, count: int) -> tuple[Path, ...]:
    """What calibration goes on from: latents like those that are timed, of other numbers and prompts."""
    pair, paths = load_pair(str(work / "pair.toml")), []
    for number, prompt in enumerate(PEOPLE[:count], 1):
        x, digest = latents_at(work, checkpoint, pair.handoff, number)
        request = Request(
            pair=pair.digest, candidates=(prompt,), negative_prompt="", seed=number, height=pair.height,
            width=pair.width, steps=pair.steps, handoff=pair.handoff, guidance=pair.guidance, solver=pair.solver,
        )  # fmt: skip
        paths.append(work / f"received_{number}.safetensors")
        Received(request, Response(x, None, pair.handoff, digest, "0" * 64)).save(paths[-1])
    return tuple(paths)


def result_file(work: Path, system: System, ks: list[int], number: int) -> Path:
    name = "".join(c if c.isalnum() else "-" for c in system.key)
    return work / "runs" / f"{name}.{'-'.join(map(str, ks))}.{number}.json"


def run_one(work: Path, checkpoint: str, system: System, ks: list[int], peers: Path, number: int) -> dict[str, Any]:
    """One process, or its result if it ran already; `failed` with the last line of what it said, if it did."""
    done = result_file(work, system, ks, number)
    folder, name, stem = done.parent, done.name.partition(".")[0], done.stem
    folder.mkdir(exist_ok=True)
    if done.is_file():
        return dict(json.loads(done.read_text()))
    jobs = []
    for k in ks:
        latents = work / f"latents_{k}.npy"
        np.save(latents, latents_at(work, checkpoint, k)[0].astype(np.float32))
        jobs.append({"k": k, "latents": str(latents), "out": str(folder / f"{name}.{k}")})
    spec: dict[str, Any] = {
        "system": system.name,
        "checkpoint": str(work / checkpoint),
        "tiny": str(work / "taesd") if system.tiny else None,
        "work": str(work / "prepared"),
        "prepare": False,
        "bf16": has_bf16(),
        "bundle": str(work / "bundle"),
        "pair": str(work / "pair.toml"),
        "options": system.options,
        "saving": list(system.saving),
        "jobs": jobs,
    } | _SETTINGS
    path = folder / f"{stem}.spec.json"
    module = ["-m", "runtime_tests.benchmarks.device.ours"]
    worker = [sys.executable, *module] if system.ours else [str(peers), str(Path(__file__).with_name("peers.py"))]
    row = {"system": system.key, "repeat": number}
    for preparing in (True, False) if "optimum" in system.name else (False,):
        path.write_text(json.dumps(spec | {"prepare": preparing}))
        ended = subprocess.run([*worker, str(path)], capture_output=True, text=True)
        if ended.returncode != 0:
            said = (ended.stderr.strip() or f"ended with {ended.returncode}").splitlines()[-1]
            return row | {"failed": said}
    row |= json.loads(ended.stdout.strip().splitlines()[-1])
    atomic_write_bytes(done, json.dumps(row).encode())
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--checkpoint", default="small-sd")
    parser.add_argument("--peers", type=Path, default=Path(".venv-peers/bin/python"), help="a Python that has them")
    parser.add_argument("--k", type=int, nargs="+", default=[10, 5])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[""], help="systems whose name has one of these in it")
    parser.add_argument("--report", action="store_true", help="run nothing, report what DIR has")
    parser.add_argument("--calibration-prompts", type=int, default=4)
    parser.add_argument("--memory", type=Path, help="what device_memory wrote, for the peaks in the results")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    prepare(asked.work, asked.checkpoint, asked.calibration_prompts)
    chosen = [s for s in systems_of(asked.checkpoint, has_bf16()) if any(some in s.key for some in asked.only)]
    rows = []
    for k in asked.k:
        for number in range(asked.repeats):
            for system in chosen:
                if asked.report and not result_file(asked.work, system, [k], number).is_file():
                    continue
                row = run_one(asked.work, asked.checkpoint, system, [k], asked.peers, number)
                rows.append(row)
                said = row.get("failed") or ", ".join(f"k {r['k']}: {r['seconds']:.2f} s" for r in row["runs"])
                print(f"{number}  {system.key}: {said}", file=sys.stderr, flush=True)
    found = summary(rows, asked.work / "runs", machine() | {"checkpoint": asked.checkpoint})
    if asked.memory:
        found["peak_memory_bytes"] = peaks(json.loads(asked.memory.read_text())["rows"])
    print(table(found))
    if asked.json:
        atomic_write_bytes(asked.json, (json.dumps(found, indent=1) + "\n").encode())
    if asked.plot:
        from .report import plot

        plot(found, asked.plot)


if __name__ == "__main__":
    main()
