"""What a real request carries beside the set: which headers and fields differ between users, and by how many bits.

One run is captured off the socket for a plain device, then again with one thing changed at a time. A field that moves
with a setting can link a user's requests to one another as far as that setting is rare; this says which fields do.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from obclip.core.pairs import load_pair
from obclip.core.schedule import SOLVERS
from obclip.core.wire import MAX_STEPS
from obclip.edge import Client, generate

from .loopback import QuickBundle, loopback_cloud, quick_bundle, random_answer
from .row import Row
from .settings import Settings

PROMPT = "an older woman with a red hat"
Fields = dict[str, str]

# What is changed, how, and in how many ways that the cloud can tell apart; None: no bound but the number of users
CHANGES: tuple[tuple[str, dict[str, Any], float | None], ...] = (
    ("token", {"token": "secret"}, None),
    ("negative prompt", {"negative_prompt": "blurry"}, None),
    ("guidance", {"guidance": 7.5}, None),
    ("policy", {"policy": "default"}, None),
    ("solver", {"solver": "ddim"}, len(SOLVERS)),
    ("steps", {"steps": 20}, MAX_STEPS),
    ("handoff", {"handoff": 5}, load_pair("emoji").steps),
    ("want_x0", {"want_x0": True}, 2),
    ("seed, where the user fixes it", {"seed": 6}, 2.0**53),
)
_FOLLOWS = {"header content-length"}  # the body's size, a function of the fields


def run(settings: Settings) -> list[Row]:
    bundle = quick_bundle()
    plain = captured(bundle)
    again = moved(plain, captured(bundle))
    versions = sorted(k for k, v in plain.items() if k.startswith("header") and re.search(r"/\d+\.\d", v))
    rows = [
        _row("headers and fields of a request", len(plain), None, "measured", ", ".join(sorted(plain))),
        _row("of them moved by another run alike", len(again), 0.0, "theorem", "same prompt, seed and settings"),
        _row("of them with a software version", len(versions), 0.0, "outside",
             ", ".join(f"{k}: {plain[k]}" for k in versions)),
    ]  # fmt: skip
    for name, change, ways in CHANGES:
        fields = sorted(moved(plain, captured(bundle, **change)) - _FOLLOWS)
        note = f"moves {', '.join(fields)}" + ("" if ways else "; no bound but the number of users")
        rows.append(_row(f"bits at most, {name}", math.log2(ways) if ways else math.nan, None, "outside", note))
    return rows


def captured(bundle: QuickBundle, *, token: str | None = None, **settings: Any) -> Fields:
    """Every header and JSON field of the denoise request of one run, by name; the address of the cloud is left out."""
    with loopback_cloud(bundle, random_answer(bundle, load_pair("emoji"), 0)) as (url, log):
        with Client(url, token=token) as client:
            generate(PROMPT, bundle=bundle, client=client, **({"seed": 5} | settings))
        (seen,) = (r for r in log.requests if r.method == "POST")
    fields = {f"header {k.lower()}": v for k, v in seen.headers if k.lower() != "host"}
    return fields | {f"field {k}": json.dumps(v) for k, v in json.loads(seen.body).items()}


def moved(a: Mapping[str, str], b: Mapping[str, str]) -> set[str]:
    """Names whose values differ, or that only one of them has."""
    return {k for k in a.keys() | b.keys() if a.get(k) != b.get(k)}


def _row(metric: str, value: float, chance: float | None, covered: Any, note: str) -> Row:
    return Row("headers", "ours", metric, float(value), chance, 1, covered, note)
