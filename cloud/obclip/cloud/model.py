"""Loading a pair's large model from a diffusers folder or the hub."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from obclip.core.errors import InputError, ModelMissingError
from obclip.core.files import sha256_file
from obclip.core.pairs import Pair, resolve_source
from obclip.core.schedule_config import ScheduleConfig

_PATTERNS = ["model_index.json", "scheduler/*", "tokenizer/*", "text_encoder/*", "unet/*"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class CloudModel:
    """Everything the engine needs. digest: SHA-256 over the weight files of text encoder and UNet."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    schedule_config: ScheduleConfig
    digest: str
    device: torch.device
    dtype: torch.dtype

    @property
    def max_tokens(self) -> int:
        return int(self.tokenizer.model_max_length)

    def tokenise(self, prompts: list[str]) -> torch.Tensor:
        """int64 [N, max_tokens], padded. InputError for a prompt that does not fit; nothing is cut off unsaid."""
        lengths = [len(ids) for ids in self.tokenizer(prompts, truncation=False).input_ids]
        if max(lengths) > self.max_tokens:
            raise InputError(
                f"a prompt takes {max(lengths)} tokens; the text encoder takes {self.max_tokens}: shorten it"
            )
        batch = self.tokenizer(prompts, padding="max_length", max_length=self.max_tokens, return_tensors="pt")
        return batch.input_ids

    @torch.inference_mode()
    def encode(self, prompts: list[str]) -> torch.Tensor:
        """The text encoder's last hidden states, [N, max_tokens, width], in the model's dtype."""
        return self.text_encoder(self.tokenise(prompts).to(self.device)).last_hidden_state


def load_model(
    pair: Pair, device: str | None = None, dtype: str | None = None, source: Path | None = None
) -> CloudModel:
    """Load the cloud side of `pair`, or the diffusers folder `source` in its place.

    device: "cuda" or "cpu", by default CUDA where there is one; dtype: by default float16 on CUDA, float32 on a CPU.
    ModelMissingError if there is no such model here; InputError for a model family or dtype that cannot be served.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if where.type == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but this PyTorch sees no CUDA GPU; use --device cpu")
    name = dtype or ("float16" if where.type == "cuda" else "float32")
    if name not in _DTYPES:
        raise InputError(f"dtype is {name!r}; choose one of {', '.join(_DTYPES)}")
    if where.type == "cpu" and name == "float16":
        raise InputError("float16 is slow and inexact on a CPU; use --dtype float32 or bfloat16")
    folder = source or _folder(pair)
    for part in ("unet", "text_encoder", "tokenizer", "scheduler"):
        if not (folder / part).is_dir():
            raise ModelMissingError(f"{folder} is no diffusers folder: it has no {part}/")
    if (folder / "text_encoder_2").is_dir():
        raise InputError(f"{folder} is a Stable Diffusion XL model, which this version does not serve yet")
    load: dict[str, Any] = {"torch_dtype": _DTYPES[name], "local_files_only": True}
    try:
        unet = UNet2DConditionModel.from_pretrained(folder / "unet", **load)
        text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", **load)
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    except (OSError, ValueError, KeyError) as error:
        raise ModelMissingError(f"the model at {folder} cannot be loaded: {error}") from error
    _check_shape(pair, unet)
    return CloudModel(
        tokenizer=tokenizer,
        text_encoder=text_encoder.to(where).eval(),
        unet=unet.to(where, memory_format=torch.channels_last).eval(),
        schedule_config=ScheduleConfig.from_file(folder / "scheduler" / "scheduler_config.json"),
        digest=_weights_digest(folder),
        device=where,
        dtype=_DTYPES[name],
    )


def _folder(pair: Pair) -> Path:
    found = resolve_source(pair.cloud, "cloud")
    if isinstance(found, Path):
        return found
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(found, revision=pair.cloud.revision, allow_patterns=_PATTERNS))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise ModelMissingError(
            f"{found} is neither a folder nor to be had from the hub ({type(error).__name__}); download it where "
            "there is a network, then pass its folder with --model"
        ) from error


def _check_shape(pair: Pair, unet: UNet2DConditionModel) -> None:
    if unet.config.in_channels != pair.latent_channels:
        raise InputError(
            f"the UNet takes {unet.config.in_channels} latent channels; the pair {pair.name} has {pair.latent_channels}"
        )


def _weights_digest(folder: Path) -> str:
    files = sorted(p for part in ("text_encoder", "unet") for p in (folder / part).glob("*.safetensors"))
    if not files:
        raise ModelMissingError(f"{folder} has no .safetensors weights; convert the model first")
    return hashlib.sha256("".join(sha256_file(p) for p in files).encode()).hexdigest()
