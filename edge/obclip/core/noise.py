"""Noise from a seed, the same bits on every platform and on both sides of the wire.

Philox 4x64 words from NumPy (Salmon et al. 2011; the raw stream is stable across NumPy versions) and a Box-Muller
transform in float64. One noise serves all N candidates of a request.
"""

from __future__ import annotations

import math
import secrets

import numpy as np
from numpy.typing import NDArray

from obclip.core.errors import InputError

SEED_LIMIT = 2**53  # seeds survive JSON numbers exactly
_INITIAL = 0


def draw_seed() -> int:
    """A seed nobody can predict, for requests that name none."""
    return secrets.randbelow(SEED_LIMIT)


def check_seed(seed: int) -> int:
    """Return `seed`; InputError unless it is an int in [0, 2**53)."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEED_LIMIT:
        raise InputError(f"seed is {seed!r}; it must be an integer from 0 to {SEED_LIMIT - 1}")
    return seed


def initial_noise(seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal float32 array of `shape`, a function of (seed, shape) alone."""
    return _normal(check_seed(seed), _INITIAL, shape)


def step_noise(seed: int, step: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Fresh standard normal noise for step `step` (from 0) of a solver that needs it, independent of the others."""
    if step < 0:
        raise InputError(f"step is {step}; it must be 0 or more")
    return _normal(check_seed(seed), step + 1, shape)


def _normal(seed: int, stream: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    size = math.prod(shape)
    half = (size + 1) // 2
    words = np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(2 * half)
    # 53 bits to (0, 1): the half keeps the logarithm finite
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log(uniform[:half]))
    angle = 2.0 * np.pi * uniform[half:]
    values = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return values[:size].astype(np.float32).reshape(shape)
