"""Where a model comes from: a diffusers folder or a hub id, its family, its parts, and its weights' files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from obclip.core.errors import InputError, ModelMissingError
from obclip.core.files import sha256_file

PIPELINES = {
    "StableDiffusionPipeline": "sd",
    "LatentConsistencyModelPipeline": "lcm",
    "StableDiffusionXLPipeline": "sdxl",
}
_TEXT = ("text_encoder",)
_TWO_TEXTS = ("text_encoder", "text_encoder_2")
_IMAGE = ("unet", "vae_decoder", "vae_encoder")
_READ = (*_TWO_TEXTS, "unet", "vae")  # folders whose weights are
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

    def config(self, part: str) -> dict[str, Any]:
        """config.json of a folder of the source ("unet", "vae", ...)."""
        return read_json(self.folder / part / "config.json")


def open_source(source: str | Path) -> Source:
    """InputError: a family that cannot be exported; ModelMissingError: no such model, or an incomplete one."""
    folder, revision = _find_folder(source)
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
        folder = _download(str(source))
        revision = folder.name
    if not (folder / "model_index.json").is_file():
        raise ModelMissingError(f"{folder} has no model_index.json: it is no diffusers folder")
    return folder, revision


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The .safetensors files of one part: full precision where there is any, else a variant such as fp16; all shards.

    ModelMissingError if there are none.
    """
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    if chosen := _choose(names):
        if chosen.endswith(".json"):
            shards = read_json(folder / chosen).get("weight_map", {}).values()
            return tuple(folder / name for name in sorted(set(shards)))
        return (folder / chosen,)
    raise ModelMissingError(
        f"{folder} has no .safetensors weights; save the model with diffusers' save_pretrained, which writes them"
    )


def weight_variant(folder: Path) -> str | None:
    """The variant that `weight_files` took, as from_pretrained names it: None, or such as "fp16"."""
    name = _choose(sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []) or ""
    if name.endswith(".json"):
        return name.removesuffix(".json").rpartition("index")[2].removeprefix(".") or None
    return name.removesuffix(".safetensors").partition(".")[2] or None


def model_digest(source: Source, parts: tuple[str, ...] | None = None) -> str:
    """SHA-256 over the digests of every weight file that an export reads."""
    names = parts or (*source.parts[:-2], "vae")
    files = sorted(file for name in names for file in weight_files(source.folder / name))
    return digest_files(files)


def digest_files(files: list[Path]) -> str:
    for file in files:
        if not file.is_file():
            raise ModelMissingError(f"{file} is missing: the model is incomplete; download it again")
    return hashlib.sha256("".join(sha256_file(p) for p in files).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
        return values
    except (OSError, ValueError) as error:
        raise ModelMissingError(f"{path} cannot be read: {error}") from error


def _choose(names: list[str]) -> str | None:
    """Full precision before a variant, one file before shards; among variants the shortest name (fp16, not non_ema)."""
    whole = [n for n in names if n.endswith(".safetensors") and "-of-" not in n]
    shards = [n for n in names if ".safetensors.index." in n and n.endswith(".json")]

    def rank(name: str) -> tuple[int, bool, int, str]:
        stem = name.removesuffix(".json").replace(".index", "").replace(".safetensors", "")
        return stem.count("."), name.endswith(".json"), len(name), name

    return min((*whole, *shards), key=rank, default=None)


def _download(repository: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    unreachable = (HfHubHTTPError, HFValidationError, OSError, httpx.HTTPError)  # the last of huggingface_hub 1
    patterns = [*_SMALL_FILES, *(f"{folder}/*.safetensors" for folder in _READ)]
    try:
        names = HfApi().list_repo_files(repository)
        patterns = _SMALL_FILES + _weights_of(names)
    except unreachable:
        pass  # no network: what an earlier download left may do
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except (LocalEntryNotFoundError, *unreachable) as error:
        raise ModelMissingError(
            f"{repository} is neither a folder nor to be had from the hub ({type(error).__name__}); "
            "pass a diffusers folder"
        ) from error


def _weights_of(names: list[str]) -> list[str]:
    """Of a repository's files, the weights that `weight_files` would take in each folder that is read; all of a shard's
    siblings."""
    folders: dict[str, list[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        folders.setdefault(folder, []).append(file)
    kept = []
    for folder in _READ:
        if chosen := _choose(folders.get(folder, [])):
            wanted = "*-of-*.safetensors" if chosen.endswith(".json") else chosen
            kept.append(f"{folder}/{wanted}")
    return kept
