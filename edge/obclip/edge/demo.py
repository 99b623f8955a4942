"""The main job in one command: a cloud process on loopback, one private picture, and a sheet that shows how."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from obclip.core.errors import CloudUnreachableError, ModelMissingError, RunError
from obclip.edge.bundle import Bundle
from obclip.edge.client import Client
from obclip.edge.complete import Guidance, denoise, first_latents
from obclip.edge.generate import Progress, Result, generate
from obclip.edge.image import contact_sheet
from obclip.edge.job import Job

PROMPT = "noto style emoji of a woman health worker with medium skin tone"
START_LIMIT_S = 120.0
_CLOUD_PACKAGES = ("torch", "diffusers", "transformers", "fastapi", "uvicorn")


@contextmanager
def local_cloud(pair: str, *arguments: str) -> Iterator[str]:
    """A cloud process for `pair` on a free loopback port; yields its URL and ends that process afterwards.

    ModelMissingError if the cloud's packages are not installed, CloudUnreachableError if it does not start.
    """
    missing = [name for name in _CLOUD_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelMissingError(f"a cloud needs {', '.join(missing)}: pip install 'obclip[cloud]'")
    with tempfile.TemporaryDirectory(prefix="obclip-") as folder:
        ready = Path(folder) / "url"
        command = [
            sys.executable,
            "-m",
            "obclip.cloud.serve",
            "--pair",
            pair,
            "--port",
            "0",
            "--ready-file",
            str(ready),
        ]
        log = (Path(folder) / "log").open("w+b")
        process = subprocess.Popen([*command, *arguments], stdout=log, stderr=subprocess.STDOUT)
        try:
            yield _wait_for(ready, process, log.name)
        finally:
            _end(process)
            log.close()


def _wait_for(ready: Path, process: subprocess.Popen[bytes], log: str) -> str:
    limit = time.monotonic() + START_LIMIT_S
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > limit:
            said = Path(log).read_text(errors="replace").strip().splitlines()
            raise CloudUnreachableError(f"the cloud process did not start: {said[-1] if said else 'it said nothing'}")
        time.sleep(0.05)
    return ready.read_text()


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_demo(
    prompt: str, first: Job, bundle: Bundle, client: Client, progress: Progress
) -> tuple[Result, NDArray[np.uint8]]:
    """The private picture, and a sheet: every candidate as the cloud has it at step k, the one taken, the results.

    first: `prompt` prepared, before a cloud was started. The server-only picture is asked for as k = T for the whole
    candidate set, and first: the real prompt is never sent alone, and nothing is sent after extraction.
    """
    client.check(first.pair, first.schedule, len(first.candidates.prompts))
    whole = replace(first.request, handoff=first.schedule.steps)
    server = client.denoise(whole, first.schedule, first.pair.latent_shape)
    result = generate(prompt, bundle=bundle, client=client, seed=first.request.seed, want_x0=True, progress=progress)
    job, index, response = result.job, result.job.candidates.index, result.response
    if response is None:
        raise RunError("no cloud was asked, so there are no candidates to show")
    server_only = bundle.decode(server.latents[index].astype(np.float32))
    progress("device", 0, job.schedule.steps)
    device_only = device_picture(job, bundle)
    estimates = response.x0 if response.x0 is not None else response.latents
    cells = []
    for i, (text, latents) in enumerate(zip(job.candidates.prompts, estimates, strict=True)):
        taken = "taken: " if i == index else ""
        cells.append((taken + _short(text, job.candidates.prompts), bundle.decode(latents.astype(np.float32))))
    columns = min(len(cells), max(5, -(-len(cells) // 4)))
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    k, steps = job.request.handoff, job.schedule.steps
    rows.append(
        [
            (f"finished ({k} cloud + {steps - k} device)", result.image),
            (f"device only ({steps} steps)", device_only),
            (f"server only ({steps} steps)", server_only),
        ]
    )
    return result, contact_sheet(rows, scale=3 if result.image.shape[0] <= 128 else 1, marked="taken")


def device_picture(job: Job, bundle: Bundle) -> NDArray[np.uint8]:
    """The same prompt and seed by the device model alone."""
    guide = Guidance(bundle.encode(job.prompt), bundle.encode(job.request.negative_prompt), job.request.guidance)
    x = first_latents(job.schedule, job.request.seed, job.pair.latent_shape)
    for _, latents, _ in denoise(bundle, job.schedule, guide, x, 0, job.request.seed):
        x = latents
    return bundle.decode(x)


def _short(prompt: str, prompts: tuple[str, ...]) -> str:
    """The words of a candidate that not every candidate has."""
    shared = set.intersection(*(set(p.split()) for p in prompts)) if len(prompts) > 1 else set()
    return " ".join(w for w in prompt.split() if w not in shared and w not in ("a", "an")) or prompt
