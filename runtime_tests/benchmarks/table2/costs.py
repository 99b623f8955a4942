"""What a method costs: multiply-accumulates of both sides, seconds of both sides, bytes on the wire."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from obclip.cloud.cost import Macs, Profile, plan_macs
from obclip.cloud.parts import Attention, Part
from obclip.cloud.plan import Branch, Pass, Plan, Row
from obclip.core.pairs import Pair
from obclip.core.wire import Response
from obclip.edge.steps import PLAIN, Saving, default_saving, passes, plan_steps

from ..server_cost import timed
from ..server_fidelity import request_for
from .draw import Setup, plan_for
from .methods import DEVICE, HYBRID, OBLIVIOUS, Method, start_of

LINK_BITS_S = 18.88e6  # the paper's Wi-Fi, for seconds of transfer
_DIGEST = "0" * 64


def candidates_of(method: Method, n: int) -> int:
    """How many prompts the cloud runs."""
    return 0 if method.kind == DEVICE else n if method.kind == OBLIVIOUS else 1


def cloud_plan(setup: Setup, method: Method, prompts: Sequence[str]) -> Plan | None:
    count = candidates_of(method, len(prompts))
    if count == 0:
        return None
    request = request_for(setup.pair, prompts[:count], steps_of(method, setup.pair), 0)
    return plan_for(setup, method, request)


def steps_of(method: Method, pair: Pair) -> int:
    """Steps in the cloud."""
    if method.kind == DEVICE:
        return 0
    return method.k if method.kind in (HYBRID, OBLIVIOUS) and method.k is not None else pair.steps


def saving_of(method: Method, pair: Pair) -> Saving:
    return default_saving(pair) if method.saving else PLAIN


def device_macs(method: Method, pair: Pair, profile: Profile) -> Macs:
    """Of the device's passes, keys and values of the text in every whole one."""
    if (start := start_of(method, pair)) == pair.steps_on_device:
        return Macs()
    whole, shallow = passes(
        plan_steps(start, pair.steps_on_device, saving_of(method, pair)), guided=pair.guidance != 1.0
    )
    outermost = Pass(Part(1, False, Attention.OWN), (Row(Branch.CONDITIONAL, (0,)),))
    return profile.row * whole + profile.cost(outermost) * shallow


def wire_bytes(setup: Setup, method: Method, prompts: Sequence[str]) -> dict[str, int]:
    """Of one request's body and its answer's, as the protocol has them."""
    count = candidates_of(method, len(prompts))
    if count == 0:
        return {"bytes_up": 0, "bytes_down": 0}
    request = request_for(setup.pair, prompts[:count], steps_of(method, setup.pair), 0)
    zeros = np.zeros((count, *setup.pair.latent_shape), np.float16)
    answer = Response(zeros, None, request.handoff, _DIGEST, _DIGEST)
    return {"bytes_up": len(request.encode()), "bytes_down": len(answer.encode())}


def macs(setup: Setup, method: Method, prompts: Sequence[str], cloud: Profile, device: Profile) -> dict[str, int]:
    """`published`: as the paper's tables count, the cloud's with one of attention's two products (18.53 T for Stable
    Diffusion 1.x), the device's with neither (11.20 T for small-sd, 58.85 T for KOALA-700m)."""
    plan = cloud_plan(setup, method, prompts)
    there = plan_macs(plan, cloud) if plan is not None else Macs()
    here = device_macs(method, setup.pair, device)
    return {
        "macs_cloud": there.total, "macs_cloud_published": there.published,
        "macs_device": here.total, "macs_device_published": here.layers,
    }  # fmt: skip


def cloud_seconds(
    setup: Setup, chosen: Sequence[Method], prompts: Sequence[str], runs: int
) -> dict[str, dict[str, float]]:
    """method's key -> median, least and most seconds of its plan, all plans in turns."""
    by_steps: dict[int, dict[str, Plan]] = {}
    for method in chosen:
        plan = cloud_plan(setup, method, prompts)
        if plan is not None:
            by_steps.setdefault(steps_of(method, setup.pair), {})[method.key] = plan
    found = {}
    for k, plans in by_steps.items():
        for key, (seconds, _, _) in timed(setup.model, setup.pair, prompts, k, plans, runs).items():
            found[key] = {
                "cloud_s": round(statistics.median(seconds), 4), "cloud_s_min": round(min(seconds), 4),
                "cloud_s_max": round(max(seconds), 4),
            }  # fmt: skip
    return found


def device_seconds(
    setup: Setup, chosen: Sequence[Method], prompts: Sequence[str], runs: int
) -> dict[str, dict[str, float]]:
    """method's key -> median seconds of its device steps and of decoding, one picture, in turns."""
    pair = setup.pair
    ways = {m.key: (start_of(m, pair), saving_of(m, pair)) for m in chosen if start_of(m, pair) < pair.steps_on_device}
    noise = np.random.default_rng(0).standard_normal((1, *pair.latent_shape)).astype(np.float32)
    taken: dict[tuple[int, Saving], list[float]] = {way: [] for way in ways.values()}
    decoding = []
    for i in range(runs + 1):
        for start, saving in taken:
            started = time.perf_counter()
            latents = setup.device.complete(prompts[:1], noise, start, 0, saving)
            middle = time.perf_counter()
            setup.device.decode(latents)
            if i:  # the first is for what is loaded or allocated then
                taken[start, saving].append(middle - started)
                decoding.append(time.perf_counter() - middle)
    decode = round(statistics.median(decoding), 4) if decoding else None
    found: dict[str, dict[str, Any]] = {m.key: {"device_s": 0.0, "decode_s": decode} for m in chosen}
    for key, way in ways.items():
        found[key] = {"device_s": round(statistics.median(taken[way]), 4), "decode_s": decode}
    return found


def at_guidance(pair: Pair, guidance: float | None) -> Pair:
    return pair if guidance is None else replace(pair, guidance=guidance)
