"""What a UNet is conditioned on, from a bundle's own text encoders, as calibration needs it."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from obclip.core.errors import InputError, ModelMissingError
from obclip.core.guidance import guidance_embedding
from obclip.export.quantise.graph import Feed, run, session

Encoder = Callable[[str, Sequence[NDArray[np.int64]]], list[Feed]]


def encode(
    bundle: Path, prompts: Sequence[str], size: tuple[int, int], guidance: float, encoder: Encoder | None = None
) -> dict[str, Feed]:
    """prompt -> what the UNet takes beside latents and step. size: height and width of the picture, pixels.

    bundle: a folder with `text_encoder/model.onnx` (SDXL: `text_encoder_2/` too) and tokenizers. encoder(part, ids of
    each prompt): by default the bundle's own graphs. Of SDXL no text is zeros where its pipeline has it so, as on the
    device. ModelMissingError if the bundle is incomplete; prompts that are too long are cut.
    """
    config = _json(bundle / "unet" / "config.json")
    parts = [p for p in ("text_encoder", "text_encoder_2") if (bundle / p / "model.onnx").is_file()]
    if not parts:
        raise ModelMissingError(f"{bundle} has no text_encoder/model.onnx; export it before anything is calibrated")
    read = encoder or partial(_hidden, bundle)
    outputs = [read(part, _token_ids(bundle, part, prompts)) for part in parts]
    found = {}
    for i, prompt in enumerate(prompts):
        one = [output[i] for output in outputs]
        feed: Feed = {"encoder_hidden_states": _text_of(one)}
        if config.get("addition_embed_type") == "text_time":
            keep = np.float32(bool(prompt) or not _zeros_for_empty(bundle))
            feed["encoder_hidden_states"] = feed["encoder_hidden_states"] * keep
            feed["text_embeds"] = one[-1]["text_embeds"] * keep
            feed["time_ids"] = np.array([[*size, 0, 0, *size]], np.float32)
        if width := config.get("time_cond_proj_dim"):
            feed["timestep_cond"] = guidance_embedding(guidance, width)
        found[prompt] = feed
    return found


def _zeros_for_empty(bundle: Path) -> bool:
    """Whether no text is zeros rather than encoded, as SDXL's pipelines have it where nothing is said."""
    return bool(_json(bundle / "model_index.json").get("force_zeros_for_empty_prompt", True))


def _hidden(bundle: Path, part: str, ids: Sequence[NDArray[np.int64]]) -> list[Feed]:
    sess = session(bundle / part / "model.onnx")
    found = [run(sess, {"input_ids": row}) for row in ids]
    del sess
    gc.collect()
    return found


def _token_ids(bundle: Path, part: str, prompts: Sequence[str]) -> list[NDArray[np.int64]]:
    tokenizer, limit, pad = _tokenizer(bundle, part.replace("text_encoder", "tokenizer"))
    found = []
    for prompt in prompts:
        ids = tokenizer.encode(prompt).ids
        if len(ids) > limit:
            ids = [*ids[: limit - 1], ids[-1]]
        found.append(np.array([ids + [pad] * (limit - len(ids))], np.int64))
    return found


def _text_of(outputs: Sequence[Feed]) -> NDArray[np.float32]:
    """[1, tokens, width]; of two encoders the last layers but one, side by side (SDXL)."""
    if len(outputs) == 1 and "hidden_states.0" not in outputs[0]:
        return np.asarray(outputs[0]["last_hidden_state"], np.float32)
    layers = []
    for output in outputs:
        count = sum(name.startswith("hidden_states.") for name in output)
        layers.append(output[f"hidden_states.{count - 2}"])
    return np.concatenate(layers, axis=-1).astype(np.float32)


def _tokenizer(bundle: Path, name: str) -> tuple[Tokenizer, int, int]:
    folder = bundle / name
    config = _json(folder / "tokenizer_config.json")
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises plain Exception
        raise ModelMissingError(f"{folder}/tokenizer.json cannot be read ({error}); export the bundle again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    pad = config.get("pad_token")
    token = pad["content"] if isinstance(pad, dict) else pad
    number = tokenizer.token_to_id(token) if token else None
    if number is None:
        raise InputError(f"{folder}: tokenizer_config.json names no pad token that is in the vocabulary")
    return tokenizer, int(config["model_max_length"]), number


def _json(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise ModelMissingError(f"{path} cannot be read ({error}); export the bundle again") from error
    return values
