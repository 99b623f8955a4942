"""How long one pass of one graph takes, opened in one way."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import numpy as np

from obclip.core.manifest import Variant
from obclip.edge.providers.base import Opening, Provider


def time_pass(path: Path, variant: Variant, provider: Provider, opening: Opening, runs: int) -> float:
    """Seconds, the median of `runs` passes after a first."""
    return float(np.median(time_passes(path, variant, provider, opening, runs)))


def time_passes(
    path: Path, variant: Variant, provider: Provider, opening: Opening, runs: int, seconds: float = 0.0
) -> list[float]:
    """Seconds of each pass after a first, on seeded noise: of `runs`, and of more until all took `seconds`. The session
    is closed again."""
    session = provider.open(path, opening)
    rng = np.random.default_rng(0)
    shapes = {name: [int(size) for size in shape] for name, shape in variant.inputs.items()}
    feed = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    session.run(**feed)
    taken: list[float] = []
    while len(taken) < runs or sum(taken) < seconds:
        started = time.perf_counter()
        session.run(**feed)
        taken.append(time.perf_counter() - started)
    del session
    gc.collect()
    return taken
