"""One private picture: candidates out, all latents back, one kept, the rest of the steps here. And the ways without
candidates (obclip.edge.modes) that it is compared with.

Everything that can be checked on the device is checked before anything is sent; nothing is sent after extraction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obclip.core.errors import CloudMismatchError, InputError
from obclip.core.received import Received, differences
from obclip.core.wire import Response
from obclip.edge.bundle import Bundle
from obclip.edge.client import Client
from obclip.edge.complete import Denoiser, first_latents
from obclip.edge.image import save_png
from obclip.edge.job import Job, prepare
from obclip.edge.modes import DEVICE, SERVER
from obclip.edge.readiness import Readying, ready

Progress = Callable[[str, int, int], None]
Watch = Callable[[int, NDArray[np.float32]], None]  # steps done, the clean latents they imply, float32 [4, h, w]


@dataclass(frozen=True)
class Result:
    """image: uint8 [H, W, 3]. timings_s: seconds per phase. response: all N latents, as they came; None of mode
    "device". device: `Bundle.told`, how this device ran its part."""

    image: NDArray[np.uint8]
    job: Job
    response: Response | None
    timings_s: dict[str, float]
    device: str = ""

    @property
    def seed(self) -> int:
        return self.job.request.seed

    def metadata(self, with_prompt: bool = False) -> dict[str, Any]:
        """What repeats the picture; the prompt, which is the secret, only when asked for."""
        r = self.job.request
        values = {
            "obclip": version("obclip"),
            "pair": self.job.pair.name,
            "seed": r.seed,
            "mode": self.job.mode,
            "steps": r.steps,
            "handoff": self.job.cloud_steps,
            "guidance": r.guidance,
            "solver": r.solver,
            "device_steps": self.job.device_steps,
            "device": self.device,
            "cloud_model": None if self.response is None else self.response.model,
        }
        return values | ({"prompt": self.job.prompt, "negative_prompt": r.negative_prompt} if with_prompt else {})

    def save(self, path: str | Path, with_prompt: bool = False) -> None:
        """Write a PNG, whole or not at all. RunError if it cannot be written."""
        save_png(Path(path), self.image, self.metadata(with_prompt))


def generate(
    prompt: str,
    *,
    bundle: Bundle,
    client: Client | None = None,
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
    watch: Watch | None = None,
    save_latents: Path | None = None,
    sending: Callable[[], None] | None = None,
    **settings: Any,
) -> Result:
    """One picture of `prompt` through the cloud behind `client`, finished on this device.

    client: not needed with mode "device". settings: pair, policy, seed, negative_prompt, steps (T), handoff (k),
    guidance, solver, allow_public, mode, as `prepare` takes them; what is not given comes from the pair.
    progress(phase, done, of) is called as work proceeds. warn(text) is called for each warning before anything is sent;
    an exception that it raises stops there. watch(steps done, x0) is called behind each of the device's steps.
    save_latents: a file for what the cloud sent, which `resume` takes, written before the device's steps begin.
    sending() is called right before the candidates leave.

    Errors: InputError, PrivacyError (refused, nothing sent), CloudError and its kinds, BundleError, RunError.
    """
    tell = progress or (lambda phase, done, of: None)
    timings: dict[str, float] = {}
    here = settings.get("mode") == DEVICE
    if here and save_latents is not None:
        raise InputError("with mode device no cloud sends latents that could be saved")
    if client is None and not here:
        raise InputError("a client is needed to ask a cloud; only mode device does without")
    with _timed(timings, "prepare"):
        job = prepare(prompt, bundle, sent=None, **settings)
        readying = Readying(job, bundle, beside=not here)
    with readying:
        _warn_of((*job.warnings, *readying.notes()), warn)
        response = None
        if client is not None and not here:
            response = _ask(job, client, timings, tell, readying, sending)
        if save_latents is not None and response is not None:
            Received(job.request, response).save(save_latents)
        with _timed(timings, "open") if readying.ahead else nullcontext():
            made = readying.result()
    image = finish(job, bundle, response, made, timings, tell, watch)
    return Result(image, job, response, timings, bundle.told)


def _ask(
    job: Job,
    client: Client,
    timings: dict[str, float],
    tell: Progress,
    readying: Readying,
    sending: Callable[[], None] | None,
) -> Response:
    with _timed(timings, "handshake"):
        offered = client.check(job.pair, job.schedule, len(job.candidates.prompts))
    tell("cloud", 0, job.request.handoff)
    readying.check()
    if sending is not None:
        sending()
    with _timed(timings, "cloud"):
        response = client.denoise(job.request, job.schedule, job.pair.latent_shape)
    if response.model != offered.model:
        raise CloudMismatchError("the cloud's answer names another model than its capabilities; nothing of it is used")
    tell("cloud", job.request.handoff, job.request.handoff)
    return response


def resume(
    prompt: str,
    received: Received,
    *,
    bundle: Bundle,
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
    watch: Watch | None = None,
    **settings: Any,
) -> Result:
    """`generate` from what a cloud sent before: no network. `prompt` must have the candidates that were asked for.

    settings: as of `generate`; what the request says comes from it, and may not be given otherwise. InputError then,
    and for mode "device". warn(text) is called for what a provider leaves to another; nothing is sent to be warned of.
    """
    if settings.get("mode") == DEVICE:
        raise InputError("mode device asks no cloud, so it cannot go on from latents that one sent; leave either out")
    timings: dict[str, float] = {}
    r = received.request
    said: dict[str, Any] = dict(
        seed=r.seed, negative_prompt=r.negative_prompt, steps=r.steps, guidance=r.guidance, solver=r.solver,
        want_x0=r.want_x0,
    )  # fmt: skip
    if settings.get("mode") != SERVER:  # which has all its steps there, and takes no other number
        said["handoff"] = r.handoff
    with _timed(timings, "prepare"):
        job = prepare(prompt, bundle, sent=r, **(said | {k: v for k, v in settings.items() if v is not None}))
        if others := differences(job.request, r):
            raise InputError(f"the latents answer another request; it differs in {', '.join(others)}")
        if received.response.schedule != job.schedule.digest:
            raise CloudMismatchError(
                "the latents were made with another schedule than this bundle's; ask the cloud for new ones"
            )
        made = ready(job, bundle)
    _warn_of(bundle.fallbacks(), warn)
    tell = progress or (lambda phase, done, of: None)
    image = finish(job, bundle, received.response, made, timings, tell, watch)
    return Result(image, job, received.response, timings, bundle.told)


def _warn_of(notes: tuple[str, ...], warn: Callable[[str], None] | None) -> None:
    if warn is not None:
        for note in notes:
            warn(note)


def finish(
    job: Job,
    bundle: Bundle,
    response: Response | None,
    made: Denoiser | None,
    timings: dict[str, float],
    tell: Progress,
    watch: Watch | None = None,
) -> NDArray[np.uint8]:
    """Extraction, the device's steps and decoding: no network from here on. response: None if no cloud was asked.

    made: from `ready`.
    """
    schedule, start = job.device_schedule, job.start
    x0 = None
    if response is None:
        x = first_latents(schedule, job.request.seed, job.pair.latent_shape)
    else:
        x = response.latents[job.candidates.index].astype(np.float32)
        if job.pair.handoff_history and response.x0 is not None:
            x0 = response.x0[job.candidates.index].astype(np.float32)
    with _timed(timings, "device_steps"):
        steps = () if made is None else made.run(x, start, job.request.seed, x0, job.saving)
        for done, latents, clean in steps:
            x = latents
            tell("device", done - start, schedule.steps - start)
            if watch is not None:
                watch(done, clean)
    if made is not None:
        made.close()
    bundle.end_phase("unet")
    with _timed(timings, "decode"):
        picture = bundle.decode(x)
    bundle.end_phase("vae_decoder")
    return picture


@contextmanager
def _timed(timings: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        timings[name] = time.perf_counter() - started
