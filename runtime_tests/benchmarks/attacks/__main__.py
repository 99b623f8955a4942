"""Attacks on candidate sets, requests and pictures, and on weaker ways to do the same; prints one table.

    python -m runtime_tests.benchmarks.attacks [--quick] [--only NAME ...] [--json FILE]

Everything is drawn from --seed; clocks and drawn seeds are not. Captions are those of OBCLIP_DATA, or sentences of our
own where there are none.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from obclip.core.files import atomic_write_bytes
from obclip.edge.machine import machine

from . import (
    closure,
    context,
    decoys,
    degraded,
    detection,
    headers,
    inversion,
    linkage,
    marking,
    order,
    presence,
    redo,
    repeats,
    retries,
    sockets,
    timing,
)
from .row import Row, table
from .settings import FULL, QUICK, Settings

ATTACKS: dict[str, Callable[[Settings], list[Row]]] = {
    "closure": closure.run,
    "context": context.run,
    "presence": presence.run,
    "repeats": repeats.run,
    "order": order.run,
    "timing": timing.run,
    "retries": retries.run,
    "marking": marking.run,
    "linkage": linkage.run,
    "inversion": inversion.run,
    "degraded": degraded.run,
    "redo": redo.run,
    "decoys": decoys.run,
    "sockets": sockets.run,
    "headers": headers.run,
    "detection": detection.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m runtime_tests.benchmarks.attacks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=ATTACKS, metavar="NAME", help=", ".join(ATTACKS))
    parser.add_argument("--quick", action="store_true", help="small samples: minutes, and wide intervals")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--seed", type=int, default=FULL.seed)
    args = parser.parse_args()
    settings = replace(QUICK if args.quick else FULL, seed=args.seed)
    rows: list[Row] = []
    seconds: dict[str, float] = {}
    for name in args.only or ATTACKS:
        started = time.perf_counter()
        rows += ATTACKS[name](settings)
        seconds[name] = round(time.perf_counter() - started, 1)
        print(f"{name}: {seconds[name]:.0f} s", file=sys.stderr, flush=True)
    report = {
        "machine": about(),
        "settings": asdict(settings),
        "seconds": seconds,
        "rows": [row.to_dict() for row in rows],
    }
    if args.json:
        atomic_write_bytes(args.json, (json.dumps(_plain(report), indent=1) + "\n").encode())
    print("machine   " + ", ".join(f"{k} {v}" for k, v in about().items()))
    print("settings  " + ", ".join(f"{k} {v}" for k, v in asdict(settings).items()))
    print(table(rows))


def about() -> dict[str, Any]:
    """The machine and the versions that the numbers depend on."""
    return machine() | {name: version(name) for name in ("numpy", "torch", "httpx", "pillow")}


def _plain(value: Any) -> Any:
    """JSON has no word for what is not a number."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and value != value else value


if __name__ == "__main__":
    main()
