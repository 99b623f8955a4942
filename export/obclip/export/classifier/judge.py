"""Using the trained classifier: labels, calibrated probabilities, and a Fréchet distance in its feature space."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from obclip.core.errors import InputError, ModelMissingError
from obclip.export.classifier.net import Net

HEADS = ("gender", "skin", "age", "activity", "style")
SIDE_PX = 64
WEIGHTS, CARD = "classifier.safetensors", "classifier.json"


@dataclass(frozen=True)
class Classifier:
    """labels: head -> its labels, in the order of its outputs. card: how it was trained and how good it is."""

    net: Net
    labels: dict[str, list[str]]
    temperature: dict[str, float]
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    card: dict[str, Any]

    @torch.inference_mode()
    def run(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
        """Features float64 [M, F] and probabilities by head float64 [M, labels] of uint8 [M, 64, 64, 3] RGB."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (SIDE_PX, SIDE_PX, 3):
            raise InputError(
                f"images are {images.dtype} {list(images.shape)}; wanted uint8 [M, {SIDE_PX}, {SIDE_PX}, 3]"
            )
        features, logits = [], {name: [] for name in self.labels}  # type: ignore[var-annotated]
        for part in np.array_split(images, -(-len(images) // 128)):
            f, out = self.net(to_unit(torch.from_numpy(part)))
            features.append(f)
            for name, values in out.items():
                logits[name].append(values / self.temperature[name])
        odds = {name: torch.cat(v).double().softmax(-1).numpy() for name, v in logits.items()}
        return torch.cat(features).double().numpy(), odds

    def classify(self, images: NDArray[np.uint8]) -> dict[str, list[str]]:
        """The likeliest label of each head for each image."""
        _, odds = self.run(images)
        return {name: [self.labels[name][i] for i in p.argmax(-1)] for name, p in odds.items()}

    def distance(self, features: NDArray[np.float64]) -> float:
        """Fréchet distance between `features` [M, F] and those of the training drawings. Biased up for small M."""
        return frechet_distance(features.mean(0), np.cov(features, rowvar=False), self.mean, self.covariance)


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 [M, H, W, 3] to float32 [M, 3, H, W] in -1..1."""
    return images.permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1


def frechet_distance(
    mean: NDArray[np.float64], cov: NDArray[np.float64], other_mean: NDArray[np.float64], other_cov: NDArray[np.float64]
) -> float:
    """|m - m'|² + tr(C + C' - 2 (C C')^½), squared 2-Wasserstein between Gaussians (Heusel et al. 2017, eq. 6).

    tr (C C')^½ is the sum of the roots of the eigenvalues of C^½ C' C^½, which is symmetric.
    """
    values, vectors = np.linalg.eigh(cov)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    product = np.linalg.eigvalsh(root @ other_cov @ root)
    cross = np.sqrt(np.clip(product, 0, None)).sum()
    return float(((mean - other_mean) ** 2).sum() + np.trace(cov) + np.trace(other_cov) - 2 * cross)


def load_classifier(folder: Path | None = None) -> Classifier:
    """The shipped classifier, or the one that training wrote into `folder`. ModelMissingError if there is none."""
    where = folder or Path(str(resources.files("obclip.export.classifier")))
    if not (where / WEIGHTS).is_file() or not (where / CARD).is_file():
        raise ModelMissingError(f"no classifier at {where}; `python -m obclip.export.classifier` trains one")
    card = json.loads((where / CARD).read_text(encoding="utf8"))
    tensors = load_file(where / WEIGHTS)
    mean, covariance = (tensors.pop(name).double().numpy() for name in ("feature_mean", "feature_covariance"))
    net = Net({name: len(labels) for name, labels in card["labels"].items()})
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
    return Classifier(net.eval(), card["labels"], card["temperature"], mean, covariance, card)
