"""Seconds at full size from a few timed passes: a plan's passes are of few kinds, and so are a device's."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from obclip.edge import Bundle
from obclip.edge.steps import passes, plan_steps
from obclip.edge.timing import time_pass

from ..server_time import Aliased, Made, compose
from .costs import cloud_plan, saving_of, steps_of
from .draw import Setup
from .methods import Method, start_of


def composed_cloud_seconds(setup: Setup, method: Method, prompts: Sequence[str], runs: int, made: Made) -> float | None:
    """Of the method's plan: each kind of pass timed once, and counted as often as the plan has it. None: no cloud, or
    attention maps shared with a pivot by more candidates than fit into a pass: each would run the pivot anew.

    made: kinds that other methods' plans have too.
    """
    plan = cloud_plan(setup, method, prompts)
    if plan is None or (method.plan == "cache + reuse" and len(prompts) > setup.rows):
        return None
    count = len({member for step in plan.steps for row in step.rows for member in row.members})
    found = compose(setup.model, setup.pair, prompts[:count], steps_of(method, setup.pair), plan, runs, made, Aliased)
    return round(found.seconds, 3)


class DevicePasses:
    """Seconds of a bundle's whole pass, shallow pass and decoding, on `provider`."""

    def __init__(self, folder: Path, provider: str, runs: int, decoder: str = "full") -> None:
        bundle = Bundle.open(folder, verify=False, provider=provider, decoder=decoder)
        self.told = f"{bundle.provider.name} {bundle.precision_of('unet', 'full')}"
        self._pass = {role: self._timed(bundle, role, runs) for role in ("full", "shallow")}
        zeros, taken = np.zeros(bundle.latent_shape, np.float32), []
        for _ in range(runs + 1):
            started = time.perf_counter()
            bundle.decode(zeros)
            taken.append(time.perf_counter() - started)
        self.decode_s = round(statistics.median(taken[1:]), 3)
        bundle.release()
        gc.collect()

    @staticmethod
    def _timed(bundle: Bundle, role: str, runs: int) -> float:
        variant = bundle.variant("unet", role)
        if variant is None:
            raise SystemExit(f"{bundle.folder} has no device graph {role}; export it with --targets")
        opening = bundle._opening("unet", role, variant.file)
        return time_pass(bundle.folder / variant.file, variant, bundle.provider, opening, runs)

    def of(self, setup: Setup, method: Method) -> dict[str, Any]:
        """`device_s`, `decode_s` as of the measured rows."""
        pair, start = setup.pair, start_of(method, setup.pair)
        if start >= pair.steps_on_device:
            return {"device_s": 0.0, "decode_s": self.decode_s}
        steps = plan_steps(start, pair.steps_on_device, saving_of(method, pair))
        whole, shallow = passes(steps, guided=pair.guidance != 1.0)
        seconds = whole * self._pass["full"] + shallow * self._pass["shallow"]
        return {"device_s": round(seconds, 3), "decode_s": self.decode_s}
