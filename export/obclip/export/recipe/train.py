"""What every training stage shares: device, rate schedule, moving average, checkpoints, log."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

CHECKPOINT_EVERY_S = 90.0


def pick_device(name: str | None) -> torch.device:
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def memory_format(device: torch.device) -> torch.memory_format:
    """Channels last on CUDA; on a CPU these small UNets train faster without it."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def learning_rate(step: int, steps: int, peak: float, decay: float, warmup: int = 100) -> float:
    """Warm up, hold, then fall linearly to zero over the last `decay` part of `steps`.

    A held rate (rather than a cosine) lets a run be lengthened or cut from any checkpoint.
    """
    tail = max(1, int(steps * decay))
    return peak * min(1.0, (step + 1) / warmup, max(0.0, (steps - step) / tail))


class Average:
    """Exponential moving average of a module's parameters."""

    def __init__(self, module: torch.nn.Module, rate: float) -> None:
        self.rate = rate
        self.values = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module, step: int) -> None:
        rate = min(self.rate, (1 + step) / (10 + step))
        for k, v in module.state_dict().items():
            self.values[k].lerp_(v.to(self.values[k].dtype), 1 - rate) if v.is_floating_point() else None


@dataclass
class Stage:
    """One stage of a run: `folder/<name>.pt` is its checkpoint, `folder/log.jsonl` its log."""

    name: str
    folder: Path
    steps: int
    device: torch.device

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / f"{self.name}.pt"
        self.spent_s = 0.0

    def load(self) -> dict[str, Any] | None:
        if not self.path.is_file():
            return None
        state: dict[str, Any] = torch.load(self.path, map_location=self.device, weights_only=True)
        self.spent_s = float(state["spent_s"])
        return state

    def save(self, state: dict[str, Any]) -> None:
        temporary = self.path.with_suffix(".tmp")
        torch.save({**state, "spent_s": self.spent_s}, temporary)
        os.replace(temporary, self.path)

    def log(self, **values: Any) -> None:
        line = json.dumps({"stage": self.name, **values})
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def run(
        self,
        start: int,
        step: Callable[[int], dict[str, float]],
        state: Callable[[int], dict[str, Any]],
        sample: Callable[[int], None] | None = None,
        log_every: int = 100,
        sample_every: int = 1000,
    ) -> None:
        """Call `step(i)` for i in start..steps-1; log the mean of what it returns; checkpoint; draw samples."""
        sums: dict[str, float] = {}
        last_log = last_save = time.monotonic()
        for i in self._range(start):
            for k, v in step(i).items():
                sums[k] = sums.get(k, 0.0) + v
            now = time.monotonic()
            if (i + 1) % log_every == 0:
                self.log(
                    step=i + 1,
                    of=self.steps,
                    **{k: round(v / log_every, 5) for k, v in sums.items()},
                    s_per_step=round((now - last_log) / log_every, 4),
                )
                sums, last_log = {}, now
            if now - last_save > CHECKPOINT_EVERY_S or i + 1 == self.steps:
                self.spent_s += now - last_save
                last_save = now
                self.save(state(i + 1))
            if sample is not None and ((i + 1) % sample_every == 0 or i + 1 == self.steps):
                sample(i + 1)

    def _range(self, start: int) -> Iterator[int]:
        return iter(range(start, self.steps))


def generator(seed: int, step: int) -> torch.Generator:
    """A generator that depends on (seed, step) alone, so that a restarted run draws what it would have drawn."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % (2**63))
