"""A cloud that spoils the pictures of half the candidates, within what passes as latents, and waits for a second try.

A user whose picture is bad asks again, one whose picture is good rather does not. With q1 and q0 the chances of a redo
for a spoilt and an honest picture, whether there is a redo tells h((q1+q0)/2) - (h(q1)+h(q0))/2 bits about the half
that the real prompt is in. Here a redo follows when the judge finds gender, skin tone or subject wrong in the finished
picture. The defence is a check on the device: do the latents of one answer differ in rms or kurtosis more than honest
ones do? Ranges, not distances from a median: with half of the latents spoilt the median means nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from obclip.export.classifier import Classifier, load_classifier

from .linkage import wrong
from .pictures import HANDOFFS, Float32, Pictures, finish, finished, rms, rounds
from .row import Row, rate
from .settings import Settings
from .stats import binary_entropy, mutual_information

Spoil = Callable[[Float32, np.random.Generator], Float32]
K = HANDOFFS[-1]


def run(settings: Settings) -> list[Row]:
    rng = np.random.default_rng(settings.seed)
    judge, made = load_classifier(), rounds(settings.drawings, settings.seed)
    good = finished(settings.drawings, settings.seed, K)
    honest = np.stack([redone(judge, p, r.found.prompts) for r, p in zip(made, good, strict=True)])  # (rounds, N)
    usual = np.stack([ranges(r.latents[K]) for r in made])
    alarms = sum(odd(usual[i], usual, i) for i in range(len(made))) / len(made)
    rows = _rows("a user who always tells", "spoilt", np.ones_like(honest), np.zeros_like(honest), settings.users, rng)
    for name, spoil in SPOILS.items():
        bad, flags = [], []
        for i, r in enumerate(made):
            z = spoil(r.latents[K], rng)
            bad.append(redone(judge, finish(list(r.found.prompts), z, K), r.found.prompts))
            mixed = np.where(half(len(z), rng)[:, None, None, None], z, r.latents[K])
            flags.append(odd(ranges(mixed), usual, i))
        rows += _rows("ours", name, np.stack(bad), honest, settings.users, rng)
        rows += _checked(name, sum(flags), len(made), alarms, redo_bits(float(np.mean(bad)), float(honest.mean())))
    return rows


def redone(judge: Classifier, pictures: Pictures, prompts: Sequence[str]) -> NDArray[np.float64]:
    """1.0 where the judge misses a picture's own gender, skin tone or subject, float64 [N]."""
    subjects = judge.classify(pictures)["activity"]
    other_subject = np.array([float(f" {s} with " not in p) for p, s in zip(prompts, subjects, strict=True)])
    return np.maximum(wrong(judge, pictures, prompts), other_subject)


def noisy(latents: Float32, rng: np.random.Generator) -> Float32:
    """Noise of the same rms, and nothing else: what a cloud that saves its work would return."""
    return (rng.standard_normal(latents.shape) * rms(latents)).astype(np.float32)


def loud(latents: Float32, rng: np.random.Generator) -> Float32:
    """Four times too large: finite, and visibly wrong pictures."""
    return 4 * latents


def other(latents: Float32, rng: np.random.Generator) -> Float32:
    """Every latent is that of another candidate: honest numbers for the wrong prompt."""
    return np.roll(latents, int(rng.integers(1, len(latents))), 0)


SPOILS: dict[str, Spoil] = {"all noise": noisy, "times four": loud, "of another candidate": other}


def half(count: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """A random half of the candidates, bool [count]."""
    return rng.permutation(count) < count // 2


def ranges(latents: Float32) -> NDArray[np.float64]:
    """Ratios, as logarithms, of the largest to the smallest rms and kurtosis among N latents, float64 [2]."""
    flat = latents.reshape(len(latents), -1).astype(np.float64)
    flat -= flat.mean(1, keepdims=True)
    power = (flat**2).mean(1)
    kurtosis = (flat**4).mean(1) / power**2
    return np.array([np.ptp(np.log(power)) / 2, np.ptp(np.log(kurtosis))])


def odd(found: NDArray[np.float64], usual: NDArray[np.float64], own: int) -> bool:
    """Whether an answer's ranges [2] are over those of all honest answers [M, 2] to other prompts than its `own`."""
    return bool((found > np.delete(usual, own, 0).max(0, initial=0)).any())


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


def _checked(name: str, caught: int, n: int, alarms: float, bits: float) -> list[Row]:
    target, left = "ours, latents compared", bits * (1 - caught / n)
    limit = "over every honest answer to another prompt; chance: honest answers that are"
    refused = "a flagged answer is refused whatever the index"
    return [
        rate("degraded", target, f"answers flagged, half {name}", caught, n, alarms, "outside", limit),
        Row("degraded", target, f"bits an answer, half {name}", left, 0.0, n, "outside", refused),
    ]


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
