"""The cost of a plan in multiply-accumulates, from a profile of the UNet taken once.

Counted: convolutions, linear layers (module by module), and apart from them the products of attention (queries with
keys, weights with values). Not counted: normalisation, activations, softmax, element-wise arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention

from obclip.cloud.plan import Plan


@dataclass(frozen=True)
class Profile:
    """MACs of one row through the whole UNet; published figures are often `layers` alone."""

    layers: int
    attention: int

    @property
    def total(self) -> int:
        return self.layers + self.attention


def profile_unet(unet: UNet2DConditionModel, latent_shape: tuple[int, int, int], tokens: int) -> Profile:
    """Run one row through `unet`, on whatever device it is (the meta device included), and count."""
    counts = {"layers": 0, "attention": 0}

    def layer(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        per_output = module.weight[0].numel() if isinstance(module, torch.nn.Conv2d) else module.in_features
        counts["layers"] += output.numel() * per_output

    def attention(module: Attention, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        text = kwargs.get("encoder_hidden_states")
        queries = hidden.shape[1]
        keys = queries if text is None else text.shape[1]
        counts["attention"] += 2 * hidden.shape[0] * queries * keys * module.inner_dim

    hooks = []
    for module in unet.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            hooks.append(module.register_forward_hook(layer))
        elif isinstance(module, Attention):
            hooks.append(module.register_forward_hook(attention, with_kwargs=True))
    try:
        with torch.inference_mode():
            parameter = next(unet.parameters())
            x = torch.zeros((1, *latent_shape), device=parameter.device, dtype=parameter.dtype)
            width = unet.config.cross_attention_dim
            text = torch.zeros((1, tokens, width), device=parameter.device, dtype=parameter.dtype)
            added = None
            if unet.config.addition_embed_type == "text_time":
                pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
                added = {"text_embeds": text.new_zeros((1, pooled)), "time_ids": text.new_zeros((1, 6))}
            unet(x, torch.zeros((), device=parameter.device), text, added_cond_kwargs=added)
    finally:
        for hook in hooks:
            hook.remove()
    return Profile(**counts)


def plan_macs(plan: Plan, profile: Profile) -> int:
    """MACs of all of a plan's passes."""
    return sum(profile.total * len(p.rows) for s in plan.steps for p in s.passes)
