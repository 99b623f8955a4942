"""Loading a pair's large model from a diffusers folder or the hub."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from obclip.cloud.attention import project_text
from obclip.cloud.hub import fetch_pipeline, fetch_unet
from obclip.cloud.text import Conditioning, Encoder, TextEncoders, load_tokenizer
from obclip.cloud.unet import LayeredUNet
from obclip.core.errors import InputError, ModelMissingError, RunError
from obclip.core.pairs import ModelRef, Pair, resolve_source
from obclip.core.schedule_config import ScheduleConfig
from obclip.core.weights import DIFFUSERS, TRANSFORMERS, Weights, digest_files, weight_files, weights_in

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TEXTS: dict[str, Any] = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
_PARTS = ("text_encoder", "tokenizer", "scheduler")


@dataclass(frozen=True)
class CloudModel:
    """Everything the engine needs. digest: SHA-256 over the weight files that text encoders and UNet come from."""

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
    ModelMissingError if there is no such model here, or not all of it; InputError for a model family or dtype that
    cannot be served; RunError if the device has no memory for it.
    """
    try:
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise InputError(f"device is {device!r}; choose cpu, cuda or cuda:N") from error
    if where.type not in ("cpu", "cuda"):
        raise InputError(f"device is {device!r}; choose cpu, cuda or cuda:N")
    if where.type == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but this PyTorch sees no CUDA GPU; use --device cpu")
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device is {device!r}; this machine has {torch.cuda.device_count()} CUDA GPU(s), from cuda:0")
    name = dtype or ("float16" if where.type == "cuda" else "float32")
    if name not in _DTYPES:
        raise InputError(f"dtype is {name!r}; choose one of {', '.join(_DTYPES)}")
    if where.type == "cpu" and name == "float16":
        raise InputError("float16 is slow and inexact on a CPU; use --dtype float32 or bfloat16")
    folder = source or _pipeline_folder(pair.cloud)
    apart = None if source else pair.cloud.unet
    for part in _PARTS if apart else ("unet", *_PARTS):
        if not (folder / part).is_dir():
            raise ModelMissingError(f"{folder} is no diffusers folder: it has no {part}/")
    texts = [folder / part for part in _TEXTS if (folder / part).is_dir()]
    unet_folder = _unet_folder(apart) if apart else folder / "unet"
    found = {text: weights_in(text, TRANSFORMERS) for text in texts} | {unet_folder: weights_in(unet_folder, DIFFUSERS)}
    files = [file for part, weights in found.items() for file in weight_files(part, weights)]
    with ThreadPoolExecutor(1) as beside:  # reads what is loaded: gigabytes at a few hundred MB/s
        digest = beside.submit(digest_files, files)
        try:
            unet = _load(UNet2DConditionModel, unet_folder, found, _DTYPES[name])
            text = _text_of(folder, [_load(_TEXTS[part.name], part, found, _DTYPES[name]) for part in texts])
        except Exception as error:  # of safetensors and tokenizers as well, whose own share no other base
            raise ModelMissingError(
                f"the model at {folder} cannot be loaded ({error}); if it is damaged, download it again"
            ) from error
    _check_shape(pair, unet, len(text.encoders))
    try:
        for encoder in text.encoders:
            encoder.model.to(where).eval()
        unet.to(where, memory_format=torch.channels_last).eval()
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"{where} has no memory left for the model; free some of it, or choose another --device"
        ) from error
    return CloudModel(
        text=text,
        layered=LayeredUNet(unet),
        schedule_config=ScheduleConfig.of_model(folder),
        digest=digest.result(),
        device=where,
        dtype=_DTYPES[name],
    )


def _load(kind: Any, folder: Path, found: dict[Path, Weights], dtype: torch.dtype) -> Any:
    """ValueError where weights are missing: from_pretrained makes random ones of these."""
    word = "torch_dtype" if kind is UNet2DConditionModel else "dtype"  # diffusers' and transformers'
    model, told = kind.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, variant=found[folder].variant, output_loading_info=True,
        **{word: dtype},
    )  # fmt: skip
    if missing := sorted(told["missing_keys"]):
        raise ValueError(f"{folder} lacks {len(missing)} weights, {missing[0]} among them")
    return model


def _text_of(folder: Path, models: list[Any]) -> TextEncoders:
    tokenizers = [load_tokenizer(folder / name) for name in ("tokenizer", "tokenizer_2")[: len(models)]]
    encoders = tuple(Encoder(*both) for both in zip(tokenizers, models, strict=True))
    if len(encoders) == 1:
        return TextEncoders(encoders)
    index = json.loads((folder / "model_index.json").read_text(encoding="utf8"))
    return TextEncoders(encoders, zero_empty=bool(index.get("force_zeros_for_empty_prompt", True)))


def _pipeline_folder(ref: ModelRef) -> Path:
    found = resolve_source(ref, "cloud")
    return found if isinstance(found, Path) else fetch_pipeline(found, ref.revision, unet=ref.unet is None)


def _unet_folder(source: str) -> Path:
    """A UNet kept apart from its pipeline, as latent consistency models are: its own folder, or in `unet/`."""
    folder = Path(source) if Path(source).is_dir() else fetch_unet(source)
    return folder / "unet" if (folder / "unet").is_dir() else folder


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
