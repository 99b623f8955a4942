"""What a cloud plan costs in quality: every candidate of many sets, finished on the device's UNet and judged.

The embedded pair and its judge only; everything needed comes with the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obclip.cloud.engine import execute
from obclip.cloud.model import CloudModel
from obclip.cloud.plan import Plan, Policy, build_plan
from obclip.core.pairs import Pair
from obclip.core.wire import Request
from obclip.edge import Bundle
from obclip.export.classifier import Classifier
from obclip.export.classifier.measure import hits

from .pair_quality import Setting, device_steps

STYLES = ("noto", "twemoji", "fluent", "fluent 3d", "fluent flat", "blob", "noto classic", "emojitwo")
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
ROLES = (
    "cook", "firefighter", "teacher", "judge", "farmer", "artist", "pilot", "astronaut", "scientist", "singer",
    "student", "mechanic", "police officer", "detective", "health worker", "technologist", "office worker", "mage",
    "superhero", "vampire",
)  # fmt: skip
AGES = {"child": ("girl", "boy"), "adult": ("adult woman", "adult man"), "older": ("older woman", "older man")}
Images = NDArray[np.uint8]


@dataclass(frozen=True)
class CandidateSet:
    """prompts: sorted; shows: for each, the attributes its picture should show."""

    prompts: tuple[str, ...]
    shows: tuple[dict[str, Any], ...]


def candidate_sets(n: int, count: int, seed: int) -> list[CandidateSet]:
    """`count` sets of n candidates. 2: gender, over roles and tones; 6: gender and age, portraits of one tone; 10:
    gender and tone, over roles; 30: gender, age and tone, portraits."""
    rng = np.random.default_rng(seed)
    sets = []
    for i in range(count):
        style, tone, role = STYLES[i % len(STYLES)], TONES[int(rng.integers(5))], ROLES[int(rng.integers(len(ROLES)))]
        tones = TONES if n in (10, 30) else (tone,)
        ages = AGES if n in (6, 30) else {"adult": ("woman", "man")}
        activity = "portrait" if n in (6, 30) else role
        found = {}
        for t in tones:
            for age, words in ages.items():
                for gender, word in zip(("woman", "man"), words, strict=True):
                    what = word if activity == "portrait" else f"{word} {role}"
                    article = "an" if what[0] in "aeio" else "a"
                    found[f"{style} style emoji of {article} {what} with {t} skin tone"] = {
                        "gender": gender, "age": age, "skin": t, "activity": activity,
                        "gender_delta": 10.0, "skin_delta": 10.0,
                    }  # fmt: skip
        prompts = tuple(sorted(found))
        sets.append(CandidateSet(prompts, tuple(found[p] for p in prompts)))
    return sets


def request_for(pair: Pair, prompts: Sequence[str], k: int, seed: int) -> Request:
    return Request(
        pair=pair.digest, candidates=tuple(prompts), negative_prompt="", seed=seed, height=pair.height,
        width=pair.width, steps=pair.steps, handoff=k, guidance=pair.guidance, solver=pair.solver,
    )  # fmt: skip


def finish(bundle: Bundle, pair: Pair, prompts: Sequence[str], latents: NDArray[np.float16], k: int) -> Images:
    """The device's steps and decoder for every candidate: uint8 [N, H, W, 3]."""
    setting = Setting(pair.solver, False, pair.guidance)
    x = device_steps(bundle, pair.steps, setting, prompts, latents.astype(np.float32), k, None)
    return np.stack([bundle.decode(latent) for latent in x])


def draw(
    model: CloudModel, bundle: Bundle, pair: Pair, sets: Sequence[CandidateSet], k: int, policies: Sequence[Policy]
) -> list[Images]:
    """Every candidate of every set, one seed a set."""
    images = []
    for i, candidates in enumerate(sets):
        request = request_for(pair, candidates.prompts, k, 1000 + i)
        plan: Plan = build_plan(request, policies)
        latents = execute(plan, request, model, pair).latents
        images.append(finish(bundle, pair, candidates.prompts, latents, k))
    return images


def compare(
    judge: Classifier, sets: Sequence[CandidateSet], images: list[Images], vanilla: list[Images]
) -> dict[str, Any]:
    """Accuracy by attribute, mean and worst candidate; PSNR and feature distance to vanilla; Fréchet distance.

    worst: over the places in the candidate set (each a combination of values), the lowest mean accuracy over the
    attributes that differ. distance: of features, relative to that between vanilla pictures of different candidates.
    """
    rows = [row for s in sets for row in s.shows]
    features, odds = judge.run(np.concatenate(images))
    base, _ = judge.run(np.concatenate(vanilla))
    said = {name: [judge.labels[name][i] for i in p.argmax(-1)] for name, p in odds.items()}
    result: dict[str, Any] = {"images": len(rows)}
    differ = [h for h in ("gender", "age", "skin") if len({row[h] for row in sets[0].shows}) > 1]
    for head in (*differ, "activity"):
        result[head] = round(float(np.nanmean(hits(rows, said, head))), 4)
    right = np.stack([hits(rows, said, head) for head in differ]).mean(0)
    places = [tuple(row[h] for h in differ) for row in rows]
    by_place = {p: float(np.mean([r for r, q in zip(right, places, strict=True) if q == p])) for p in set(places)}
    result["attributes"] = round(float(right.mean()), 4)
    result["worst"] = round(min(by_place.values()), 4)
    psnr = np.concatenate([_psnr(a, b) for a, b in zip(images, vanilla, strict=True)])
    result["psnr_db"] = round(float(np.median(psnr)), 2)
    result["psnr_worst_db"] = round(
        float(np.mean([_psnr(a, b).min() for a, b in zip(images, vanilla, strict=True)])), 2
    )
    n = len(sets[0].prompts)
    apart = np.linalg.norm(
        base.reshape(-1, n, base.shape[1])[:, 1:] - base.reshape(-1, n, base.shape[1])[:, :-1], axis=-1
    )
    result["distance"] = round(float(np.linalg.norm(features - base, axis=-1).mean() / apart.mean()), 4)
    result["frechet"] = round(float(judge.distance(features)), 3)
    return result


def _psnr(a: Images, b: Images) -> NDArray[np.float64]:
    mse = ((a.astype(np.float64) - b) ** 2).mean(axis=(1, 2, 3))
    return np.minimum(10 * np.log10(255.0**2 / np.maximum(mse, 1e-9)), 99.0)
