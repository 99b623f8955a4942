"""Stage 4: the finished pair as two ordinary diffusers folders, float16, sharing text encoder, VAE and schedule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from .models import build_solver


def save_pair(config: dict[str, Any], out: Path) -> None:
    """Write `out/large` and `out/device`, each loadable by StableDiffusionPipeline.from_pretrained."""
    for folder, unet in (("large", "unet"), ("device", "small_unet")):
        pipeline = StableDiffusionPipeline(
            vae=AutoencoderTiny.from_pretrained(out / "vae"),
            text_encoder=CLIPTextModel.from_pretrained(out / "text_encoder"),
            tokenizer=CLIPTokenizer.from_pretrained(out / "tokenizer", model_max_length=config["text"]["tokens"]),
            unet=UNet2DConditionModel.from_pretrained(out / unet),
            scheduler=build_solver(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.to(dtype=torch.float16).save_pretrained(out / folder)
        for path in (out / folder).glob("*/config.json"):
            values = json.loads(path.read_text())
            values.pop("_name_or_path", None)  # a path of the machine that trained it
            path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
