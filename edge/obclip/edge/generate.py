"""One private picture: candidates out, all latents back, one kept, the rest of the steps here.

Everything that can be checked on the device is checked before anything is sent; nothing is sent after extraction.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obclip.core.errors import CloudMismatchError, InputError, PrivacyError
from obclip.core.noise import check_seed, draw_seed
from obclip.core.pairs import Pair, load_pair
from obclip.core.schedule import Schedule
from obclip.core.wire import Request, Response
from obclip.edge.audit import AuditModel
from obclip.edge.bundle import Bundle
from obclip.edge.client import Client
from obclip.edge.complete import Guidance, denoise
from obclip.edge.image import save_png
from obclip.edge.oblivious import CandidateSet, Options, candidate_set, check_negative, load_policy, unmark
from obclip.edge.oblivious.marks import protect
from obclip.edge.received import Received, differences
from obclip.edge.steps import PLAIN, Saving, default_saving

Progress = Callable[[str, int, int], None]
Watch = Callable[[int, NDArray[np.float32]], None]  # steps done, the clean latents they imply, float32 [4, h, w]


@dataclass(frozen=True)
class Job:
    """A prompt made ready to send: settings, candidate set and the request, whose bytes do not tell the index.

    prompt: the user's own words, which the device goes on with. warnings: what the user asked to be told. saving: what
    the device's steps leave out.
    """

    prompt: str
    pair: Pair
    candidates: CandidateSet
    request: Request
    schedule: Schedule
    warnings: tuple[str, ...] = ()
    saving: Saving = PLAIN


@dataclass(frozen=True)
class Result:
    """image: uint8 [H, W, 3]. timings_s: seconds per phase. response: all N latents, as they came."""

    image: NDArray[np.uint8]
    job: Job
    response: Response
    timings_s: dict[str, float]

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
            "steps": r.steps,
            "handoff": r.handoff,
            "guidance": r.guidance,
            "solver": r.solver,
            "device_steps": str(self.job.saving),
            "cloud_model": self.response.model,
        }
        return values | ({"prompt": self.job.prompt, "negative_prompt": r.negative_prompt} if with_prompt else {})

    def save(self, path: str | Path, with_prompt: bool = False) -> None:
        """Write a PNG, whole or not at all. RunError if it cannot be written."""
        save_png(Path(path), self.image, self.metadata(with_prompt))


def prepare(
    prompt: str,
    bundle: Bundle,
    *,
    pair: Pair | str = "emoji",
    policy: str | None = None,
    seed: int | None = None,
    negative_prompt: str = "",
    steps: int | None = None,
    handoff: int | None = None,
    guidance: float | None = None,
    solver: str | None = None,
    allow_public: bool = False,
    want_x0: bool = False,
    options: Options | None = None,
    warn_below: float | None = None,
    saving: Saving | None = None,
) -> Job:
    """Everything before the first byte is sent. InputError, PrivacyError or CloudMismatchError if it should not be.

    allow_public: take a prompt in which nothing is hidden, so that the cloud reads it as it is. options: marks, spans
    let through, and the like. warn_below: warn if the prompt's other words leave fewer candidates than this to choose
    from (effective N, by the audit's model). saving: what the device's steps leave out, by default what was measured to
    do no harm on the pair.
    """
    pair = load_pair(pair) if isinstance(pair, str) else pair
    if pair.timestep_shift:
        raise InputError(
            f"the pair {pair.name} shifts the device's steps by {pair.timestep_shift}, which this version cannot finish"
        )
    rules = load_policy(policy or pair.policy)
    candidates = candidate_set(prompt, rules, options)
    prompt = unmark(protect(prompt, options.protect if options else ()))
    if not (candidates.attributes or allow_public):
        raise PrivacyError("nothing in this prompt is hidden, so the cloud would read it as it is; allow it if it may")
    check_negative(negative_prompt, rules, options)
    if bundle.latent_shape != pair.latent_shape:
        raise CloudMismatchError(
            f"the bundle's latents are {bundle.latent_shape}, those of the pair {pair.name} {pair.latent_shape}; "
            "use the bundle that was exported for this pair"
        )
    schedule = bundle.schedule(solver or pair.solver, steps if steps is not None else pair.steps)
    k = handoff if handoff is not None else min(pair.handoff, schedule.steps)
    if not 1 <= k <= schedule.steps:
        raise InputError(f"handoff is {k}; it must be from 1 to steps ({schedule.steps})")
    for text in (prompt, negative_prompt, *candidates.prompts):  # the whole set: the answer must not tell them apart
        bundle.tokenise(text)
    request = Request(
        pair=pair.digest,
        candidates=candidates.prompts,
        negative_prompt=negative_prompt,
        seed=draw_seed() if seed is None else check_seed(seed),
        height=pair.height,
        width=pair.width,
        steps=schedule.steps,
        handoff=k,
        guidance=float(guidance if guidance is not None else pair.guidance),
        solver=schedule.solver,
        want_x0=want_x0 or pair.handoff_history,
    )
    return Job(
        prompt,
        pair,
        candidates,
        request,
        schedule,
        _warnings(candidates, warn_below),
        _saving(saving, pair, bundle),
    )


def _saving(asked: Saving | None, pair: Pair, bundle: Bundle) -> Saving:
    """InputError if cached steps are asked for and the bundle has no graphs for them."""
    saving = default_saving(pair.name) if asked is None else asked
    if saving.every == 1 or bundle.variant("unet", "shallow") is not None:
        return saving
    if asked is not None:
        raise InputError("this bundle has no graphs for cached steps; export it again, or leave --whole-every out")
    return replace(saving, every=1)


def _warnings(candidates: CandidateSet, warn_below: float | None) -> tuple[str, ...]:
    notes = [f"left out of what the cloud is asked, for want of a value: {w!r}" for w in candidates.unsent]
    if warn_below is not None and candidates.attributes:
        left = AuditModel.load().posterior(candidates).effective_n
        if left < warn_below:
            notes.append(
                f"the other words leave {left:.2f} of {len(candidates.prompts)} candidates to choose from, fewer than "
                f"{warn_below:g}; `obclip audit` says which words"
            )
    return tuple(notes)


def generate(
    prompt: str,
    *,
    bundle: Bundle,
    client: Client,
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
    watch: Watch | None = None,
    save_latents: Path | None = None,
    **settings: Any,
) -> Result:
    """One picture of `prompt` through the cloud behind `client`, finished on this device.

    settings: pair, policy, seed, negative_prompt, steps (T), handoff (k), guidance, solver, allow_public, as `prepare`
    takes them; what is not given comes from the pair. progress(phase, done, of) is called as work proceeds.
    warn(text) is called for each warning before anything is sent; an exception that it raises stops there.
    watch(steps done, x0) is called behind each of the device's steps. save_latents: a file for what the cloud sent,
    which `resume` takes, written before the device's steps begin.

    Errors: InputError, PrivacyError (refused, nothing sent), CloudError and its kinds, BundleError, RunError.
    """
    tell = progress or (lambda phase, done, of: None)
    timings: dict[str, float] = {}
    with _timed(timings, "prepare"):
        job = prepare(prompt, bundle, **settings)
        guide = ready(job, bundle)
    _warn_of((*job.warnings, *bundle.fallbacks()), warn)
    with _timed(timings, "handshake"):
        offered = client.check(job.pair, job.schedule, len(job.candidates.prompts))
    tell("cloud", 0, job.request.handoff)
    with _timed(timings, "cloud"):
        response = client.denoise(job.request, job.schedule, job.pair.latent_shape)
    if response.model != offered.model:
        raise CloudMismatchError("the cloud's answer names another model than its capabilities; nothing of it is used")
    tell("cloud", job.request.handoff, job.request.handoff)
    if save_latents is not None:
        Received(job.request, response).save(save_latents)
    image = finish(job, bundle, response, guide, timings, tell, watch)
    return Result(image, job, response, timings)


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

    settings: as of `generate`; what the request says comes from it, and may not be given otherwise. InputError then.
    """
    timings: dict[str, float] = {}
    r = received.request
    said: dict[str, Any] = dict(
        seed=r.seed, negative_prompt=r.negative_prompt, steps=r.steps, handoff=r.handoff, guidance=r.guidance,
        solver=r.solver, want_x0=r.want_x0,
    )  # fmt: skip
    with _timed(timings, "prepare"):
        job = prepare(prompt, bundle, **(said | {k: v for k, v in settings.items() if v is not None}))
        if others := differences(job.request, r):
            raise InputError(f"the latents answer another request; it differs in {', '.join(others)}")
        if received.response.schedule != job.schedule.digest:
            raise CloudMismatchError("the latents were made with another schedule than this bundle's")
        guide = ready(job, bundle)
    _warn_of((*job.warnings, *bundle.fallbacks()), warn)
    tell = progress or (lambda phase, done, of: None)
    image = finish(job, bundle, received.response, guide, timings, tell, watch)
    return Result(image, job, received.response, timings)


def ready(job: Job, bundle: Bundle) -> Guidance:
    """Texts read, and models open."""
    guide = _guidance(job, bundle)
    bundle.end_phase("text_encoder", "text_encoder_2")
    _open_models(bundle)
    return guide


def _warn_of(notes: tuple[str, ...], warn: Callable[[str], None] | None) -> None:
    if warn is not None:
        for note in notes:
            warn(note)


def finish(
    job: Job,
    bundle: Bundle,
    response: Response,
    guide: Guidance,
    timings: dict[str, float],
    tell: Progress,
    watch: Watch | None = None,
) -> NDArray[np.uint8]:
    """Extraction, the device's steps and decoding: no network from here on."""
    k, steps = job.request.handoff, job.schedule.steps
    x = response.latents[job.candidates.index].astype(np.float32)
    x0 = None
    if job.pair.handoff_history and response.x0 is not None:
        x0 = response.x0[job.candidates.index].astype(np.float32)
    with _timed(timings, "device_steps"):
        for done, latents, clean in denoise(bundle, job.schedule, guide, x, k, job.request.seed, x0, job.saving):
            x = latents
            tell("device", done - k, steps - k)
            if watch is not None:
                watch(done, clean)
    bundle.end_phase("unet")
    with _timed(timings, "decode"):
        picture = bundle.decode(x)
    bundle.end_phase("vae_decoder")
    return picture


def _open_models(bundle: Bundle) -> None:
    """What the device's half needs, before the cloud is asked: a bundle that cannot be loaded costs it nothing.

    By phase only the UNet's passes are opened, and stay.
    """
    bundle.session("unet", "full" if bundle.variant("unet", "full") is not None else "whole")
    if not bundle.phased:
        bundle.session("vae_decoder", bundle.decoder_role)


def _guidance(job: Job, bundle: Bundle) -> Guidance:
    """The device reads the user's own words, not the canonical ones."""
    return Guidance(bundle.encode(job.prompt), bundle.encode(job.request.negative_prompt), job.request.guidance)


class _timed:  # noqa: N801
    def __init__(self, timings: dict[str, float], name: str) -> None:
        self.timings, self.name = timings, name

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        self.timings[self.name] = time.perf_counter() - self.started
