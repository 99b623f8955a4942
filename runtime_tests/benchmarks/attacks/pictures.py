"""Rounds of the embedded pair: latents of all candidates as the cloud returns them, and pictures finished from them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from obclip.cloud.model import load_model
from obclip.core.pairs import load_pair
from obclip.edge import Bundle
from obclip.edge.oblivious import CandidateSet, Policy, candidate_set, load_policy
from runtime_tests.benchmarks.pair_quality import Setting, Sides, cloud_steps, device_steps

HANDOFFS = (5, 10)
_SUBJECTS = (
    "health worker", "teacher", "cook", "farmer", "judge", "singer", "mechanic", "pilot", "student", "scientist",
    "artist", "detective", "astronaut", "technologist", "guard", "ninja",
)  # fmt: skip

Float32 = NDArray[np.float32]
Pictures = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Round:
    """One request under one seed. latents: k -> float32 [N, 4, h, w]; whole: the cloud's own last latents [N, ...]."""

    found: CandidateSet
    latents: dict[int, Float32]
    whole: Float32


@lru_cache(maxsize=1)
def sides() -> Sides:
    pair = load_pair("emoji")
    return Sides(pair, load_model(pair), Bundle.open("emoji"))


def setting() -> Setting:
    """The pair's own, without history: what is attacked is the latents."""
    pair = sides().pair
    return Setting(pair.solver, False, pair.guidance)


def candidates_of(i: int, policy: Policy) -> CandidateSet:
    """The set of the i-th prompt: one subject by gender and skin tone."""
    return candidate_set(f"noto style emoji of a woman {_SUBJECTS[i % len(_SUBJECTS)]} with dark skin tone", policy)


@lru_cache(maxsize=1)
def rounds(count: int, seed: int) -> tuple[Round, ...]:
    """`count` prompts of different subjects, N = 10 each (gender, skin tone)."""
    policy, made = load_policy("emoji"), []
    steps = sides().pair.steps
    for i in range(count):
        found = candidates_of(i, policy)
        seeds = [seed * 1000 + i] * len(found.prompts)
        kept = cloud_steps(sides(), setting(), list(found.prompts), seeds, (*HANDOFFS, steps))
        made.append(Round(found, {k: kept[k][0] for k in HANDOFFS}, kept[steps][0]))
    return tuple(made)


def finish(prompts: list[str], latents: Float32, k: int) -> Pictures:
    """What a device draws from latents [M, 4, h, w] of step k with its own prompts: uint8 [M, H, W, 3]."""
    return decode(
        device_steps(sides().bundle, sides().pair.steps, setting(), prompts, latents.astype(np.float32), k, None)
    )


def decode(latents: Float32) -> Pictures:
    return np.stack([sides().bundle.decode(x) for x in latents])


@lru_cache(maxsize=len(HANDOFFS))
def finished(count: int, seed: int, k: int) -> tuple[Pictures, ...]:
    """For every round the honest pictures of all candidates, each with its own prompt."""
    return tuple(finish(list(r.found.prompts), r.latents[k], k) for r in rounds(count, seed))


def published(picture: Pictures, quality: int = 90, side: int | None = None) -> Pictures:
    """A picture as others get it: JPEG of `quality`, first made `side` pixels wide and back if given."""
    image = Image.fromarray(picture)
    if side is not None:
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as opened:
        back = opened.convert("RGB")
    return np.asarray(back.resize(picture.shape[1::-1], Image.Resampling.BICUBIC) if side is not None else back)


def rms(x: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def psnr(a: Pictures, b: Pictures) -> float:
    """Peak signal-to-noise ratio in dB; 99 for equal pictures."""
    error = rms(a.astype(np.float64) - b)
    return 99.0 if error == 0 else 20 * float(np.log10(255 / error))
