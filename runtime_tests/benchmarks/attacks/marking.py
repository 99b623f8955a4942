"""A cloud that marks the latents: which of N marks is in the published picture?

To measure the mark alone, all N marks are put on the latents of one candidate, which its prompt finishes: nothing but
the mark tells the pictures apart. The cloud has the device's model and compares with copies that it finishes and
encodes itself. Two defences: a look at how far each latent is from the others', and noise added after extraction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .pictures import HANDOFFS, Float32, Pictures, Round, finish, psnr, published, rms, rounds
from .row import Row, rate
from .settings import Settings

STRENGTHS = (0.02, 0.2)
NOISES = (0.1, 0.3)
TRIED = 3
"""Marks whose picture is finished again from noised latents, of each prompt."""


def run(settings: Settings) -> list[Row]:
    made = rounds(settings.drawings, settings.seed)
    marks = patterns(settings.marks, made[0].latents[HANDOFFS[0]].shape[1:], np.random.default_rng(settings.seed))
    rows = []
    for k in HANDOFFS:
        for strength in STRENGTHS:
            rows += _detection(made, k, strength, marks, settings.seed)
        rows += _residuals(made, k, marks)
    return rows


def patterns(count: int, shape: tuple[int, ...], rng: np.random.Generator) -> Float32:
    """`count` low-frequency patterns of rms 1, float32 [count, 4, h, w]: random sums of the 15 slowest cosines."""
    c, h, w = shape
    y, x = (np.cos(np.pi * np.outer(np.arange(4), np.arange(n) + 0.5) / n) for n in (h, w))  # (4, n)
    weights = rng.standard_normal((count, c, 4, 4))
    weights[..., 0, 0] = 0  # a constant would only shift the colour
    sums = np.einsum("mcuv,uh,vw->mchw", weights, y, x)
    return (sums / np.sqrt((sums**2).mean((1, 2, 3), keepdims=True))).astype(np.float32)


@dataclass(frozen=True)
class Tally:
    """Trials and how many named the right mark."""

    hits: int = 0
    n: int = 0

    def add(self, guess: int, truth: int) -> Tally:
        return Tally(self.hits + (guess == truth), self.n + 1)


def detect(picture: Pictures, copies: Pictures) -> int:
    """The copy whose difference from the copies' mean correlates best with the picture's. uint8 [H,W,3], [N,H,W,3]."""
    reference = copies.astype(np.float64)
    mean = reference.mean(0)
    shown, own = (picture - mean).ravel(), (reference - mean).reshape(len(copies), -1)
    return int((own @ shown / (np.linalg.norm(own, axis=1) + 1e-9)).argmax())


def renoise(latents: Float32, amount: float, rng: np.random.Generator) -> Float32:
    """Latents with a share `amount`² of their power replaced by fresh noise of their own rms."""
    noise = rng.standard_normal(latents.shape) * rms(latents)
    return (np.sqrt(1 - amount**2) * latents + amount * noise).astype(np.float32)


def distances(latents: Float32) -> np.ndarray:
    """How far each of N latents is from the mean of the others, over the median of that, float64 [N]."""
    n = len(latents)
    others = (latents.sum(0, keepdims=True) - latents) / (n - 1)
    far = np.sqrt(((latents - others) ** 2).mean((1, 2, 3), dtype=np.float64))
    return far / np.median(far)


def _detection(made: tuple[Round, ...], k: int, strength: float, marks: Float32, seed: int) -> list[Row]:
    rng = np.random.default_rng([seed, k, int(strength * 1000)])
    plain, small, noised = Tally(), Tally(), {amount: Tally() for amount in NOISES}
    harm: dict[float, list[float]] = {amount: [] for amount in NOISES}
    for i, one in enumerate(made):
        place = i % len(one.found.prompts)
        prompt, z = one.found.prompts[place], one.latents[k][place]
        marked = z + np.float32(strength * rms(z)) * marks
        copies = finish([prompt] * len(marks), marked, k)
        encoded = np.stack([published(copy) for copy in copies])
        for j in range(len(marks)):
            plain = plain.add(detect(encoded[j], encoded), j)
            small = small.add(detect(published(copies[j], 75, 48), encoded), j)
        tried = rng.permutation(len(marks))[:TRIED]
        batch = np.concatenate([np.stack([renoise(marked[j], a, rng) for j in tried]) for a in NOISES])
        drawn = finish([prompt] * len(batch), batch, k).reshape(len(NOISES), len(tried), *copies.shape[1:])
        for amount, pictures in zip(NOISES, drawn, strict=True):
            for j, picture in zip(tried, pictures, strict=True):
                noised[amount] = noised[amount].add(detect(published(picture), encoded), int(j))
                harm[amount].append(psnr(picture, copies[j]))
    metric = f"mark named, k={k}, strength {strength:g}"
    note = f"{len(made)} prompts; JPEG 90"
    rows = [
        _row("ours, no defence", metric, plain, len(marks), note),
        _row(
            "ours, no defence",
            f"{metric}, 48 px, JPEG 75",
            small,
            len(marks),
            f"{len(made)} prompts; copies at JPEG 90",
        ),
    ]
    for amount, tally in noised.items():
        cost = f"{len(made)} prompts; the noise moves the picture to {np.median(harm[amount]):.0f} dB PSNR"
        rows.append(_row(f"ours, noise {amount:g} after extraction", metric, tally, len(marks), cost))
    return rows


def _residuals(made: tuple[Round, ...], k: int, marks: Float32) -> list[Row]:
    """The check flags an answer above the 95th percentile of honest ones; how many marked answers does it flag?"""
    honest = np.array([distances(r.latents[k]).max() for r in made])
    limit = float(np.quantile(honest, 0.95))
    rows = []
    for strength in STRENGTHS:
        everyone, single = [], []
        for r in made:
            z = r.latents[k]
            added = np.float32(strength * rms(z)) * marks[np.arange(len(z)) % len(marks)]
            everyone.append(distances(z + added).max())
            one = z.copy()
            one[0] += added[0]
            single.append(distances(one).max())
        for what, values in (("all N marked", everyone), ("one marked", single)):
            flagged, metric = int((np.array(values) > limit).sum()), f"{what} is flagged, k={k}, strength {strength:g}"
            usual, note = float(np.mean(honest > limit)), "chance: honest answers flagged"
            rows.append(rate("marking", "ours, residual check", metric, flagged, len(made), usual, "outside", note))
    return rows


def _row(target: str, metric: str, tally: Tally, marks: int, note: str) -> Row:
    return rate("marking", target, metric, tally.hits, tally.n, 1 / marks, "outside", note)
