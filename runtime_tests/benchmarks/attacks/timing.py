"""Whether time tells the index: real client, real HTTP on loopback, a cloud that answers at once.

The UNet and the decoder are left out, whose work does not depend on values; everything else of `generate` runs. Phases
are the device's own clock; gaps are what the cloud sees.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from obclip.core.pairs import load_pair
from obclip.edge import Client, generate
from obclip.edge.oblivious import candidate_set, load_policy

from .loopback import Log, QuickBundle, loopback_cloud, quick_bundle, random_answer
from .row import Row
from .settings import Settings
from .stats import kolmogorov_smirnov

PROMPTS = {2: "a person holding a red hat, seen by a woman", 10: "noto style emoji of a woman cook with dark skin tone"}
WARM_UP = 20
Times = dict[str, NDArray[np.float64]]


def run(settings: Settings) -> list[Row]:
    bundle, rows = quick_bundle(), []
    for size, prompt in PROMPTS.items():
        rng = np.random.default_rng([settings.seed, size])
        members = candidate_set(prompt, load_policy("emoji")).prompts
        if len(members) != size:
            raise AssertionError(f"{prompt!r} has {len(members)} candidates; this attack wants {size}")
        indices, times = measure(bundle, members, settings.runs, rng)
        for name, values in times.items():
            rows.append(_row(f"ours, N={size}", name, indices, values))
        gap = times["cloud sees: answer to close"]
        rows.append(_smallest(f"ours, N={size}", indices, gap))
    return rows


def measure(
    bundle: QuickBundle, members: Sequence[str], runs: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], Times]:
    """`runs` pictures of members drawn at random: their indices, int [runs], and times by phase, seconds [runs]."""
    indices = rng.integers(len(members), size=runs + WARM_UP)
    phases: dict[str, list[float]] = {}
    with loopback_cloud(bundle, random_answer(bundle, load_pair("emoji"), 0)) as (url, log):
        for index in indices:
            log.clear()
            with Client(url) as client:
                result = generate(members[index], bundle=bundle, client=client, seed=5)
            t = result.timings_s
            log.ended.wait(10)
            seen = {
                "device: prepare (nothing sent yet)": t["prepare"],
                "device: extraction to end": t["device_steps"] + t["decode"],
                **gaps(log),
            }
            for name, value in seen.items():
                phases.setdefault(name, []).append(value)
    return indices[WARM_UP:], {name: np.array(values[WARM_UP:]) for name, values in phases.items()}


def gaps(log: Log) -> dict[str, float]:
    """What the cloud's clock shows of one picture, in seconds."""
    handshake, work = log.requests
    return {
        "cloud sees: handshake to request": work.arrived_s - handshake.answered_s,
        "cloud sees: answer to close": log.closed_s[0] - work.answered_s,
    }


def separation(indices: NDArray[np.int64], times: NDArray[np.float64]) -> tuple[float, float]:
    """The largest KS distance between one index's times and the others', and its p-value times the tests made."""
    found = sorted(set(indices.tolist()))
    tests = found[:1] if len(found) == 2 else found
    results = [kolmogorov_smirnov(times[indices == i], times[indices != i]) for i in tests]
    return max(d for d, _ in results), min(1.0, min(p for _, p in results) * len(tests))


def _row(target: str, name: str, indices: NDArray[np.int64], times: NDArray[np.float64]) -> Row:
    d, p = separation(indices, times)
    low, middle, high = np.quantile(times, [0.1, 0.5, 0.9]) * 1e3
    note = f"D={d:.3f}; median {middle:.2f} ms, p10..p90 {low:.2f}..{high:.2f}"
    return Row("timing", target, f"{name}, KS p-value", p, None, len(times), "measured", note)


def _smallest(target: str, indices: NDArray[np.int64], times: NDArray[np.float64]) -> Row:
    """The smallest delay of index 0 alone that these samples would have shown (p < 0.01), in milliseconds."""
    low, high = 0.0, float(np.ptp(times)) + 1e-6
    for _ in range(30):
        middle = (low + high) / 2
        shown = separation(indices, np.where(indices == 0, times + middle, times))[1] < 0.01
        low, high = (low, middle) if shown else (middle, high)
    note = "added to the measured times afterwards: what this test could have missed"
    return Row("timing", target, "smallest delay it would show, ms", high * 1e3, None, len(times), "measured", note)
