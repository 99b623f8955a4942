"""This project's completion from received latents, in a process of its own: `python -m ...device.ours SPEC.json`.

SPEC as in `peers`, and `bundle`, `pair` (a TOML file), `options` (of `Bundle.open`), `saving` ([every, guided share]).
What is timed is `finish`: extraction, the device's steps, release of the UNet, opening of the decoder, decoding; and
the PNG.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from obclip.core.pairs import load_pair
from obclip.core.wire import Response
from obclip.edge import Bundle
from obclip.edge.generate import finish
from obclip.edge.image import save_png
from obclip.edge.job import prepare
from obclip.edge.machine import peak_memory_bytes
from obclip.edge.readiness import ready
from obclip.edge.steps import Saving, passes, plan_steps

from .usage import cpu_seconds, resident_bytes


def run(spec: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    bundle = Bundle.open(spec["bundle"], verify=False, **spec["options"])
    opened = time.perf_counter() - started
    runs = []
    for job in spec["jobs"]:
        asked = prepare(
            spec["prompt"], bundle, pair=load_pair(spec["pair"]), seed=1, steps=spec["steps"], handoff=job["k"],
            negative_prompt=spec["negative"], saving=Saving(*spec["saving"]),
        )  # fmt: skip
        started = time.perf_counter()
        guide = ready(asked, bundle)
        load = time.perf_counter() - started
        gc.collect()
        latents = np.load(job["latents"]).astype(np.float16)
        n = len(asked.candidates.prompts)
        response = Response(np.repeat(latents, n, axis=0), None, job["k"], "0" * 64, "0" * 64)
        timings: dict[str, float] = {}
        before, begun = cpu_seconds(), time.perf_counter()
        picture = finish(asked, bundle, response, guide, timings, lambda phase, done, of: None)
        save_png(Path(job["out"] + ".png"), picture, {})
        seconds, cpu = time.perf_counter() - begun, cpu_seconds() - before
        steps = plan_steps(job["k"], spec["steps"], Saving(*spec["saving"]))
        runs.append(
            {
                "k": job["k"], "seconds": seconds, "steps_s": timings["device_steps"], "decode_s": timings["decode"],
                "cpu_s": cpu, "open_s": load, "passes": list(passes(steps)), "resident_bytes": resident_bytes(),
            }
        )  # fmt: skip
    return {"load_s": opened + runs[0]["open_s"], "runs": runs, "peak_bytes": peak_memory_bytes()}


if __name__ == "__main__":
    print(json.dumps(run(json.loads(Path(sys.argv[1]).read_text()))))
