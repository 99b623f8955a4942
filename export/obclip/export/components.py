"""The parts of a pipeline as traceable modules, with the tensor names and axes that optimum's runtime expects.

Names follow the diffusers-ONNX layout that optimum and Olive share, so that other applications load a bundle unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextModel

from obclip.core.errors import InputError, ModelMissingError

NAMES = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Part:
    """One model to export. inputs(batch, scale, seed): example inputs, `scale` times the default size."""

    name: str
    module: torch.nn.Module
    config: dict[str, Any]
    inputs: Callable[[int, float, int], Inputs]
    outputs: tuple[str, ...]
    dynamic: dict[str, dict[int, str]]


@dataclass(frozen=True)
class Shapes:
    """Latent channels, default latent height and width, tokens and width of the text encoder, VAE downscaling."""

    channels: int
    height: int
    width: int
    tokens: int
    text_width: int
    downscale: int


class _Text(torch.nn.Module):
    def __init__(self, model: CLIPTextModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.model(input_ids=input_ids, return_dict=True)
        return out.last_hidden_state, out.pooler_output


class _Unet(torch.nn.Module):
    def __init__(self, model: UNet2DConditionModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        return self.model(sample, timestep, encoder_hidden_states, return_dict=False)[0]


class _Decoder(torch.nn.Module):
    def __init__(self, model: AutoencoderKL | AutoencoderTiny) -> None:
        super().__init__()
        self.model = model

    def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
        return self.model.decode(latent_sample, return_dict=False)[0]


class _Encoder(torch.nn.Module):
    """Latents for AutoencoderTiny; mean and log variance for AutoencoderKL."""

    def __init__(self, model: AutoencoderKL | AutoencoderTiny) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        if isinstance(self.model, AutoencoderTiny):
            return self.model.encode(sample, return_dict=False)[0]
        return self.model.encode(sample, return_dict=False)[0].parameters


def load_vae(folder: Path, index: dict[str, Any]) -> AutoencoderKL | AutoencoderTiny:
    kind = (index.get("vae") or [None, "AutoencoderKL"])[1]
    classes = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
    if kind not in classes:
        raise InputError(f"the VAE is a {kind}; {' and '.join(classes)} can be exported")
    return _load(classes[kind], folder / "vae").eval()


def load_part(name: str, folder: Path, index: dict[str, Any], shapes: Shapes) -> Part:
    """Load one part of the diffusers folder, in float32."""
    if name == "text_encoder":
        return _text_part(_load(CLIPTextModel, folder / "text_encoder"), shapes)
    if name == "unet":
        return _unet_part(_load(UNet2DConditionModel, folder / "unet"), shapes)
    vae = load_vae(folder, index)
    return _decoder_part(vae, shapes) if name == "vae_decoder" else _encoder_part(vae, shapes)


def _load(kind: Any, folder: Path) -> Any:
    try:
        return kind.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True).eval()
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ModelMissingError(f"{folder} cannot be loaded as {kind.__name__}: {error}") from error
    except Exception as error:  # safetensors raises a class of its own for a truncated file
        if type(error).__name__ != "SafetensorError":
            raise
        raise ModelMissingError(f"{folder} has damaged weights ({error}); download it again") from error


def _random(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _text_part(model: CLIPTextModel, s: Shapes) -> Part:
    def inputs(batch: int, scale: float, seed: int) -> Inputs:
        g = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, model.config.vocab_size - 2, (batch, s.tokens), generator=g)
        ids[:, s.tokens // 2 :] = (
            model.config.eos_token_id if model.config.eos_token_id != 2 else model.config.vocab_size - 1
        )
        return {"input_ids": ids}

    config = model.config.to_dict()
    return Part(
        "text_encoder",
        _Text(model),
        config,
        inputs,
        ("last_hidden_state", "pooler_output"),
        {"input_ids": {0: "batch_size"}},
    )


def _unet_part(model: UNet2DConditionModel, s: Shapes) -> Part:
    if model.config.addition_embed_type or model.config.time_cond_proj_dim:
        raise InputError("SDXL and LCM UNets cannot be exported yet; Stable Diffusion 1.x-like ones can")

    def inputs(batch: int, scale: float, seed: int) -> Inputs:
        h, w = int(s.height * scale), int(s.width * scale)
        return {
            "sample": _random((batch, s.channels, h, w), seed),
            "timestep": torch.tensor(float((37 + 331 * seed) % 1000)),
            "encoder_hidden_states": _random((batch, s.tokens, s.text_width), seed + 1),
        }

    dynamic = {
        "sample": {0: "batch_size", 2: "height", 3: "width"},
        "timestep": {},
        "encoder_hidden_states": {0: "batch_size"},
    }
    return Part("unet", _Unet(model), dict(model.config), inputs, ("out_sample",), dynamic)


def _decoder_part(model: AutoencoderKL | AutoencoderTiny, s: Shapes) -> Part:
    def inputs(batch: int, scale: float, seed: int) -> Inputs:
        return {"latent_sample": _random((batch, s.channels, int(s.height * scale), int(s.width * scale)), seed)}

    dynamic = {"latent_sample": {0: "batch_size", 2: "latent_height", 3: "latent_width"}}
    return Part("vae_decoder", _Decoder(model), _vae_config(model), inputs, ("sample",), dynamic)


def _encoder_part(model: AutoencoderKL | AutoencoderTiny, s: Shapes) -> Part:
    def inputs(batch: int, scale: float, seed: int) -> Inputs:
        # whole multiples of the VAE's downscaling, as its strided convolutions want
        size = (int(s.height * scale) * s.downscale, int(s.width * scale) * s.downscale)
        return {"sample": _random((batch, 3, *size), seed).clamp(-1, 1)}

    output = "latent_sample" if isinstance(model, AutoencoderTiny) else "latent_parameters"
    dynamic = {"sample": {0: "batch_size", 2: "sample_height", 3: "sample_width"}}
    return Part("vae_encoder", _Encoder(model), _vae_config(model), inputs, (output,), dynamic)


def _vae_config(model: AutoencoderKL | AutoencoderTiny) -> dict[str, Any]:
    config = dict(model.config)
    config.setdefault("block_out_channels", config.get("decoder_block_out_channels"))
    return config
