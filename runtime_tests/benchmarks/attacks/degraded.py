"""A cloud that spoils the pictures of half the candidates, within what passes as latents, and waits for a second try.

A user whose picture is bad asks again, one whose picture is good rather does not. With q1 and q0 the chances of a redo
for a spoilt and an honest picture, whether there is a redo tells h((q1+q0)/2) - (h(q1)+h(q0))/2 bits about the half
that the real prompt is in. Here a redo follows when the judge finds gender or skin tone wrong in the finished picture.
The defence is a check on the device: is one latent's rms or kurtosis unlike the others'?
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from obclip.export.classifier import load_classifier

from .linkage import wrong
from .pictures import HANDOFFS, Float32, finish, finished, rms, rounds
from .row import Row, rate
from .settings import Settings
from .stats import binary_entropy, mutual_information

Spoil = Callable[[Float32, np.random.Generator], Float32]
K = HANDOFFS[-1]
FLAG_NOTE = "chance: honest answers flagged"
REFUSED_NOTE = "a flagged answer is refused whatever the index"


def run(settings: Settings) -> list[Row]:
    rng = np.random.default_rng(settings.seed)
    judge, made = load_classifier(), rounds(settings.drawings, settings.seed)
    good = finished(settings.drawings, settings.seed, K)
    honest = np.stack([wrong(judge, p, r.found.prompts) for r, p in zip(made, good, strict=True)])  # (rounds, N)
    usual = np.array([oddness(r.latents[K]) for r in made])
    limit = float(np.quantile(usual, 0.95))
    rows = _rows("a user who always tells", "spoilt", np.ones_like(honest), np.zeros_like(honest), settings.users, rng)
    for name, spoil in SPOILS.items():
        spoilt = [spoil(r.latents[K], rng) for r in made]
        bad = np.stack(
            [
                wrong(judge, finish(list(r.found.prompts), z, K), r.found.prompts)
                for r, z in zip(made, spoilt, strict=True)
            ]
        )
        rows += _rows("ours", name, bad, honest, settings.users, rng)
        flags = [oddness(np.where(half(len(z), rng)[:, None, None, None], z, r.latents[K])) > limit
                 for r, z in zip(made, spoilt, strict=True)]  # fmt: skip
        caught = sum(flags)
        left = redo_bits(float(bad.mean()), float(honest.mean())) * (1 - caught / len(made))
        target, usually = "ours, latents compared", float((usual > limit).mean())
        rows += [
            rate("degraded", target, f"answers flagged, half {name}", caught, len(made), usually, "outside", FLAG_NOTE),
            Row("degraded", target, f"bits an answer, half {name}", left, 0.0, len(made), "outside", REFUSED_NOTE),
        ]
    return rows


def noisy(latents: Float32, rng: np.random.Generator) -> Float32:
    """Mostly noise of the same rms: what a sloppy cloud would return."""
    noise = rng.standard_normal(latents.shape) * rms(latents)
    return (np.sqrt(0.1) * latents + np.sqrt(0.9) * noise).astype(np.float32)


def blurred(latents: Float32, rng: np.random.Generator) -> Float32:
    """Each latent averaged over 4x4 places: finite, in range, and flat."""
    n, c, h, w = latents.shape
    means = latents.reshape(n, c, h // 4, 4, w // 4, 4).mean((3, 5))
    return np.asarray(means.repeat(4, 2).repeat(4, 3), np.float32)


def other(latents: Float32, rng: np.random.Generator) -> Float32:
    """Every latent is that of another candidate: honest numbers for the wrong prompt."""
    return np.roll(latents, int(rng.integers(1, len(latents))), 0)


SPOILS: dict[str, Spoil] = {"noise": noisy, "blurred": blurred, "of another candidate": other}


def half(count: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """A random half of the candidates, bool [count]."""
    return rng.permutation(count) < count // 2


def oddness(latents: Float32) -> float:
    """How far the oddest of N latents is from the others: its rms or kurtosis, in robust standard deviations."""
    flat = latents.reshape(len(latents), -1).astype(np.float64)
    centred = flat - flat.mean(1, keepdims=True)
    sizes = np.sqrt((centred**2).mean(1))
    kurtosis = (centred**4).mean(1) / sizes**4
    worst = 0.0
    for values in (sizes, kurtosis):
        middle = np.median(values)
        spread = 1.4826 * np.median(np.abs(values - middle)) + 1e-9
        worst = max(worst, float(np.abs(values - middle).max() / spread))
    return worst


def redo_bits(q1: float, q0: float) -> float:
    """What one answer's redo, or its absence, tells about the spoilt half, in bits."""
    return binary_entropy((q1 + q0) / 2) - (binary_entropy(q1) + binary_entropy(q0)) / 2


def gained_on_redo(q1: float, q0: float) -> float:
    """What a redo that does happen tells: 1 bit less the doubt that honest redos leave."""
    return 0.0 if q1 + q0 == 0 else 1 - binary_entropy(q1 / (q1 + q0))


def simulate(bad: NDArray[np.floating], honest: NDArray[np.floating], users: int, rng: np.random.Generator) -> float:
    """redo_bits from `users` simulated answers; bad, honest: 1.0 where a picture leads to a redo, [rounds, N]."""
    which, real = rng.integers(len(bad), size=users), rng.integers(bad.shape[1], size=users)
    spoilt = rng.random(users) < 0.5
    redo = np.where(spoilt, bad[which, real], honest[which, real])
    return mutual_information(spoilt.astype(int).tolist(), redo.astype(int).tolist())


def _rows(
    target: str,
    name: str,
    bad: NDArray[np.floating],
    honest: NDArray[np.floating],
    users: int,
    rng: np.random.Generator,
) -> list[Row]:
    q1, q0, n = float(bad.mean()), float(honest.mean()), bad.size
    closed = f"closed form; simulated {simulate(bad, honest, users, rng):.3f}"
    return [
        rate("degraded", target, f"redo rate, {name}", float(bad.sum()), n, q0, "outside", "chance: honest latents"),
        Row("degraded", target, f"bits an answer, half {name}", redo_bits(q1, q0), 0.0, n, "outside", closed),
        Row("degraded", target, f"bits when a redo comes, half {name}", gained_on_redo(q1, q0), 0.0, n, "outside"),
    ]
