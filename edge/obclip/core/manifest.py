"""`obclip.json`: what a device bundle is, and proof that its files are the ones that were verified."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from obclip.core.errors import BundleError
from obclip.core.files import atomic_write_bytes, sha256_file

NAME = "obclip.json"
SCHEMA = 2
READABLE = (1, SCHEMA)  # 1 had no variants


@dataclass(frozen=True)
class FileEntry:
    """path: relative to the bundle, with forward slashes."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Component:
    """One ONNX model. inputs, outputs: name -> shape with symbolic names for free axes. verification: vs PyTorch."""

    name: str
    file: str
    precision: str
    opset: int
    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    verification: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """Another graph of a component, beside its `model.onnx` and on the same external data.

    role: "whole" has the component's own interface; of the UNet there are also "time" and "text", which compute once
    what does not change from step to step or with the latents, and the passes that take it: "full" (returns the
    features that a cached step wants, too) and "shallow" (takes them). "tiny" is a cheaper decoder.
    precision: fp32, fp16, int8, w8 or w8a16. target: the kind of provider it is made for, "any" for all.
    """

    component: str
    role: str
    precision: str
    target: str
    file: str
    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    verification: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """source: hub id or folder name the bundle was made from; model_digest: of the source's weights.

    latent_scale: the VAE's scaling_factor (latents are divided by it before decoding). conditioning: the UNet's
    response to the prompt relative to PyTorch's, 1.0 when nothing was lost, None where it was not compared.
    family: "sd" (Stable Diffusion 1.x), "lcm" (its latent consistency models) or "sdxl" (two text encoders, added
    conditions). Of SDXL: pad_token_id_2 is the second tokenizer's, zero_empty_prompt says that an empty negative prompt
    is zeros rather than encoded. preview: `map`, [3][latent_channels + 1], from clean latents and 1 to red, green and
    blue in -1..1; `explains`, the share of the decoder's pictures' variance that it gets right. completion: of the
    whole from a middle step to the picture, in the bundle's base precision, against PyTorch (obclip.export.completion).
    """

    source: str
    revision: str | None
    family: str
    model_digest: str
    height: int
    width: int
    latent_channels: int
    latent_downscale: int
    latent_scale: float
    max_tokens: int
    pad_token_id: int
    prediction_type: str
    schedule_config: dict[str, Any]
    conditioning: float | None
    components: tuple[Component, ...]
    files: tuple[FileEntry, ...]
    tool_versions: dict[str, str] = field(default_factory=dict)
    variants: tuple[Variant, ...] = ()
    pad_token_id_2: int | None = None
    zero_empty_prompt: bool = False
    preview: dict[str, Any] | None = None
    completion: dict[str, Any] | None = None
    schema: int = SCHEMA

    def component(self, name: str) -> Component:
        for component in self.components:
            if component.name == name:
                return component
        raise BundleError(f"the bundle has no {name}; it has {', '.join(c.name for c in self.components)}")

    def write(self, folder: Path) -> None:
        atomic_write_bytes(folder / NAME, (json.dumps(asdict(self), indent=2, sort_keys=True) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """BundleError if the manifest is absent, unreadable, of another schema or incomplete."""
        path = folder / NAME
        try:
            values = json.loads(path.read_text(encoding="utf8"))
        except FileNotFoundError as error:
            raise BundleError(f"{folder} has no {NAME}: it is no whole bundle; export it again") from error
        except (OSError, ValueError) as error:
            raise BundleError(f"{path} cannot be read ({error}); export the bundle again") from error
        schema = values.get("schema") if isinstance(values, dict) else None
        if schema not in READABLE:
            raise BundleError(f"{path}: schema is {schema!r}, wanted {SCHEMA}; export the bundle with this version")
        try:
            components = tuple(Component(**c) for c in values.pop("components"))
            files = tuple(FileEntry(**f) for f in values.pop("files"))
            variants = tuple(Variant(**v) for v in values.pop("variants", ()))
            return cls(components=components, files=files, variants=variants, **values)
        except (KeyError, TypeError) as error:
            raise BundleError(f"{path} is incomplete ({error}); export the bundle again") from error

    def verify_files(self, folder: Path, sizes_only: bool = False, unread: Collection[str] = ()) -> None:
        """BundleError naming the first file that is missing, of another size, or of another digest.

        unread: paths of files whose digest is known to be right.
        """
        for entry in self.files:
            path = folder / entry.path
            if not path.is_file():
                raise BundleError(f"{folder}: {entry.path} is missing; export or install the bundle again")
            size = path.stat().st_size
            if size != entry.bytes:
                raise BundleError(f"{path} has {size} bytes, wanted {entry.bytes}: it is truncated or altered")
            read = not sizes_only and entry.path not in unread
            if read and (digest := sha256_file(path)) != entry.sha256:
                raise BundleError(f"{path} has digest {digest[:12]}…, wanted {entry.sha256[:12]}…: it was altered")


def list_files(folder: Path) -> tuple[FileEntry, ...]:
    """Every file below `folder` but the manifest, sorted by path."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != NAME)
    return tuple(FileEntry(p.relative_to(folder).as_posix(), p.stat().st_size, sha256_file(p)) for p in paths)
