"""The real server, as a process, whose model breaks on chosen calls.

    python -m runtime_tests.benchmarks.faulty_server --port 0 --ready-file F --fault nan --calls 12 13

Everything but the UNet's calls is what `obclip serve` runs: HTTP, step engine, scheduler, plans, draining.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from obclip.cloud.app import create_app
from obclip.cloud.batch import Batcher
from obclip.cloud.limits import Limits
from obclip.cloud.model import load_model
from obclip.cloud.plans import default_plan, load_planner
from obclip.cloud.scheduler import SchedulerLimits
from obclip.cloud.server import Server, listen
from obclip.cloud.stepper import StepEngine
from obclip.cloud.unet import Features, LayeredUNet
from obclip.core.pairs import load_pair

Result = tuple[torch.Tensor, Features]
MAX_ROWS = 24


def _raise(error: Exception) -> Callable[[Result], Result]:
    def fault(_: Result) -> Result:
        raise error

    return fault


def _not_finite(result: Result) -> Result:
    broken = result[0].clone()
    broken[0, 0, 0, 0] = torch.nan
    return broken, result[1]


FAULTS: dict[str, Callable[[Result], Result]] = {
    "raise": _raise(ValueError("a broken forward")),
    "nan": _not_finite,
    "oom": _raise(torch.OutOfMemoryError("out of memory")),
    "device": _raise(RuntimeError("CUDA error: an illegal memory access was encountered")),
}


class Breaking:
    """Stands for the UNet, in batches and in reruns: breaks on the calls of these numbers, counted from 1."""

    def __init__(self, layered: LayeredUNet, fault: str | None, calls: list[int]) -> None:
        self._layered, self._fault, self._calls, self._call = layered, fault, frozenset(calls), 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layered, name)

    def __call__(self, *arguments: Any) -> Result:
        self._call += 1
        result = self._layered(*arguments)
        return FAULTS[self._fault](result) if self._fault and self._call in self._calls else result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ready-file", type=Path, required=True)
    parser.add_argument("--fault", choices=list(FAULTS))
    parser.add_argument("--calls", type=int, nargs="*", default=[])
    parser.add_argument("--body-timeout", type=float, default=2.0)
    args = parser.parse_args()
    pair = load_pair("emoji")
    sound = load_model(pair, "cpu", "float32")
    broken = Breaking(sound.layered, args.fault, args.calls)
    model = replace(sound, layered=broken)  # type: ignore[arg-type]
    limits = Limits(max_rows=MAX_ROWS, max_waiting=256, max_waiting_rows=100_000, body_timeout_s=args.body_timeout)
    planner = load_planner(default_plan(pair.name), pair.steps, sound.layered.depth, MAX_ROWS)
    scheduler = SchedulerLimits(MAX_ROWS, 256, 100_000, 256, 60.0, 60.0)
    engine = StepEngine(model, pair, scheduler, Batcher(broken))
    app = create_app(model, pair, limits, None, version("obclip"), engine=engine, planner=planner, drain_s=30.0)
    with listen("127.0.0.1", args.port) as listener:
        server = Server(app, listener, ready_file=args.ready_file, drain_s=30.0)
        server.run(sockets=[listener])
    return 1 if app.state.service.state == "dead" else 0


if __name__ == "__main__":
    sys.exit(main())
