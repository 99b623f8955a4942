"""What is decided before the first byte is sent: the candidates, the request, who runs which steps, what to warn of."""

from __future__ import annotations

from dataclasses import dataclass, replace

from obclip.core.errors import CloudMismatchError, InputError, PrivacyError
from obclip.core.noise import check_seed, draw_seed
from obclip.core.pairs import Pair, load_pair
from obclip.core.schedule import Schedule
from obclip.core.wire import Request
from obclip.edge.audit import AuditModel
from obclip.edge.bundle import Bundle
from obclip.edge.modes import DEVICE, OBLIVIOUS, REVEALS, SERVER, check_mode, in_the_clear, reveals
from obclip.edge.oblivious import CandidateSet, Options, candidate_set, check_negative, load_policy, unmark
from obclip.edge.oblivious.marks import protect
from obclip.edge.steps import PLAIN, Saving, default_saving


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
        return reveals(self.mode, self.candidates, self.request.handoff == self.request.steps)


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
                "nothing in this prompt is hidden, so the cloud would read all that is sent; --allow-public "
                "(allow_public=True) lets it go"
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
    start = {SERVER: device_schedule.steps, DEVICE: 0}.get(mode, pair.start_on_device(k, schedule.steps))
    if start > device_schedule.steps:
        raise InputError(
            f"handoff is {k} and the pair's shift {pair.timestep_shift}: the device has {device_schedule.steps} steps; "
            f"choose a handoff of at most {device_schedule.steps - pair.timestep_shift}"
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
        _warnings(mode, reveals(mode, candidates, k == schedule.steps), candidates, warn_below),
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
    return cloud, own if pair.on_its_own else cloud


def _handoff(asked: int | None, pair: Pair, schedule: Schedule, mode: str) -> int:
    if mode in (SERVER, DEVICE):
        if asked is not None:
            raise InputError(f"with mode {mode} all steps run in one place; leave handoff out")
        return schedule.steps
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


def _warnings(mode: str, told: str, candidates: CandidateSet, warn_below: float | None) -> tuple[str, ...]:
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
