"""One forward pass over a diffusers UNet's own layers, of the whole or of a part, with features kept and taken.

The layers are the model's modules, unchanged; only their order of calls is ours. Features are a flat dictionary by
name (`up.3`: what enters up layer 3; `skip.0`; `attention.NAME`), every tensor with one row a latent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from obclip.cloud.attention import AttentionState, install
from obclip.cloud.parts import FULL, NOTHING, Keep, Part
from obclip.core.errors import InputError

Features = dict[str, torch.Tensor]
_DOWN = ("DownBlock2D", "CrossAttnDownBlock2D")
_MID = ("UNetMidBlock2D", "UNetMidBlock2DCrossAttn")
_UP = ("UpBlock2D", "CrossAttnUpBlock2D")


@dataclass(frozen=True)
class Inputs:
    """What a batch of m rows is conditioned on.

    timestep: float32 [m]. text: [m, tokens, width]. pooled, size: XL's added conditions, [m, width2] and [m, 6].
    scale: the embedded guidance scale of a distilled UNet, [m, width3]. projected: text keys and values by layer.
    """

    timestep: torch.Tensor
    text: torch.Tensor
    pooled: torch.Tensor | None = None
    size: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    projected: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Layer:
    """resnet or sampler, then attention if any; after: an upsampler that follows the layer."""

    resnet: nn.Module
    attention: nn.Module | None = None
    after: nn.Module | None = None
    sampler: bool = False


class LayeredUNet:
    """A UNet2DConditionModel of Stable Diffusion 1.x, XL, or one distilled from them, seen layer by layer."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        """Gives the UNet this project's attention processors. InputError for a UNet of other blocks."""
        blocks = [*unet.config.down_block_types, *unet.config.up_block_types]
        unknown = [name for name in blocks if name not in (*_DOWN, *_UP)]
        if unet.mid_block is not None and type(unet.mid_block).__name__ not in _MID:
            unknown.append(type(unet.mid_block).__name__)
        if unknown:
            raise InputError(f"the UNet has blocks of kind {unknown[0]}; known are {', '.join((*_DOWN, *_MID, *_UP))}")
        self.unet = unet
        self.attention_names = install(unet)
        self.down = [layer for block in unet.down_blocks for layer in _down_layers(block)]
        self.up = [layer for block in unet.up_blocks for layer in _up_layers(block)]
        self.levels = unet.num_upsamplers

    @property
    def depth(self) -> int:
        """The number of up layers, and of skips."""
        return len(self.up)

    def check(self, part: Part) -> None:
        """InputError if this UNet has no such part."""
        if part.depth is not None and not 1 <= part.depth <= self.depth:
            raise InputError(f"depth is {part.depth}; this UNet has {self.depth} up layers: choose from 1 to them")

    def names(self, keep: Keep) -> tuple[str, ...]:
        """The features that `keep` stands for."""
        names = [f"up.{self.depth - d}" for d in keep.depths]
        names += [f"skip.{i}" for i in range(self.depth)] if keep.skips else []
        return (*names, *((f"attention.{n}" for n in self.attention_names) if keep.attention else ()))

    def __call__(
        self,
        x: torch.Tensor,
        inputs: Inputs,
        part: Part = FULL,
        kept: Features | None = None,
        keep: Keep = NOTHING,
        pivots: tuple[int, ...] = (),
    ) -> tuple[torch.Tensor, Features]:
        """The model's output [m, 4, h, w] in the UNet's dtype, and the features of `keep` (those that `part` computes).

        x: latents in the UNet's dtype. kept: the features that `part` needs. pivots: for each row the row
        whose attention maps it takes.
        """
        kept = kept or {}
        record: Features | None = {} if keep.attention else None
        state = AttentionState(part.attention, inputs.projected, kept, pivots, record)
        call = {"encoder_hidden_states": inputs.text, "cross_attention_kwargs": {"state": state}}
        first = 0 if part.depth is None else self.depth - part.depth
        wanted = set(self.names(Keep(keep.depths, keep.skips)))
        emb = self._embed(x, inputs)
        skips, h = self._down_path(x, emb, call, part, kept, first)
        found = {f"skip.{i}": skip for i, skip in enumerate(skips) if f"skip.{i}" in wanted}
        h = self._middle(h, emb, call) if part.depth is None else kept[f"up.{first}"]
        odd = any(side % 2**self.levels for side in x.shape[-2:])
        for i in range(first, self.depth):
            if (name := f"up.{i}") in wanted:
                found[name] = h
            layer = self.up[i]
            h = layer.resnet(torch.cat([h, skips[self.depth - 1 - i]], dim=1), emb)
            if layer.attention is not None:
                h = layer.attention(h, **call, return_dict=False)[0]
            if layer.after is not None:
                size = skips[self.depth - 2 - i].shape[2:] if odd else None
                h = layer.after(h, size)
        if self.unet.conv_norm_out is not None:
            h = self.unet.conv_act(self.unet.conv_norm_out(h))
        return self.unet.conv_out(h), found | {f"attention.{name}": value for name, value in (record or {}).items()}

    def _embed(self, x: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        unet = self.unet
        emb = unet.time_embedding(unet.get_time_embed(sample=x, timestep=inputs.timestep), inputs.scale)
        if inputs.pooled is None:
            return emb
        added = {"text_embeds": inputs.pooled, "time_ids": inputs.size}
        return emb + unet.get_aug_embed(emb=emb, encoder_hidden_states=inputs.text, added_cond_kwargs=added)

    def _down_path(
        self, x: torch.Tensor, emb: torch.Tensor, call: dict[str, Any], part: Part, kept: Features, first: int
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The skips that up layers from `first` on take, outermost first, and the innermost features."""
        count = self.depth - first
        if part.kept_skips:
            return [kept[f"skip.{i}"] for i in range(count)], x
        h = self.unet.conv_in(x)
        skips = [h]
        for layer in self.down[: count - 1]:
            h = layer.resnet(h) if layer.sampler else layer.resnet(h, emb)
            if layer.attention is not None:
                h = layer.attention(h, **call, return_dict=False)[0]
            skips.append(h)
        return skips, h

    def _middle(self, h: torch.Tensor, emb: torch.Tensor, call: dict[str, Any]) -> torch.Tensor:
        block = self.unet.mid_block
        if block is None:
            return h
        return block(h, emb, **call) if getattr(block, "has_cross_attention", False) else block(h, emb)


def _down_layers(block: Any) -> list[_Layer]:
    attentions = getattr(block, "attentions", [None] * len(block.resnets))
    layers = [_Layer(r, a) for r, a in zip(block.resnets, attentions, strict=True)]
    return [*layers, *(_Layer(s, sampler=True) for s in block.downsamplers or [])]


def _up_layers(block: Any) -> list[_Layer]:
    attentions = list(getattr(block, "attentions", [None] * len(block.resnets)))
    after = [None] * (len(attentions) - 1) + [(block.upsamplers or [None])[0]]
    return [_Layer(*parts) for parts in zip(block.resnets, attentions, after, strict=True)]
