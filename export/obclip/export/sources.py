"""Where a model comes from: a diffusers folder or a hub id, its family, its parts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from obclip.core.errors import InputError, ModelMissingError
from obclip.core.hub import fetch
from obclip.core.manifest import NAME as MANIFEST
from obclip.core.weights import DIFFUSERS, TRANSFORMERS, digest_files, weight_files, weights_in

PIPELINES = {
    "StableDiffusionPipeline": "sd",
    "LatentConsistencyModelPipeline": "lcm",
    "StableDiffusionXLPipeline": "sdxl",
}
_TEXT = ("text_encoder",)
_TWO_TEXTS = ("text_encoder", "text_encoder_2")
_IMAGE = ("unet", "vae_decoder", "vae_encoder")
_READ = dict.fromkeys(_TWO_TEXTS, TRANSFORMERS) | dict.fromkeys(("unet", "vae"), DIFFUSERS)  # folders whose weights are
_SMALL_FILES = ["*.json", "*/*.json", "*/*.txt"]


@dataclass(frozen=True)
class Source:
    """A diffusers folder whose family is known. label: what the user named; revision: the hub's commit, if any."""

    folder: Path
    label: str
    revision: str | None
    index: dict[str, Any]
    family: str

    @property
    def parts(self) -> tuple[str, ...]:
        """The components that a bundle of this family has, in the order in which they are exported."""
        return (_TWO_TEXTS if self.family == "sdxl" else _TEXT) + _IMAGE

    @property
    def tokenizers(self) -> tuple[str, ...]:
        return ("tokenizer", "tokenizer_2") if self.family == "sdxl" else ("tokenizer",)


def open_source(source: str | Path) -> Source:
    """InputError: a family that cannot be exported; ModelMissingError: no such model, or an incomplete one."""
    folder, revision = _find_folder(source)
    if (folder / MANIFEST).is_file():
        raise InputError(f"{source} is a bundle already; a bundle is made from a diffusers folder or a hub id")
    index = read_json(folder / "model_index.json")
    kind = str(index.get("_class_name"))
    if kind not in PIPELINES:
        raise InputError(f"the model is a {kind}; of {', '.join(PIPELINES)} a bundle can be made")
    label = Path(source).name if Path(source).is_dir() else str(source)
    found = Source(folder, label, revision, index, PIPELINES[kind])
    for part in (*found.parts[:-2], "vae", *found.tokenizers, "scheduler"):
        if not (folder / part).is_dir():
            raise ModelMissingError(f"{folder} has no {part}/: it is incomplete")
    return found


def _find_folder(source: str | Path) -> tuple[Path, str | None]:
    """A diffusers folder, and the commit where it came from the hub. ModelMissingError if there is none."""
    if Path(source).is_dir():
        folder, revision = Path(source), None
    else:
        folder = fetch(str(source), _SMALL_FILES, _READ)
        revision = folder.name
    if not (folder / "model_index.json").is_file():
        raise ModelMissingError(f"{folder} has no model_index.json: it is no diffusers folder")
    return folder, revision


def model_digest(source: Source) -> str:
    """SHA-256 over the digests of every weight file that an export reads."""
    names = (*source.parts[:-2], "vae")
    found = [(source.folder / name, weights_in(source.folder / name, _READ[name])) for name in names]
    return digest_files(sorted(file for folder, weights in found for file in weight_files(folder, weights)))


def read_json(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
        return values
    except (OSError, ValueError) as error:
        raise ModelMissingError(f"{path} cannot be read: {error}") from error
