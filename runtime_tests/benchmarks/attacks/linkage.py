"""A published picture and a cloud that kept all N latents: it finishes each one itself and takes the nearest.

Semi-honest: nothing is changed. With the device's model its copies are exact; without it, it finishes with its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from obclip.export.classifier import Classifier, load_classifier

from .marking import renoise
from .pictures import HANDOFFS, Pictures, decode, finish, finished, published, rounds
from .row import Row, rate
from .settings import Settings

Look = Callable[[Pictures], NDArray[np.float64]]
NOISE = 0.3


def run(settings: Settings) -> list[Row]:
    judge = load_classifier()
    looks: dict[str, Look] = {"pixels": _pixels, "the judge's features": lambda images: judge.run(images)[0]}
    made = rounds(settings.drawings, settings.seed)
    clouds = [decode(r.whole) for r in made]
    rng = np.random.default_rng(settings.seed)
    rows = []
    for k in HANDOFFS:
        drawn = finished(settings.drawings, settings.seed, k)
        for name, look in looks.items():
            exact = [link(jpeg(p, 90, None), p, look) for p in drawn]
            rows.append(_row("device's model known", f"candidate named by {name}, k={k}, JPEG 90", exact))
            own = [link(jpeg(p, 90, None), c, look) for p, c in zip(drawn, clouds, strict=True)]
            rows.append(_row("cloud's own model", f"candidate named by {name}, k={k}, JPEG 90", own))
        small = [link(jpeg(p, 75, 48), p, _pixels) for p in drawn]
        rows.append(_row("device's model known", f"candidate named by pixels, k={k}, 48 px, JPEG 75", small))
    k = HANDOFFS[-1]
    drawn = finished(settings.drawings, settings.seed, k)
    shown = [1 - wrong(judge, jpeg(p, 90, None), r.found.prompts) for r, p in zip(made, drawn, strict=True)]
    seen = [(int(s.sum()), len(s)) for s in shown]
    rows.append(_row("nobody's latents", f"candidate named by what the picture shows, k={k}", seen))
    noised = []
    for r, copies in zip(made, drawn, strict=True):
        latents = np.stack([renoise(z, NOISE, rng) for z in r.latents[k]])
        noised.append(link(jpeg(finish(list(r.found.prompts), latents, k), 90, None), copies, _pixels))
    rows.append(_row(f"device adds noise {NOISE:g}", f"candidate named by pixels, k={k}, JPEG 90", noised))
    return rows


def link(pictures: Pictures, copies: Pictures, look: Look) -> tuple[int, int]:
    """How many published pictures are nearest to the copy of their own candidate, and N; both uint8 [N, H, W, 3]."""
    shown, own = look(pictures), look(copies)
    nearest = ((shown[:, None] - own[None]) ** 2).sum(-1).argmin(1)
    return int((nearest == np.arange(len(copies))).sum()), len(copies)


def wrong(judge: Classifier, pictures: Pictures, prompts: Sequence[str]) -> NDArray[np.float64]:
    """1.0 where the judge does not see the gender and skin tone of a picture's own prompt, float64 [N]."""
    said = judge.classify(pictures)
    seen = zip(prompts, said["gender"], said["skin"], strict=True)
    return np.array([float(f" {gender} " not in p or f"with {skin} skin" not in p) for p, gender, skin in seen])


def jpeg(pictures: Pictures, quality: int, side: int | None) -> Pictures:
    return np.stack([published(p, quality, side) for p in pictures])


def _pixels(images: Pictures) -> NDArray[np.float64]:
    return images.reshape(len(images), -1).astype(np.float64)


def _row(target: str, metric: str, results: list[tuple[int, int]]) -> Row:
    hits, n = (sum(values) for values in zip(*results, strict=True))
    note = f"{len(results)} prompts, every candidate once"
    return rate("linkage", f"ours, {target}", metric, hits, n, len(results) / n, "outside", note)
