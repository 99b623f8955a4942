"""Pipeline parts under the argument and output order that their ONNX graphs have (optimum's, for each family)."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection


class Text(torch.nn.Module):
    """input_ids int64 [B, tokens] -> last_hidden_state, pooler_output, and each layer's hidden state if asked for."""

    def __init__(self, model: CLIPTextModel, hidden_states: bool) -> None:
        super().__init__()
        self.model, self.hidden_states = model, hidden_states

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = self.model(input_ids=input_ids, output_hidden_states=self.hidden_states, return_dict=True)
        return (out.last_hidden_state, out.pooler_output, *(out.hidden_states or ()))


class TextWithProjection(torch.nn.Module):
    """The same for SDXL's second encoder, whose pooled output is projected and comes first: text_embeds [B, P]."""

    def __init__(self, model: CLIPTextModelWithProjection, hidden_states: bool) -> None:
        super().__init__()
        self.model, self.hidden_states = model, hidden_states

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = self.model(input_ids=input_ids, output_hidden_states=self.hidden_states, return_dict=True)
        return (out.text_embeds, out.last_hidden_state, *(out.hidden_states or ()))


class Unet(torch.nn.Module):
    """SDXL's added conditions (text_embeds [B, P], time_ids [B, 6]) and LCM's guidance embedding are inputs."""

    def __init__(self, model: UNet2DConditionModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_embeds: torch.Tensor | None = None,
        time_ids: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
    ) -> torch.Tensor:
        added = {"text_embeds": text_embeds, "time_ids": time_ids} if text_embeds is not None else None
        out: torch.Tensor = self.model(
            sample,
            timestep,
            encoder_hidden_states,
            timestep_cond=timestep_cond,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return out


class Decoder(torch.nn.Module):
    """latent_sample [B, C, h, w], divided by the bundle's latent_scale -> sample [B, 3, H, W] in -1..1.

    factor: what `model` wants its input multiplied by, where it was made for latents of another scale.
    """

    def __init__(self, model: AutoencoderKL | AutoencoderTiny, factor: float = 1.0) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
        scaled = latent_sample if self.factor == 1.0 else latent_sample * self.factor
        out: torch.Tensor = self.model.decode(scaled, return_dict=False)[0]
        return out


class Encoder(torch.nn.Module):
    """Latents for AutoencoderTiny; mean and log variance for AutoencoderKL."""

    def __init__(self, model: AutoencoderKL | AutoencoderTiny) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        encoded = self.model.encode(sample, return_dict=False)[0]
        out: torch.Tensor = encoded if isinstance(self.model, AutoencoderTiny) else encoded.parameters
        return out
