"""The parts of a pipeline as traceable modules, with the tensor names and axes that optimum's runtime expects.

Names follow the diffusers-ONNX layout that optimum and Olive share, so that other applications load a bundle unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from obclip.core.errors import InputError, ModelMissingError
from obclip.core.weights import TRANSFORMERS, weights_in
from obclip.export.configs import vae_class
from obclip.export.modules import Decoder, Encoder, Text, TextWithProjection, Unet
from obclip.export.shapes import Shapes
from obclip.export.weights import load_model

__all__ = ["Inputs", "Part", "Shapes", "load_part", "load_tiny_decoder", "load_vae"]

Inputs = dict[str, torch.Tensor]
Vae: TypeAlias = AutoencoderKL | AutoencoderTiny


@dataclass(frozen=True)
class Part:
    """One model to export. inputs(batch, scale, seed): example inputs, `scale` times the default size.

    dynamic, free: the axes of inputs and outputs that have a name and no fixed size.
    """

    name: str
    module: torch.nn.Module
    config: dict[str, Any]
    inputs: Callable[[int, float, int], Inputs]
    outputs: tuple[str, ...]
    dynamic: dict[str, dict[int, str]]
    free: dict[str, dict[int, str]] = field(default_factory=dict)


def load_part(name: str, folder: Path, index: dict[str, Any], shapes: Shapes) -> Part:
    """Load one part of the diffusers folder, in float32."""
    if name in ("text_encoder", "text_encoder_2"):
        return _text_part(name, folder / name, (index.get(name) or [None, "CLIPTextModel"])[1], shapes)
    if name == "unet":
        return _unet_part(load_model(UNet2DConditionModel, folder / "unet"), shapes)
    vae = load_vae(folder, index)
    return _decoder_part(vae, shapes) if name == "vae_decoder" else _encoder_part(vae, shapes)


def load_vae(folder: Path, index: dict[str, Any]) -> Vae:
    vae: Vae = load_model(vae_class(index), folder / "vae")
    for moment in ("latents_mean", "shift_factor"):
        if vae.config.get(moment):
            raise InputError(f"the VAE has a {moment}: its latents are not those of Stable Diffusion")
    return vae


def load_tiny_decoder(folder: Path, shapes: Shapes) -> Part:
    """An AutoencoderTiny's decoder that takes what the bundle's own takes: latents divided by `shapes.latent_scale`.

    AutoencoderTiny wants them divided by its own scaling_factor (1 for the published ones), so the graph multiplies by
    the quotient. InputError unless its latents have the same channels and size.
    """
    model: AutoencoderTiny = load_model(AutoencoderTiny, folder)
    downscale = 2 ** (len(model.config.decoder_block_out_channels) - 1)
    if (model.config.latent_channels, downscale) != (shapes.channels, shapes.downscale):
        raise InputError(
            f"the tiny decoder reads {model.config.latent_channels} channels at 1/{downscale} of the size, "
            f"the model's latents are {shapes.channels} at 1/{shapes.downscale}: take one made for this model's latents"
        )
    part = _decoder_part(model, shapes, shapes.latent_scale / float(model.config.scaling_factor))
    return replace(part, name="vae_decoder/tiny")


def _load_text(kind: Any, folder: Path) -> Any:
    try:
        model, told = kind.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            variant=weights_in(folder, TRANSFORMERS).variant,
            output_loading_info=True,
        )
        if missing := sorted(told["missing_keys"]):  # random ones were made of these
            raise ValueError(f"it lacks {len(missing)} weights, {missing[0]} among them")
        return model.eval()
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ModelMissingError(f"{folder} cannot be loaded as {kind.__name__}: {error}") from error
    except Exception as error:  # safetensors raises a class of its own for a truncated file
        if type(error).__name__ != "SafetensorError":
            raise
        raise ModelMissingError(f"{folder} has damaged weights ({error}); download it again") from error


def random_tensor(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _text_part(name: str, folder: Path, kind: str, s: Shapes) -> Part:
    classes: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
        "CLIPTextModel": (CLIPTextModel, Text, ("last_hidden_state", "pooler_output")),
        "CLIPTextModelWithProjection": (
            CLIPTextModelWithProjection,
            TextWithProjection,
            ("text_embeds", "last_hidden_state"),
        ),
    }
    if kind not in classes:
        raise InputError(f"{name} is a {kind}; {' and '.join(classes)} can be exported")
    load, wrap, outputs = classes[kind]
    model = _load_text(load, folder)
    config = model.config

    def inputs(batch: int, scale: float, seed: int) -> Inputs:
        g = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, config.vocab_size - 2, (batch, s.tokens), generator=g)
        # Checkpoints of 2022 say eos 2 and mean the largest id (transformers, CLIPTextTransformer)
        ids[:, s.tokens // 2 :] = config.eos_token_id if config.eos_token_id != 2 else config.vocab_size - 1
        return {"input_ids": ids}

    if s.hidden_states:
        outputs += tuple(f"hidden_states.{i}" for i in range(config.num_hidden_layers + 1))
    values = config.to_dict() | {"output_hidden_states": s.hidden_states}
    dynamic = {"input_ids": {0: "batch_size", 1: "sequence_length"}}
    return Part(name, wrap(model, s.hidden_states), values, inputs, outputs, dynamic)


def _unet_part(model: UNet2DConditionModel, s: Shapes) -> Part:
    kind = model.config.addition_embed_type
    if kind not in (None, "text_time"):
        raise InputError(f"the UNet's added conditions are {kind}; Stable Diffusion's and SDXL's can be exported")

    def inputs(batch: int, scale: float, seed: int) -> Inputs:
        h, w = int(s.height * scale), int(s.width * scale)
        made = {
            "sample": random_tensor((batch, s.channels, h, w), seed),
            "timestep": torch.tensor(float((37 + 331 * seed) % 1000)),
            "encoder_hidden_states": random_tensor((batch, s.tokens, s.text_width), seed + 1),
        }
        if s.pooled:
            size = (float(h * s.downscale), float(w * s.downscale))
            made["text_embeds"] = random_tensor((batch, s.pooled), seed + 2)
            made["time_ids"] = torch.tensor([[*size, 0.0, 0.0, *size]]).repeat(batch, 1)
        if s.guidance:
            made["timestep_cond"] = random_tensor((batch, s.guidance), seed + 3)
        return made

    dynamic = {
        "sample": {0: "batch_size", 2: "height", 3: "width"},
        "timestep": {},
        "encoder_hidden_states": {0: "batch_size", 1: "sequence_length"},
        "text_embeds": {0: "batch_size"},
        "time_ids": {0: "batch_size"},
        "timestep_cond": {0: "batch_size"},
    }
    return Part(
        "unet", Unet(model), dict(model.config), inputs, ("out_sample",), dynamic, {"out_sample": dynamic["sample"]}
    )


def _decoder_part(model: Vae, s: Shapes, factor: float = 1.0) -> Part:
    def inputs(batch: int, scale: float, seed: int) -> Inputs:
        shape = (batch, s.channels, int(s.height * scale), int(s.width * scale))
        return {"latent_sample": random_tensor(shape, seed) / factor}

    dynamic = {"latent_sample": {0: "batch_size", 2: "latent_height", 3: "latent_width"}}
    free = {0: "batch_size", 2: f"latent_height * {s.downscale}", 3: f"latent_width * {s.downscale}"}
    return Part(
        "vae_decoder", Decoder(model, factor), _vae_config(model), inputs, ("sample",), dynamic, {"sample": free}
    )


def _encoder_part(model: Vae, s: Shapes) -> Part:
    def inputs(batch: int, scale: float, seed: int) -> Inputs:
        # whole multiples of the VAE's downscaling, as its strided convolutions want
        size = (int(s.height * scale) * s.downscale, int(s.width * scale) * s.downscale)
        return {"sample": random_tensor((batch, 3, *size), seed).clamp(-1, 1)}

    output = "latent_sample" if isinstance(model, AutoencoderTiny) else "latent_parameters"
    dynamic = {"sample": {0: "batch_size", 2: "sample_height", 3: "sample_width"}}
    free = {0: "batch_size", 2: f"sample_height / {s.downscale}", 3: f"sample_width / {s.downscale}"}
    return Part("vae_encoder", Encoder(model), _vae_config(model), inputs, (output,), dynamic, {output: free})


def _vae_config(model: Vae) -> dict[str, Any]:
    config = dict(model.config)
    config.setdefault("block_out_channels", config.get("decoder_block_out_channels"))
    return config
