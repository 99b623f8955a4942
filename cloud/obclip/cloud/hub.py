"""What a server loads of a pair, from the hub."""

from __future__ import annotations

from pathlib import Path

from obclip.core.hub import fetch
from obclip.core.weights import DIFFUSERS, TRANSFORMERS

_PIPELINE = ["model_index.json", "scheduler/scheduler_config.json"]
_PIPELINE += [f"{part}/{kind}" for part in ("tokenizer", "tokenizer_2") for kind in ("*.json", "*.txt")]


def fetch_pipeline(source: str, revision: str | None, unet: bool) -> Path:
    """The folder of a pipeline's scheduler, tokenizers, text encoders and, if `unet`, UNet. ModelMissingError as in
    obclip.core.hub."""
    parts = dict.fromkeys(("text_encoder", "text_encoder_2"), TRANSFORMERS) | ({"unet": DIFFUSERS} if unet else {})
    return fetch(source, _PIPELINE, parts, revision)


def fetch_unet(source: str) -> Path:
    """The folder of a repository whose UNet, kept apart from its pipeline, is at the top or in `unet`. As above."""
    return fetch(source, [], dict.fromkeys(("", "unet"), DIFFUSERS))
