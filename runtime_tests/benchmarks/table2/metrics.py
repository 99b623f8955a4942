"""What pictures show and how far they are from those of the server alone, with bootstrap intervals over sets.

The embedded pair is judged by the shipped classifier: attributes, a Fréchet distance of its features, and a score like
Inception's (exp of the mean divergence of its activities). Photographs are judged by CLIP: its score of the own prompt,
and attributes as those of the candidate it likes best. FID and Inception Score are torch-fidelity's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from obclip.core.errors import InputError
from obclip.export.classifier import Classifier
from obclip.export.classifier.measure import hits

from .prompts import PromptSet

Images = NDArray[np.uint8]
Float64 = NDArray[np.float64]
DRAWS = 300
_HEADS = ("gender", "age", "skin")


@dataclass(frozen=True)
class Scores:
    """Of M pictures, set after set. right: share of the differing attributes that a picture shows. subject: 1.0 if it
    shows what it is of, nan where that is not judged. agreement: CLIP's score, nan without CLIP. odds: [M, classes]."""

    right: Float64
    subject: Float64
    agreement: Float64
    features: Float64
    odds: Float64


class Judge(Protocol):
    name: str

    def run(self, sets: Sequence[PromptSet], images: Sequence[Images]) -> Scores: ...

    def frechet(self, features: Float64) -> float | None: ...


class EmojiJudge:
    """Of captions of photographs it judges gender alone: the one attribute that it knows by the same words."""

    name = "the shipped classifier"

    def __init__(self, classifier: Classifier) -> None:
        self._judge = classifier

    def run(self, sets: Sequence[PromptSet], images: Sequence[Images]) -> Scores:
        rows = [row for s in sets for row in s.shows]
        features, odds = self._judge.run(np.concatenate(list(images)))
        said = {name: [self._judge.labels[name][i] for i in p.argmax(-1)] for name, p in odds.items()}
        nothing = np.full(len(rows), np.nan)
        if "activity" not in rows[0]:
            right = np.array([float(r["gender"] == label) for r, label in zip(rows, said["gender"], strict=True)])
            return Scores(right, nothing, nothing, features, odds["activity"])
        differ = [head for head in _HEADS if head in sets[0].differ]
        right = np.stack([hits(rows, said, head) for head in differ]).mean(0)
        return Scores(right, hits(rows, said, "activity"), nothing, features, odds["activity"])

    def frechet(self, features: Float64) -> float | None:
        return self._judge.distance(features)


class ClipJudge:
    """source: a folder or a hub id of a CLIP model with its processor."""

    def __init__(self, source: str) -> None:
        from transformers import CLIPModel, CLIPProcessor

        self.name = f"CLIP ({Path(source).name})"
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model: Any = CLIPModel.from_pretrained(source).eval().to(self._device)
        self._processor: Any = CLIPProcessor.from_pretrained(source)

    @torch.inference_mode()
    def run(self, sets: Sequence[PromptSet], images: Sequence[Images]) -> Scores:
        right, agreement, features = [], [], []
        for one, pictures in zip(sets, images, strict=True):
            given = self._processor(
                text=list(one.prompts), images=[Image.fromarray(p) for p in pictures], return_tensors="pt",
                padding=True, truncation=True,
            ).to(self._device)  # fmt: skip
            found = self._model(**given)
            seen = torch.nn.functional.normalize(found.image_embeds.float(), dim=-1)
            read = torch.nn.functional.normalize(found.text_embeds.float(), dim=-1)
            cosine = (seen @ read.T).cpu().double().numpy()
            agreement += list(cosine.diagonal())
            for own, best in enumerate(cosine.argmax(1)):
                said, meant = one.shows[int(best)], one.shows[own]
                right.append(np.mean([said.get(name) == meant.get(name) for name in one.differ]))
            features.append(seen.cpu().double().numpy())
        m = len(right)
        return Scores(
            np.array(right, float), np.full(m, np.nan), np.array(agreement), np.concatenate(features), np.ones((m, 1))
        )

    def frechet(self, features: Float64) -> float | None:
        return None


def summary(
    judge: Judge, sets: Sequence[PromptSet], scores: Scores, server: Scores, images: Sequence[Images],
    base: Sequence[Images], seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Means with 95 % intervals over resampled sets, as [value, low, high]: of attributes; of the worst candidate's
    (the place in the set that fares worst); of the distance of features to the server's picture of the same prompt (1:
    as far as the server's pictures of two candidates are apart); of PSNR to it. And what has no interval."""
    n, count = len(sets[0].prompts), len(sets)

    def by_set(values: Float64) -> Float64:
        return values.reshape(count, n)

    def both(statistic: Callable[[Float64], float], values: Float64) -> list[float]:
        rng = np.random.default_rng(seed)
        drawn = [statistic(values[rng.integers(count, size=count)]) for _ in range(DRAWS)]
        return [round(float(v), 4) for v in (statistic(values), *np.quantile(drawn, (0.025, 0.975)))]

    places = _places(sets)
    own = server.features.reshape(count, n, -1)
    apart = np.linalg.norm(own[:, 1:] - own[:, :-1], axis=-1).mean()
    distance = np.linalg.norm(scores.features - server.features, axis=-1) / max(float(apart), 1e-12)
    psnr = np.array([_psnr(a, b) for x, y in zip(images, base, strict=True) for a, b in zip(x, y, strict=True)])
    odds = np.clip(scores.odds, 1e-12, 1)
    divergence = (odds * (np.log(odds) - np.log(odds.mean(0)))).sum(-1).mean()
    result: dict[str, Any] = {
        "pictures": count * n,
        "attributes": both(np.mean, by_set(scores.right)),
        "worst": both(lambda v: min(float(v[places == p].mean()) for p in set(places.ravel())), by_set(scores.right)),
        "distance": both(np.mean, by_set(distance)),
        "psnr_db": both(np.median, by_set(psnr)),
    }
    if not np.isnan(scores.subject).all():
        result["subject"] = both(np.mean, by_set(scores.subject))
        result["class_score"] = round(float(np.exp(divergence)), 3)
    if not np.isnan(scores.agreement).all():
        result["clip_score"] = both(np.mean, by_set(scores.agreement))
    if (frechet := judge.frechet(scores.features)) is not None:
        result["frechet"] = round(frechet, 3)
    return result


def _places(sets: Sequence[PromptSet]) -> NDArray[np.int64]:
    """[sets, n]: the number of each candidate's combination of the attributes that differ."""
    known: dict[tuple[str, ...], int] = {}
    rows = [[known.setdefault(tuple(str(r.get(d)) for d in s.differ), len(known)) for r in s.shows] for s in sets]
    return np.array(rows)


def _psnr(a: Images, b: Images) -> float:
    mse = float(((a.astype(np.float64) - b) ** 2).mean())
    return float(min(10 * np.log10(255.0**2 / max(mse, 1e-9)), 99.0))


def fidelity(images: Sequence[Images], reference: Path | None, weights: Path | None) -> dict[str, float]:
    """Inception Score, and FID to the folder of pictures `reference`, by torch-fidelity. weights: its Inception weights
    in a local file; by default it downloads them. InputError without the package."""
    try:
        from torch_fidelity import calculate_metrics
    except ImportError as error:
        raise InputError("FID and IS need torch-fidelity: pip install 'obclip[eval]'") from error
    with tempfile.TemporaryDirectory() as folder:
        for i, picture in enumerate(p for some in images for p in some):
            Image.fromarray(picture).save(Path(folder) / f"{i:06}.png")
        found = calculate_metrics(
            input1=folder, input2=None if reference is None else str(reference), isc=True, fid=reference is not None,
            cuda=torch.cuda.is_available(), verbose=False, cache=False,
            isc_splits=min(10, sum(len(some) for some in images)),
            **({} if weights is None else {"feature_extractor_weights_path": str(weights)}),
        )  # fmt: skip
    names = {"inception_score_mean": "is", "frechet_inception_distance": "fid"}
    return {short: round(float(found[name]), 4) for name, short in names.items() if name in found}
