"""`obclip.json`: what a device bundle is, and proof that its files are the ones that were verified."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, TypedDict

from obclip.core.errors import BundleError, InputError
from obclip.core.files import atomic_write_bytes, sha256_file
from obclip.core.schedule_config import ScheduleConfig
from obclip.core.typed import Least, build

NAME = "obclip.json"
SCHEMA = 2
READABLE = (1, SCHEMA)  # 1 had no variants

Size = Annotated[int, Least(1)]
Id = Annotated[int, Least(0)]
Io = dict[str, list[int | str]]


class Verdict(TypedDict):
    """What is read of a comparison, as the export notes it."""

    psnr_db: float
    conditioning: float
    float_layers: int


class Verification(TypedDict, total=False):
    """What is read of a graph's; there may be more, for people."""

    psnr_db: float
    max_abs: float
    cosine: float
    conditioning: float
    added_bytes: int
    floor_db: float
    seeds: list[int]
    depth: int
    merge: int
    quantised_layers: int
    float_layers: list[str]
    tries: list[Verdict]


class Preview(TypedDict):
    map: list[list[float]]
    explains: float


class Completion(TypedDict):
    psnr_db: float
    floor_db: float
    steps: str
    size: list[int]


@dataclass(frozen=True)
class FileEntry:
    """path: relative to the bundle, with forward slashes."""

    path: str
    bytes: Id
    sha256: str


@dataclass(frozen=True)
class Component:
    """One ONNX model. inputs, outputs: name -> shape with symbolic names for free axes. verification: vs PyTorch."""

    name: str
    file: str
    precision: str
    opset: int
    inputs: Io
    outputs: Io
    verification: Annotated[dict[str, Any], Verification] = field(default_factory=dict)


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
    inputs: Io
    outputs: Io
    verification: Annotated[dict[str, Any], Verification] = field(default_factory=dict)


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
    height: Size
    width: Size
    latent_channels: Size
    latent_downscale: Size
    latent_scale: Annotated[float, Least(1e-9)]
    max_tokens: Size
    pad_token_id: Id
    prediction_type: str
    schedule_config: dict[str, Any]
    conditioning: float | None
    components: tuple[Component, ...]
    files: tuple[FileEntry, ...]
    tool_versions: dict[str, str] = field(default_factory=dict)
    variants: tuple[Variant, ...] = ()
    pad_token_id_2: Id | None = None
    zero_empty_prompt: bool = False
    preview: Annotated[dict[str, Any], Preview] | None = None
    completion: Annotated[dict[str, Any], Completion] | None = None
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
        """BundleError if the manifest is absent, unreadable, of another schema, incomplete, has a value that cannot be,
        or names a file that it does not list, or that lies outside the folder.
        """
        path = folder / NAME
        try:
            values = json.loads(path.read_text(encoding="utf8"))
        except FileNotFoundError as error:
            raise BundleError(f"{folder} has no {NAME}: it is no whole bundle; export it again") from error
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"{path} cannot be read ({error}); export the bundle again") from error
        schema = values.get("schema") if isinstance(values, dict) else None
        if schema not in READABLE:
            raise BundleError(f"{path}: schema is {schema!r}, wanted {SCHEMA}; export the bundle with this version")
        try:
            manifest: Manifest = build(cls, values)
            manifest._check(folder)
        except (ValueError, OSError, InputError) as error:
            raise BundleError(f"{path}: {error}; export the bundle again") from error
        return manifest

    def _check(self, folder: Path) -> None:
        """What the values' types do not say. ValueError, InputError."""
        for name in ("height", "width"):
            if getattr(self, name) % self.latent_downscale:
                raise ValueError(f"{name} is {getattr(self, name)}, no multiple of latent_downscale")
        rows = [self.latent_channels + 1] * 3
        if self.preview is not None and [len(row) for row in self.preview.get("map", ())] != rows:
            raise ValueError("preview.map is not of three colours, each with a weight for every latent channel and 1")
        ScheduleConfig.from_dict(self.schedule_config)
        listed = {f.path for f in self.files}
        for file in listed:
            if PureWindowsPath(file).anchor or ".." in PureWindowsPath(file).parts or not file.isprintable():
                raise ValueError(f"files has {file!r}, which is not inside the bundle")
        for name, wanted in self._read_files(folder):
            if wanted not in listed:
                raise ValueError(f"{name} is {wanted!r}, which is not among the manifest's files")
        for variant in self.variants:
            if variant.role == "full" and any(isinstance(n, str) for shape in variant.inputs.values() for n in shape):
                raise ValueError(f"the inputs of {variant.file} have no fixed shapes")

    def _read_files(self, folder: Path) -> list[tuple[str, str]]:
        """What names them, and the files that a device reads."""
        graphs = [(f"components[{i}].file", c.file) for i, c in enumerate(self.components)]
        graphs += [(f"variants[{i}].file", v.file) for i, v in enumerate(self.variants)]
        data = [(f"the data of {f}", f"{f}_data") for _, f in graphs if (folder / f"{f}_data").exists()]
        texts = [c.name for c in self.components if c.name.startswith("text_encoder")]
        words = [name.replace("text_encoder", "tokenizer") for name in texts]
        return graphs + data + [(f"the {w} of a text encoder", f"{w}/tokenizer.json") for w in words]

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
