"""Pictures of a method: every candidate of every set as if it were the real prompt, one noise a set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from obclip.cloud.denoising import Denoising
from obclip.cloud.engine import execute, run_step
from obclip.cloud.model import CloudModel
from obclip.cloud.plan import Plan, build_plan
from obclip.cloud.plans import Planner
from obclip.cloud.text import TextEncoders
from obclip.core.errors import InputError
from obclip.core.pairs import Pair
from obclip.core.wire import Request
from obclip.edge.steps import PLAIN, default_saving

from ..server_fidelity import request_for
from .devices import Device, Images
from .he_diffusion import encrypted_latents
from .methods import DEVICE, HE, HYBRID, SANITIZED, SERVER, Method, policies_of, start_of
from .observer import Sanitizers
from .prompts import PromptSet

SEED = 1000
ROWS = 64


@dataclass(frozen=True)
class Setup:
    """What all rows are drawn with. plain: of each set and seed drawn with nothing reused, the latents before every
    step and behind the last, float16 as on the wire: every hand-off from one run. rows: of a pass at most."""

    pair: Pair
    model: CloudModel
    planner: Planner
    device: Device
    sets: Sequence[PromptSet]
    plain: dict[tuple[tuple[str, ...], int], list[np.ndarray]] = field(default_factory=dict)
    rows: int = ROWS


def plan_for(setup: Setup, method: Method, request: Request) -> Plan:
    policies = policies_of(method, setup.pair, setup.planner, setup.model.layered.depth)
    if isinstance(policies, Planner):
        return policies(request)
    return build_plan(request, policies, setup.rows, setup.model.guidance_distilled)


def pictures(setup: Setup, method: Method, sanitizers: Sanitizers | None = None) -> list[Images]:
    """uint8 [N, H, W, 3] for each set."""
    return [_of_set(setup, method, one, SEED + i, sanitizers) for i, one in enumerate(setup.sets)]


def _of_set(setup: Setup, method: Method, one: PromptSet, seed: int, sanitizers: Sanitizers | None) -> Images:
    pair, device = setup.pair, setup.device
    if method.kind == DEVICE:
        return device.decode(device.complete(one.prompts, None, 0, seed, PLAIN))
    if method.kind == SANITIZED:
        assert sanitizers is not None
        words = [sanitizers.sanitize(method, prompt, seed + 7919 * i) for i, prompt in enumerate(one.prompts)]
        sent = [fitting(setup.model.text, text) for text in words]
        names = sorted(set(sent))
        drawn = device.decode(_latents(setup, method, names, pair.steps, seed))
        return drawn[[names.index(text) for text in sent]]
    if method.kind == HE:
        return device.decode(
            np.concatenate([encrypted_latents(setup.model, pair, p, seed) for p in one.prompts]).astype(np.float32)
        )
    if method.pictures == "server":
        return device.decode(_plain(setup, one, seed)[pair.steps].astype(np.float32))
    assert method.k is not None
    if method.plan == "plain":
        latents = _plain(setup, one, seed)[method.k].astype(np.float32)
    else:
        alone = method.kind == HYBRID
        groups = [[p] for p in one.prompts] if alone else [list(one.prompts)]
        latents = np.concatenate([_latents(setup, method, group, method.k, seed) for group in groups])
    saving = default_saving(pair) if method.saving else PLAIN
    return device.decode(device.complete(one.prompts, latents, start_of(method, pair), seed, saving))


def fitting(text: TextEncoders, prompt: str) -> str:
    """What an encoder would read of a sanitizer's words: those at the end are left out until the rest fit."""
    words = prompt.split(" ")
    for count in range(len(words), 0, -1):
        try:
            text.check([" ".join(words[:count])])
        except InputError:
            continue
        return " ".join(words[:count])
    return ""


@torch.inference_mode()
def _plain(setup: Setup, one: PromptSet, seed: int) -> list[np.ndarray]:
    key = one.prompts, seed
    if key not in setup.plain:
        request = request_for(setup.pair, one.prompts, setup.pair.steps, seed)
        plan = plan_for(setup, Method("server", SERVER), request)
        state = Denoising(setup.model, setup.pair, request, plan)
        kept = [state.x.half().cpu().numpy()]
        for step in plan.steps:
            run_step(state, step)
            kept.append(state.x.half().cpu().numpy())
        setup.plain[key] = kept
    return setup.plain[key]


def _latents(setup: Setup, method: Method, prompts: Sequence[str], k: int, seed: int) -> np.ndarray:
    request = request_for(setup.pair, prompts, k, seed)
    plan = plan_for(setup, Method("server", SERVER) if method.kind == SANITIZED else method, request)
    return execute(plan, request, setup.model, setup.pair).latents.astype(np.float32)
