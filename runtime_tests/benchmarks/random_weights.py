"""A cloud model of full size with random weights: for time and memory, where weights are not at hand."""

from __future__ import annotations

from importlib import resources
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from obclip.cloud.model import CloudModel
from obclip.cloud.text import Encoder, TextEncoders
from obclip.cloud.unet import LayeredUNet
from obclip.core.schedule_config import ScheduleConfig

from .architectures import TOKENS

_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def random_cloud_model(unet_config: dict[str, Any], dtype: str, device: str | None = None) -> CloudModel:
    """The UNet of `unet_config`; text encoders of the right widths but two layers, with the embedded pair's words."""
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    kind = getattr(torch, dtype)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)  # so that float32 weights of full size never exist beside
    try:
        with where:
            unet = UNet2DConditionModel(**unet_config).eval().requires_grad_(False)
            encoders = _encoders(unet.config.addition_embed_type == "text_time", unet.config.cross_attention_dim)
    finally:
        torch.set_default_dtype(before)
    return CloudModel(
        text=TextEncoders(tuple(encoders), zero_empty=len(encoders) == 2),
        layered=LayeredUNet(unet.to(memory_format=torch.channels_last)),
        schedule_config=ScheduleConfig.from_dict(_SCHEDULE),
        digest="0" * 64,
        device=where,
        dtype=kind,
    )


def _encoders(two: bool, width: int) -> list[Encoder]:
    folder = resources.files("obclip.cloud") / "pairs" / "emoji" / "tokenizer"
    made = []
    for kind, size in [(CLIPTextModel, 768), (CLIPTextModelWithProjection, 1280)] if two else [(CLIPTextModel, width)]:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), model_max_length=TOKENS)
        config = CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=size, intermediate_size=size, num_hidden_layers=2,
            num_attention_heads=size // 64, max_position_embeddings=TOKENS, projection_dim=size,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        made.append(Encoder(tokenizer, kind(config).eval()))
    return made
