"""Noise: fixed bits, standard normal, independent across seeds and steps."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from obclip.core.errors import InputError
from obclip.core.noise import SEED_LIMIT, draw_seed, initial_noise, step_noise


def test_first_values_follow_from_philox_and_box_muller():
    """A second implementation, in Python's own floats, of the documented recipe."""
    import math

    words = [int(w) for w in np.random.Philox(key=np.array([7, 0], np.uint64)).random_raw(4)]
    u = [((w >> 11) + 0.5) / 2**53 for w in words]
    radius = [math.sqrt(-2 * math.log(v)) for v in u[:2]]
    angle = [2 * math.pi * v for v in u[2:]]
    expected = [r * math.cos(a) for r, a in zip(radius, angle, strict=True)]
    expected += [r * math.sin(a) for r, a in zip(radius, angle, strict=True)]
    np.testing.assert_allclose(initial_noise(7, (4,)), np.array(expected, np.float32), rtol=1e-6)


@pytest.mark.parametrize(
    ("seed", "digest"), [(0, "55253c0769841164"), (20261124, "7ae30dbede477e80"), (SEED_LIMIT - 1, "7f74db00887f0639")]
)
def test_golden_bytes(seed: int, digest: str):
    assert hashlib.sha256(initial_noise(seed, (4, 16, 16)).tobytes()).hexdigest()[:16] == digest


def test_noise_is_standard_normal():
    x = initial_noise(5, (200_000,)).astype(np.float64)
    assert abs(x.mean()) < 0.01
    assert abs(x.std() - 1) < 0.01
    assert abs((x**4).mean() - 3) < 0.1
    assert abs(np.corrcoef(x[:100_000], x[100_000:])[0, 1]) < 0.015


def test_seeds_and_steps_are_independent():
    streams = [
        initial_noise(1, (50_000,)),
        initial_noise(2, (50_000,)),
        step_noise(1, 0, (50_000,)),
        step_noise(1, 1, (50_000,)),
    ]
    correlation = np.corrcoef(streams) - np.eye(4)
    assert np.abs(correlation).max() < 0.02


def test_odd_sizes_and_shapes():
    assert initial_noise(1, (3, 1, 7)).shape == (3, 1, 7)
    assert initial_noise(1, (2, 2)).dtype == np.float32


@pytest.mark.parametrize("seed", [-1, SEED_LIMIT, 1.5, True, "7"])
def test_bad_seeds_are_refused(seed: object):
    with pytest.raises(InputError, match="seed"):
        initial_noise(seed, (4,))  # type: ignore[arg-type]


def test_drawn_seeds_are_in_range_and_differ():
    seeds = {draw_seed() for _ in range(20)}
    assert len(seeds) == 20
    assert all(0 <= s < SEED_LIMIT for s in seeds)
