"""Loading a pair's large model from a diffusers folder or the hub."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from obclip.cloud.attention import project_text
from obclip.cloud.text import Conditioning, Encoder, TextEncoders
from obclip.cloud.unet import LayeredUNet
from obclip.core.errors import InputError, ModelMissingError
from obclip.core.files import sha256_file
from obclip.core.pairs import ModelRef, Pair, resolve_source
from obclip.core.schedule_config import ScheduleConfig

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PARTS = ("unet", "text_encoder", "tokenizer", "scheduler")


@dataclass(frozen=True)
class CloudModel:
    """Everything the engine needs. digest: SHA-256 over the weight files of text encoders and UNet."""

    text: TextEncoders
    layered: LayeredUNet
    schedule_config: ScheduleConfig
    digest: str
    device: torch.device
    dtype: torch.dtype

    @property
    def unet(self) -> UNet2DConditionModel:
        return self.layered.unet

    @property
    def guidance_distilled(self) -> bool:
        """Whether the UNet takes the guidance scale as an input, so that one branch does (Meng et al. 2023, LCM)."""
        return self.unet.config.time_cond_proj_dim is not None

    @torch.inference_mode()
    def encode(self, prompts: list[str]) -> Conditioning:
        """What the UNet is conditioned on for `prompts`. InputError for one that is too long."""
        return self.text.encode(prompts, self.device)

    @torch.inference_mode()
    def project(self, text: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of `text` [M, tokens, width] for every layer that attends to it, each [M, tokens, inner]."""
        return project_text(self.unet, text)


def load_model(
    pair: Pair, device: str | None = None, dtype: str | None = None, source: Path | None = None
) -> CloudModel:
    """Load the cloud side of `pair`, or the diffusers folder `source` in its place: Stable Diffusion 1.x or XL.

    device: "cuda" or "cpu", by default CUDA where there is one; dtype: by default float16 on CUDA, float32 on a CPU.
    ModelMissingError if there is no such model here; InputError for a model family or dtype that cannot be served.
    """
    try:
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise InputError(f"device is {device!r}; choose cpu, cuda or cuda:N") from error
    if where.type not in ("cpu", "cuda"):
        raise InputError(f"device is {device!r}; choose cpu, cuda or cuda:N")
    if where.type == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but this PyTorch sees no CUDA GPU; use --device cpu")
    name = dtype or ("float16" if where.type == "cuda" else "float32")
    if name not in _DTYPES:
        raise InputError(f"dtype is {name!r}; choose one of {', '.join(_DTYPES)}")
    if where.type == "cpu" and name == "float16":
        raise InputError("float16 is slow and inexact on a CPU; use --dtype float32 or bfloat16")
    folder = source or _folder(pair.cloud)
    for part in _PARTS:
        if not (folder / part).is_dir():
            raise ModelMissingError(f"{folder} is no diffusers folder: it has no {part}/")
    unet_folder = folder / "unet" if source or not pair.cloud.unet else _unet_folder(pair.cloud.unet)
    load: dict[str, Any] = {"torch_dtype": _DTYPES[name], "local_files_only": True}
    with ThreadPoolExecutor(1) as beside:  # reads what is loaded: gigabytes at a few hundred MB/s
        digest = beside.submit(_weights_digest, [*sorted(folder.glob("text_encoder*")), unet_folder])
        try:
            unet = UNet2DConditionModel.from_pretrained(unet_folder, **load)
            text = _load_text(folder, load)
        except (OSError, ValueError, KeyError) as error:
            raise ModelMissingError(f"the model at {folder} cannot be loaded: {error}") from error
    _check_shape(pair, unet, len(text.encoders))
    for encoder in text.encoders:
        encoder.model.to(where).eval()
    return CloudModel(
        text=text,
        layered=LayeredUNet(unet.to(where, memory_format=torch.channels_last).eval()),
        schedule_config=ScheduleConfig.from_file(folder / "scheduler" / "scheduler_config.json"),
        digest=digest.result(),
        device=where,
        dtype=_DTYPES[name],
    )


def _load_text(folder: Path, load: dict[str, Any]) -> TextEncoders:
    first = Encoder(
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        CLIPTextModel.from_pretrained(folder / "text_encoder", **load),
    )
    if not (folder / "text_encoder_2").is_dir():
        return TextEncoders((first,))
    second = Encoder(
        CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2", **load),
    )
    index = json.loads((folder / "model_index.json").read_text(encoding="utf8"))
    return TextEncoders((first, second), zero_empty=bool(index.get("force_zeros_for_empty_prompt", True)))


def _folder(ref: ModelRef) -> Path:
    found = resolve_source(ref, "cloud")
    if isinstance(found, Path):
        return found
    parts = ["scheduler", "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", *([] if ref.unet else ["unet"])]
    return _download(found, ref.revision, ["model_index.json", *(f"{p}/*" for p in parts)])


def _unet_folder(source: str) -> Path:
    """A UNet kept apart from its pipeline, as latent consistency models are: its own folder, or in `unet/`."""
    folder = Path(source) if Path(source).is_dir() else _download(source, None, ["*.json", "*.safetensors", "unet/*"])
    return folder / "unet" if (folder / "unet").is_dir() else folder


def _download(source: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise ModelMissingError(
            f"{source} is neither a folder nor to be had from the hub ({type(error).__name__}); download it where "
            "there is a network, then pass its folder with --model"
        ) from error


def _check_shape(pair: Pair, unet: UNet2DConditionModel, encoders: int) -> None:
    if unet.config.in_channels != pair.latent_channels:
        raise InputError(
            f"the UNet takes {unet.config.in_channels} latent channels; the pair {pair.name} has {pair.latent_channels}"
        )
    kind = unet.config.addition_embed_type
    if kind not in (None, "text_time") or (kind == "text_time") != (encoders == 2):
        raise InputError(
            f"the UNet's added conditions are {kind!r} beside {encoders} text encoder(s); Stable Diffusion 1.x (none) "
            "and XL ('text_time', two encoders) can be served"
        )


def _weights_digest(folders: list[Path]) -> str:
    files = [p for folder in folders for p in sorted(folder.glob("*.safetensors"))]
    if not files:
        raise ModelMissingError(f"{folders[-1]} has no .safetensors weights; convert the model first")
    return hashlib.sha256("".join(sha256_file(p) for p in files).encode()).hexdigest()
