"""Which files of a diffusers model are loaded: one format, one variant. The others are neither fetched nor hashed.

Cloud and export choose alike, so that a bundle and its server have the same weights: full precision where there is any,
else the variant with the shortest name (fp16, not non_ema). Weights that would have to be unpickled are not taken.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from obclip.core.errors import ModelMissingError
from obclip.core.files import sha256_file

# What the weights of a part are called by whom they are loaded with: UNets and VAEs, text encoders
DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"


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
        return len(one.variant or ""), one.variant or "", one.sharded != (stem == DIFFUSERS)

    return min(found, key=rank, default=None)


def weights_in(folder: Path, stem: str) -> Weights:
    """`choose_weights` of a folder on disk. ModelMissingError if it has none."""
    found = choose_weights((p.name for p in folder.iterdir()) if folder.is_dir() else (), stem)
    if found is None:
        raise ModelMissingError(
            f"{folder} has no .safetensors weights; save the model with diffusers' save_pretrained, which writes them"
        )
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


def digest_files(files: Iterable[Path]) -> str:
    """A model's digest: SHA-256 over those of its weights' files."""
    return hashlib.sha256("".join(sha256_file(p) for p in files).encode()).hexdigest()
