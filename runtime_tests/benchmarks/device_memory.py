"""What finishing a picture takes of memory, as the operating system sees it, phase by phase; also under a hard limit.

    python -m runtime_tests.benchmarks.device_memory --work DIR --json docs/results/device_memory.json --plot docs/...

DIR as of `runtime_tests.benchmarks.device`. Each way is a process of its own, of which a thread samples resident memory
every 10 ms: `anonymous` is what only swap could take, `file` what is mapped from files and may be dropped. Start-up,
the texts, the steps and the decoding are phases. With `--limits` two ways are run again in control groups of
1500 and 600 MB (Linux, root, no swap), by the plan that `--memory-limit` chooses.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from obclip.core.files import atomic_write_bytes
from obclip.core.pairs import load_pair
from obclip.core.wire import Response
from obclip.edge import Bundle
from obclip.edge.generate import finish
from obclip.edge.image import save_png
from obclip.edge.job import prepare
from obclip.edge.machine import machine, peak_memory_bytes
from obclip.edge.memory import estimate
from obclip.edge.readiness import ready
from obclip.edge.steps import Saving

from .device.systems import has_bf16
from .device.usage import resident_bytes

_EVERY_S = 0.01
_GROUPS = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")  # of version 1, of version 2
WAYS: dict[str, dict[str, Any]] = {
    "openvino int8, tiny decoder": {"provider": "openvino", "precision": "int8", "decoder": "tiny"},
    "openvino bf16, tiny decoder": {"provider": "openvino", "precision": "bf16", "decoder": "tiny"},
    "cpu int8, tiny decoder": {"provider": "cpu", "precision": "int8", "decoder": "tiny"},
    "cpu int8, own decoder": {"provider": "cpu", "precision": "int8"},
    "cpu int8, tiny decoder, lean": {"provider": "cpu", "precision": "int8", "decoder": "tiny", "lean": True},
    "cpu fp32, tiny decoder": {"provider": "cpu", "precision": "fp32", "decoder": "tiny"},
    "cpu fp32, tiny decoder, lean": {"provider": "cpu", "precision": "fp32", "decoder": "tiny", "lean": True},
}
LIMITED = (("openvino int8, tiny decoder", 1500), ("cpu int8, own decoder", 600))


class Sampler:
    """Resident memory of this process over time, by phase."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, str, int, int]] = []
        self._stop = threading.Event()
        self.enter("start")
        self._thread = threading.Thread(target=self._run, daemon=True)

    def enter(self, phase: str) -> None:
        self.phase = phase
        print(f"phase {phase}", file=sys.stderr, flush=True)  # where it was, should the system end it

    def _run(self) -> None:
        began = time.perf_counter()
        while not self._stop.wait(_EVERY_S):
            now = resident_bytes()
            self.samples.append((round(time.perf_counter() - began, 3), self.phase, now["anonymous"], now["file"]))

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def peaks(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for _, phase, anonymous, file in self.samples:
            p = found.setdefault(phase, {"anonymous": 0, "file": 0, "resident": 0})
            p["anonymous"], p["file"] = max(p["anonymous"], anonymous), max(p["file"], file)
            p["resident"] = max(p["resident"], anonymous + file)
        return found


def child(work: Path, options: dict[str, Any], k: int) -> dict[str, Any]:
    """One completion from latents at k, DeepCache every second step and guidance for 60 % of the steps."""
    with Sampler() as seen:
        bundle = Bundle.open(work / "bundle", verify=False, **options)
        seen.enter("text")
        prompt = "noto style emoji of a woman cook"
        pair = load_pair(str(work / "pair.toml"))
        job = prepare(prompt, bundle, pair=pair, seed=1, handoff=k, saving=Saving(2, 0.6))
        latents = np.load(work / f"latents_{k}.npy").astype(np.float16).repeat(len(job.candidates.prompts), axis=0)
        guide = ready(job, bundle)
        seen.enter("steps")
        began = time.perf_counter()

        def tell(phase: str, done: int, of: int) -> None:
            if done == of:
                seen.enter("decode")

        picture = finish(job, bundle, Response(latents, None, k, "0" * 64, "0" * 64), guide, {}, tell)
        save_png(work / "memory-picture.png", picture, {})
        seconds = time.perf_counter() - began
    o = bundle.options
    return {
        "seconds": round(seconds, 2),
        "peaks": seen.peaks(),
        "peak_bytes": peak_memory_bytes(),
        "chosen": {"lean": o.lean, "tiled": o.tiled, "decoder": o.decoder},
        "estimated": vars(estimate(bundle.manifest, o, bundle.provider.target)),
        "samples": seen.samples[:: max(1, len(seen.samples) // 400)],
    }


def run(work: Path, name: str, options: dict[str, Any], limit: int | None, k: int) -> dict[str, Any]:
    asked = options if limit is None else options | {"memory_limit": limit}
    command = [sys.executable, "-m", "runtime_tests.benchmarks.device_memory", "--work", str(work), "--child"]
    with group(limit) as place:
        ended = subprocess.run(
            [*command, json.dumps(asked), "--k", str(k), *(["--join", str(place)] if place else [])],
            capture_output=True, text=True,
        )  # fmt: skip
    row: dict[str, Any] = {"way": name, "limit_bytes": limit}
    if ended.returncode != 0:
        said = (ended.stderr.strip() or "nothing").splitlines()[-1]
        return row | {"failed": f"ended with {ended.returncode}, saying {said}"}
    return row | dict(json.loads(ended.stdout.strip().splitlines()[-1]))


@contextlib.contextmanager
def group(limit: int | None) -> Iterator[Path | None]:
    """A control group of so many bytes, without swap, that a process joins by writing its id to `cgroup.procs`."""
    if limit is None:
        yield None
        return
    root = next(p for p in _GROUPS if (p / "cgroup.procs").exists())
    folder = root / f"obclip-{os.getpid()}"
    folder.mkdir()
    try:
        name = "memory.limit_in_bytes" if (folder / "memory.limit_in_bytes").exists() else "memory.max"
        (folder / name).write_text(str(limit))
        with contextlib.suppress(OSError):  # files in the page cache already would be charged to no one
            Path("/proc/sys/vm/drop_caches").write_text("1")
        yield folder
    finally:
        folder.rmdir()


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Resident memory over time, one panel a way, anonymous and mapped stacked, phases marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    good = [row for row in rows if "samples" in row]
    figure, panels = pyplot.subplots(len(good), 1, figsize=(8, 1.5 * len(good)), layout="constrained", squeeze=False)
    for row, (axes,) in zip(good, panels, strict=True):
        t = [s[0] for s in row["samples"]]
        anonymous, file = ([s[i] / 1e6 for s in row["samples"]] for i in (2, 3))
        axes.stackplot(t, anonymous, file, colors=["#1b6ca8", "#c7dcec"], labels=["anonymous", "mapped from files"])
        phases = [s[1] for s in row["samples"]]
        for i in range(1, len(t)):
            if phases[i] != phases[i - 1]:
                axes.axvline(t[i], color="#555555", linewidth=0.6)
                axes.text(t[i], axes.get_ylim()[1], f" {phases[i]}", va="top", fontsize=7)
        limit = "" if row["limit_bytes"] is None else f", under a limit of {row['limit_bytes'] / 1e6:.0f} MB"
        axes.set_title(f"{_as_run(row)}{limit}: {row['peak_bytes'] / 1e6:.0f} MB at most", fontsize=8, loc="left")
        axes.set_ylabel("MB", fontsize=7)
        axes.set_xlim(0, max(s[0] for r in good for s in r["samples"]))
        axes.tick_params(labelsize=7)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside upper right", ncols=2)
    panels[-1, 0].set_xlabel("seconds, of the whole process", fontsize=7)
    figure.savefig(path)
    pyplot.close(figure)


def _as_run(row: dict[str, Any]) -> str:
    """Under a limit: what `--memory-limit` made of the way that was asked for."""
    if row["limit_bytes"] is None:
        return str(row["way"])
    decoder = "tiny" if row["chosen"]["decoder"] == "tiny" else "own"
    return f"{row['way'].partition(',')[0]}, {decoder} decoder" + ", lean" * row["chosen"]["lean"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--only", default="")
    parser.add_argument("--limits", action="store_true", help="also run LIMITED")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--join", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        if asked.join:
            (asked.join / "cgroup.procs").write_text(str(os.getpid()))
        print(json.dumps(child(asked.work, json.loads(asked.child), asked.k)))
        return
    ways = {name: o for name, o in WAYS.items() if asked.only in name}
    if not has_bf16():
        ways = {name.replace("bf16", "fp32"): o | {"precision": o["precision"].replace("bf16", "fp32")}
                for name, o in ways.items()}  # fmt: skip
    rows = [run(asked.work, name, o, None, asked.k) for name, o in ways.items()]
    if asked.limits:
        rows += [run(asked.work, name, WAYS[name], mb * 1_000_000, asked.k) for name, mb in LIMITED]
    print("| way | limit MB | s | peak MB | start | text | steps | decoding | anonymous at most |\n" + "|---" * 9 + "|")
    for row in rows:
        limit = "" if row["limit_bytes"] is None else f"{row['limit_bytes'] / 1e6:.0f}"
        if "failed" in row:
            print(f"| {row['way']} | {limit} | {row['failed']} |")
            continue
        peaks = row["peaks"]
        resident = [
            f"{peaks[p]['resident'] / 1e6:.0f}" if p in peaks else "" for p in ("start", "text", "steps", "decode")
        ]
        most = max(p["anonymous"] for p in peaks.values()) / 1e6
        print(
            f"| {row['way']} | {limit} | {row['seconds']:.1f} | {row['peak_bytes'] / 1e6:.0f} | {' | '.join(resident)} "
            f"| {most:.0f} |"
        )
    found = {"machine": machine(), "k": asked.k, "rows": rows}
    if asked.json:
        atomic_write_bytes(asked.json, (json.dumps(found) + "\n").encode())
    if asked.plot:
        plot(rows, asked.plot)


if __name__ == "__main__":
    main()
