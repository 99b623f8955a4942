"""FID and Inception Score by torch-fidelity, with weights from a local file: random ones, of the published shapes.

`make eval` runs these, in an environment of their own: torch-fidelity wants torchvision, which wants its own torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("torch_fidelity", reason="torch-fidelity has an environment of its own: `make eval` runs these")

from torch_fidelity import feature_extractor_inceptionv3 as inception

from runtime_tests.benchmarks.table2.metrics import fidelity


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kept: dict[str, Any] = {}
    torch.manual_seed(0)

    def keep(self: torch.nn.Module, *_: object, **__: object) -> None:
        for module in self.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)  # so that activations neither vanish nor grow
        kept.update(self.state_dict())

    extractor = inception.FeatureExtractorInceptionV3
    with (
        mock.patch.object(extractor, "load_state_dict", keep),
        mock.patch.object(inception, "load_state_dict_from_url", return_value={}),
    ):
        extractor("inception-v3-compat", ["2048", "logits_unbiased"])
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(kept, path)
    return path


def test_the_same_pictures_are_no_distance_apart_and_others_are(weights: Path, tmp_path: Path):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (2, 64, 64, 3)).astype(np.uint8) for _ in range(6)]
    for i, picture in enumerate(p for some in images for p in some):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    same, other = fidelity(images, tmp_path, weights), fidelity([i // 3 for i in images], tmp_path, weights)
    assert abs(same["fid"]) < 1e-2
    assert other["fid"] > 1
    assert same["is"] >= 1
    assert set(fidelity(images, None, weights)) == {"is"}
