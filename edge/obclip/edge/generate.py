"""One private picture: candidates out, all latents back, one kept, the rest of the steps here. And the ways without
candidates (obclip.edge.modes) that it is compared with.

Everything that can be checked on the device is checked before anything is sent; nothing is sent after extraction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
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
from obclip.edge.complete import Denoiser, first_latents, run_steps
from obclip.edge.image import save_png
from obclip.edge.modes import DEVICE, OBLIVIOUS, REVEALS, SERVER, check_mode, in_the_clear, reveals
from obclip.edge.oblivious import CandidateSet, Options, candidate_set, check_negative, load_policy, unmark
from obclip.edge.oblivious.marks import protect
from obclip.edge.readiness import Readying, ready
from obclip.edge.received import Received, differences
from obclip.edge.steps import PLAIN, Saving, default_saving

Progress = Callable[[str, int, int], None]
Watch = Callable[[int, NDArray[np.float32]], None]  # steps done, the clean latents they imply, float32 [4, h, w]


@dataclass(frozen=True)
class Job:
    """A prompt made ready to send: settings, candidate set and the request, whose bytes do not tell the index.

    prompt: the user's own words, which the device goes on with. warnings: what the user should know before it is sent.
    saving: what the device's steps leave out. schedule: the cloud's; device_schedule: the device's, which goes on from
    step `start` of it. mode: of obclip.edge.modes; with "device" the request is not sent.
    """

    prompt: str
    pair: Pair
    candidates: CandidateSet
    request: Request
    schedule: Schedule
    device_schedule: Schedule
    start: int
    warnings: tuple[str, ...] = ()
    saving: Saving = PLAIN
    mode: str = OBLIVIOUS

    @property
    def cloud_steps(self) -> int:
        return 0 if self.mode == DEVICE else self.request.handoff

    @property
    def steps_here(self) -> int:
        """How many steps this device runs."""
        return self.device_schedule.steps - self.start

    @property
    def device_steps(self) -> str:
        """What these leave out, in words."""
        return str(self.saving) if self.steps_here else "no steps on this device"

    @property
    def reveals(self) -> str:
        """What the cloud learns, in words."""
        return reveals(self.mode, self.candidates)


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
    mode: str = OBLIVIOUS,
    sent: Request | None = None,
) -> Job:
    """Everything before the first byte is sent. InputError, PrivacyError or CloudMismatchError if it should not be.

    steps, handoff: T and k, by default the pair's; for another T the k that is the pair's share of it, 1 at least.

    mode: "oblivious"; or one that hides nothing: "hybrid" (the prompt itself instead of candidates), "server" (all
    steps in the cloud); or "device" (none).

    allow_public: take a prompt in which nothing is hidden, so that the cloud reads it as it is. options: marks, spans
    let through, and the like. warn_below: warn if the prompt's other words leave fewer candidates than this to choose
    from (effective N, by the audit's model). saving: what the device's steps leave out, by default what was measured to
    do no harm on the pair. sent: a request that a cloud has answered, which this is to repeat: nothing will be sent, so
    nothing is refused for what it would show. InputError if its candidates are others.
    """
    pair = load_pair(pair) if isinstance(pair, str) else pair
    if check_mode(mode) == OBLIVIOUS:
        rules = load_policy(policy or pair.policy)
        candidates = candidate_set(prompt, rules, options)
        prompt = unmark(protect(prompt, options.protect if options else ()))
        if not (candidates.attributes or allow_public or sent):
            raise PrivacyError(
                "nothing in this prompt is hidden, so the cloud would read it as it is; allow it if it may"
            )
        if sent is None:
            check_negative(negative_prompt, rules, options)
    else:
        prompt = unmark(prompt)
        candidates = in_the_clear(prompt)
    if sent is not None and sent.candidates != candidates.prompts:
        raise InputError(
            "the latents answer another prompt, or were made with another mode, pair, policy or options: their "
            "candidates are not this one's"
        )
    if bundle.latent_shape != pair.latent_shape:
        raise CloudMismatchError(
            f"the bundle's latents are {bundle.latent_shape}, those of the pair {pair.name} {pair.latent_shape}; "
            "use the bundle that was exported for this pair"
        )
    schedule, device_schedule = _schedules(bundle, pair, mode, solver, steps)
    k = _handoff(handoff, pair, schedule, mode)
    start = {SERVER: device_schedule.steps, DEVICE: 0}.get(mode, k + pair.timestep_shift)
    if start > device_schedule.steps:
        raise InputError(
            f"handoff is {k} and the pair's shift {pair.timestep_shift}: the device has {device_schedule.steps} steps"
        )
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
        want_x0=want_x0 or (pair.handoff_history and mode != SERVER),
    )
    return Job(
        prompt,
        pair,
        candidates,
        request,
        schedule,
        device_schedule,
        start,
        _warnings(mode, candidates, warn_below),
        _saving(saving, pair, bundle, mode),
        mode,
    )


def _schedules(
    bundle: Bundle, pair: Pair, mode: str, solver: str | None, steps: int | None
) -> tuple[Schedule, Schedule]:
    """The cloud's and the device's. With mode "device" both are the device's, as the pair has it."""
    own = bundle.schedule(pair.solver_on_device, pair.steps_on_device)
    if mode == DEVICE:
        own = bundle.schedule(solver or own.solver, steps if steps is not None else own.steps)
        return own, own
    cloud = bundle.schedule(solver or pair.solver, steps if steps is not None else pair.steps)
    return cloud, cloud if pair.device_solver is None and pair.device_steps is None else own


def _handoff(asked: int | None, pair: Pair, schedule: Schedule, mode: str) -> int:
    if mode in (SERVER, DEVICE):
        if asked is not None:
            raise InputError(f"with mode {mode} all steps run in one place; leave handoff out")
        return schedule.steps
    if asked is None and pair.device_steps is not None and schedule.steps != pair.steps:
        raise InputError(
            f"the device of the pair {pair.name} has steps of its own, which go on where {pair.handoff} of "
            f"{pair.steps} in the cloud end; leave steps out, or give handoff too"
        )
    k = asked if asked is not None else max(1, round(schedule.steps * pair.handoff / pair.steps))
    if not 1 <= k <= schedule.steps:
        raise InputError(f"handoff is {k}; it must be from 1 to steps ({schedule.steps})")
    return k


def _saving(asked: Saving | None, pair: Pair, bundle: Bundle, mode: str) -> Saving:
    """InputError if cached steps are asked for and the bundle has no graphs for them."""
    measured = default_saving(pair, mode)
    saving = measured if asked is None else asked
    if saving.every == 1 or bundle.can_be_shallow:
        return saving
    if asked is not None:
        raise InputError("this bundle has no graphs for cached steps; export it again, or leave --whole-every out")
    return replace(saving, every=1)


def _warnings(mode: str, candidates: CandidateSet, warn_below: float | None) -> tuple[str, ...]:
    told = reveals(mode, candidates)
    notes = [] if told in (REVEALS[OBLIVIOUS], REVEALS[DEVICE]) else [f"mode {mode}: {told}"]
    notes += [f"left out of what the cloud is asked, for want of a value: {w!r}" for w in candidates.unsent]
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
            raise CloudMismatchError("the latents were made with another schedule than this bundle's")
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
        steps = () if made is None else run_steps(made, schedule, x, start, job.request.seed, x0, job.saving)
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
