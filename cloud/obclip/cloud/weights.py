"""Which files of a diffusers model are loaded: one format, one variant. The others are neither fetched nor hashed.

As obclip.export.sources chooses them, so that a bundle and its server have the same weights: full precision where there
is any, else the variant with the shortest name (fp16, not non_ema).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from obclip.core.errors import ModelMissingError

UNET, TEXT = "diffusion_pytorch_model", "model"  # what diffusers and transformers call the weights of a part


@dataclass(frozen=True)
class Weights:
    """name: of the one file, or of the index of several. variant: from_pretrained's, None for full precision."""

    name: str
    variant: str | None = None

    @property
    def sharded(self) -> bool:
        return self.name.endswith(".json")


def choose_weights(names: Iterable[str], stem: str) -> Weights | None:
    """What from_pretrained is to load of the files of one folder; None if there are no .safetensors weights.

    Of one file and an index of the same variant, diffusers loads what the index names, transformers the one file.
    """
    pattern = re.compile(rf"{stem}(?:\.(\w+))?\.safetensors|{stem}\.safetensors\.index(?:\.(\w+))?\.json")
    found = [Weights(m[0], m[1] or m[2]) for name in names if (m := pattern.fullmatch(name))]

    def rank(one: Weights) -> tuple[int, str, bool]:
        return len(one.variant or ""), one.variant or "", one.sharded != (stem == UNET)

    return min(found, key=rank, default=None)


def weights_in(folder: Path, stem: str) -> Weights:
    """`choose_weights` of a folder on disk. ModelMissingError if it has none."""
    found = choose_weights((p.name for p in folder.iterdir()) if folder.is_dir() else (), stem)
    if found is None:
        raise ModelMissingError(f"{folder} has no .safetensors weights; convert the model first")
    return found


def weight_files(folder: Path, weights: Weights) -> list[Path]:
    """The files that hold `weights`, sorted. ModelMissingError for a shard that is not there."""
    files = [folder / name for name in (shards(folder / weights.name) if weights.sharded else [weights.name])]
    for file in files:
        if not file.is_file():
            raise ModelMissingError(f"{file} is missing: the model is incomplete; download it again")
    return files


def shards(index: Path) -> list[str]:
    """The names of an index's files, sorted. ModelMissingError for an index that cannot be read."""
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelMissingError(f"{index} is no index of weights ({type(error).__name__}); get it again") from error
