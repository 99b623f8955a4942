"""A diffusers UNet as graphs for devices: what depends on the step alone, on the text alone, and on the latents.

The layers' weights are the model's; the order of calls is ours. `TimeGraph` and `TextGraph` run once a job, so that a
pass (`PassGraph`) takes time projections, keys and values as inputs. A shallow pass runs the outermost up layers alone,
on features that a full one has returned (DeepCache, Ma et al. 2024, arXiv 2312.00858).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.nn import functional as F

from obclip.core.errors import InputError
from obclip.export.graphs.attention import Attend

Tensors = dict[str, torch.Tensor]
_DOWN, _UP = ("DownBlock2D", "CrossAttnDownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
_MID = ("UNetMidBlock2D", "UNetMidBlock2DCrossAttn")


@dataclass(frozen=True)
class Layer:
    """A residual block and the transformer behind it, or a sampler; after: an upsampler behind both."""

    resnet: Any
    transformer: Any = None
    after: Any = None
    sampler: bool = False


class Layers:
    """The UNet as down layers, middle and up layers, each of which takes one skip; names of what passes take.

    merge: in the widest self-attentions keys and values are of every `merge`-th row and column of tokens alone (ToDo,
    Smith et al. 2024, arXiv 2402.13573): at 64 x 64 that of 2 leaves a quarter of the product.
    """

    def __init__(self, unet: UNet2DConditionModel, merge: int = 1) -> None:
        """InputError for blocks, norms or activations that Stable Diffusion's UNets do not have, or a merge below 1."""
        if merge < 1:
            raise InputError(f"merge is {merge}; it must be 1 or more")
        kinds = [*unet.config.down_block_types, *unet.config.up_block_types]
        middle = unet.mid_block
        if middle is not None:
            kinds.append(type(middle).__name__)
        unknown = [kind for kind in kinds if kind not in (*_DOWN, *_UP, *_MID)]
        if unknown:
            raise InputError(f"the UNet has blocks of kind {unknown[0]}; device graphs need Stable Diffusion's")
        if unet.config.resnet_time_scale_shift != "default" or unet.config.act_fn != "silu":
            raise InputError("the UNet's residual blocks scale and shift by time, or are not SiLU's: no device graphs")
        self.unet, self.merge = unet, merge
        self.widest = _widest(unet)
        self.down = [layer for block in unet.down_blocks for layer in _down(block)]
        self.middle = [] if middle is None else _middle(middle)
        self.up = [layer for block in unet.up_blocks for layer in _up(block)]
        order = [*self.down, *self.middle, *self.up]
        self.resnets = [layer.resnet for layer in order if layer.resnet is not None and not layer.sampler]
        self.transformers = [layer.transformer for layer in order if layer.transformer is not None]
        self.time_names = {id(resnet): f"time.{i}" for i, resnet in enumerate(self.resnets)}
        blocks = [block for t in self.transformers for block in t.transformer_blocks]
        self.text_names = {id(block): f"text.{i}" for i, block in enumerate(blocks)}
        self.blocks = blocks

    @property
    def depth(self) -> int:
        return len(self.up)

    def part(self, depth: int | None) -> list[Layer]:
        """The layers that a pass runs: all, or with `depth` the outermost up layers and the down layers they need."""
        if depth is None:
            return [*self.down, *self.middle, *self.up]
        if not 1 <= depth < self.depth:
            raise InputError(f"depth is {depth}; a shallow pass of this UNet runs 1 to {self.depth - 1} up layers")
        return [*self.down[: depth - 1], *self.up[self.depth - depth :]]

    def time_of(self, layers: Sequence[Layer]) -> list[str]:
        return [self.time_names[id(layer.resnet)] for layer in layers if id(layer.resnet) in self.time_names]

    def text_of(self, layers: Sequence[Layer]) -> list[str]:
        found = [
            block for layer in layers if layer.transformer is not None for block in layer.transformer.transformer_blocks
        ]
        return [f"{self.text_names[id(block)]}.{what}" for block in found for what in ("key", "value")]


class TimeGraph(nn.Module):
    """timestep: float32 [S]. For each residual block what it adds at each step: `time.I`, [S, C, 1, 1]."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.unet, self.resnets = layers.unet, layers.resnets
        self.outputs = list(layers.time_names.values())

    def forward(
        self,
        timestep: torch.Tensor,
        text_embeds: torch.Tensor | None = None,
        time_ids: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        unet = self.unet
        emb = unet.time_embedding(unet.time_proj(timestep), timestep_cond)  # (S, E)
        if text_embeds is not None:
            added = {"text_embeds": text_embeds, "time_ids": time_ids}
            emb = emb + unet.get_aug_embed(emb=emb, encoder_hidden_states=None, added_cond_kwargs=added)
        emb = F.silu(emb)
        return tuple(resnet.time_emb_proj(emb)[:, :, None, None] for resnet in self.resnets)


class TextGraph(nn.Module):
    """encoder_hidden_states: [1, tokens, width]. Keys and values of each cross-attention, [1, tokens, C]."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.attentions = [block.attn2 for block in layers.blocks]
        self.linears = nn.ModuleList([Linear(x) for a in self.attentions for x in (a.to_k, a.to_v)])
        self.outputs = [f"{name}.{what}" for name in layers.text_names.values() for what in ("key", "value")]

    def forward(self, encoder_hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(linear(encoder_hidden_states) for linear in self.linears)


class PassGraph(nn.Module):
    """One pass over latents, batch 1. keep: depths whose features it returns. depth: that of a shallow pass, or None.

    forward takes `sample` [1, 4, h, w] and what `inputs` names beside; gives `out_sample` and the kept features.
    """

    def __init__(self, layers: Layers, attend: Attend, depth: int | None, keep: Sequence[int] = ()) -> None:
        super().__init__()
        self.layers, self.depth, self.keep = layers, depth, tuple(keep)
        part = layers.part(depth)
        self.features = [] if depth is None else ["features"]
        self.inputs = [*layers.time_of(part), *layers.text_of(part)]
        self.outputs = ["out_sample", *(["features"] if keep else [])]
        found = [layer.transformer for layer in part if layer.transformer is not None]
        self.transformers = nn.ModuleList([_Transformer(t, layers, attend) for t in found])
        self._by_id = {id(t): mine for t, mine in zip(found, self.transformers, strict=True)}

    def forward(self, sample: torch.Tensor, given: Tensors) -> tuple[torch.Tensor, ...]:
        unet, layers = self.layers.unet, self.layers
        first = 0 if self.depth is None else layers.depth - self.depth
        h = unet.conv_in(sample)
        skips = [h]
        for layer in layers.down[: layers.depth - first - 1]:
            h = layer.resnet(h) if layer.sampler else self._layer(layer, h, given)
            skips.append(h)
        if self.depth is None:
            for layer in layers.middle:
                h = self._layer(layer, h, given)
        else:
            h = given["features"]
        kept = []
        for i in range(first, layers.depth):
            if layers.depth - i in self.keep:
                kept.append(h)
            layer = layers.up[i]
            h = self._layer(layer, torch.cat([h, skips[layers.depth - 1 - i]], 1), given)
            if layer.after is not None:
                h = layer.after.conv(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        if unet.conv_norm_out is not None:
            h = F.silu(unet.conv_norm_out(h))
        return unet.conv_out(h), *kept

    def _layer(self, layer: Layer, h: torch.Tensor, given: Tensors) -> torch.Tensor:
        if layer.resnet is not None:
            h = _residual(layer.resnet, h, given[self.layers.time_names[id(layer.resnet)]])
        if layer.transformer is not None:
            h = self._by_id[id(layer.transformer)](h, given)
        return h


def _residual(resnet: Any, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """x: [1, C, h, w]; time: [1, C2, 1, 1]."""
    h = resnet.conv1(F.silu(resnet.norm1(x))) + time
    h = resnet.conv2(F.silu(resnet.norm2(h)))
    if resnet.conv_shortcut is not None:
        x = resnet.conv_shortcut(x)
    return (x + h) / resnet.output_scale_factor if resnet.output_scale_factor != 1.0 else x + h


class Linear(nn.Module):
    """x W + b with W as it is multiplied, so that the graph holds no transpose and every graph the same bytes.

    rows: those of the layer's outputs that are wanted. A 1 x 1 convolution counts as a linear layer. The weights are
    views of the layer's: they are laid out anew when they are written, one at a time.
    """

    def __init__(self, layer: Any, rows: slice = slice(None)) -> None:
        super().__init__()
        weight = layer.weight.detach().flatten(1)[rows]  # (out, in)
        self.weight = nn.Parameter(weight.t(), requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach()[rows], requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.matmul(x, self.weight)
        return y if self.bias is None else y + self.bias


class _Transformer(nn.Module):
    """diffusers' Transformer2DModel on [1, C, h, w]."""

    def __init__(self, model: Any, layers: Layers, attend: Attend) -> None:
        super().__init__()
        self.norm, self.proj_in, self.proj_out = model.norm, Linear(model.proj_in), Linear(model.proj_out)
        names = [layers.text_names[id(block)] for block in model.transformer_blocks]
        self.blocks = nn.ModuleList(
            [_Block(block, name, attend) for block, name in zip(model.transformer_blocks, names, strict=True)]
        )
        self.merge = layers.merge if id(model) in layers.widest else 1

    def forward(self, x: torch.Tensor, given: Tensors) -> torch.Tensor:
        _, c, height, width = x.shape
        h = self.norm(x).reshape(1, c, height * width).transpose(1, 2)  # (1, pixels, C)
        h = self.proj_in(h)
        for block in self.blocks:
            h = block(h, given, (height, width), self.merge)
        return x + self.proj_out(h).transpose(1, 2).reshape(1, c, height, width)


class _Block(nn.Module):
    """diffusers' BasicTransformerBlock: self-attention, attention to the text, GEGLU feed-forward."""

    def __init__(self, block: Any, name: str, attend: Attend) -> None:
        super().__init__()
        self.name, self.attend = name, attend
        self.norm1, self.norm2, self.norm3 = block.norm1, block.norm2, block.norm3
        own, text = block.attn1, block.attn2
        self.heads, self.scale = own.heads, float(own.scale)
        self.q, self.k, self.v = Linear(own.to_q), Linear(own.to_k), Linear(own.to_v)
        self.out, self.text_q, self.text_out = Linear(own.to_out[0]), Linear(text.to_q), Linear(text.to_out[0])
        gate = block.ff.net[0]
        if type(gate).__name__ != "GEGLU":
            raise InputError(f"a feed-forward is {type(gate).__name__}; device graphs need GEGLU")
        inner = gate.proj.out_features // 2  # diffusers: value first, then gate
        self.value, self.gate = Linear(gate.proj, slice(0, inner)), Linear(gate.proj, slice(inner, None))
        self.ff = Linear(block.ff.net[2])

    def forward(self, x: torch.Tensor, given: Tensors, size: tuple[int, int], merge: int) -> torch.Tensor:
        h = self.norm1(x)
        kept = h if merge == 1 else h.unflatten(1, size)[:, ::merge, ::merge].flatten(1, 2)
        x = x + self.out(self.attend(self.q(h), self.k(kept), self.v(kept), self.heads, self.scale))
        keys, values = given[f"{self.name}.key"], given[f"{self.name}.value"]
        x = x + self.text_out(self.attend(self.text_q(self.norm2(x)), keys, values, self.heads, self.scale))
        h = self.norm3(x)
        return x + self.ff(self.value(h) * F.gelu(self.gate(h)))


def _widest(unet: UNet2DConditionModel) -> set[int]:
    """Ids of the transformers on the largest maps that have any."""
    for down, up in zip(unet.down_blocks, reversed(unet.up_blocks), strict=True):
        found = [t for block in (down, up) for t in getattr(block, "attentions", None) or ()]
        if found:
            return {id(t) for t in found}
    return set()


def _down(block: Any) -> list[Layer]:
    transformers = getattr(block, "attentions", [None] * len(block.resnets))
    layers = [Layer(r, t) for r, t in zip(block.resnets, transformers, strict=True)]
    return [*layers, *(Layer(s, sampler=True) for s in block.downsamplers or [])]


def _middle(block: Any) -> list[Layer]:
    """resnet, then pairs of transformer and resnet: as layers, the first without a transformer before it."""
    layers = [Layer(block.resnets[0])]
    transformers = list(getattr(block, "attentions", None) or [None] * (len(block.resnets) - 1))
    for transformer, resnet in zip(transformers, block.resnets[1:], strict=True):
        layers += [Layer(None, transformer)] if transformer is not None else []
        layers.append(Layer(resnet))
    return layers


def _up(block: Any) -> list[Layer]:
    transformers = list(getattr(block, "attentions", [None] * len(block.resnets)))
    after = [None] * (len(transformers) - 1) + [(block.upsamplers or [None])[0]]
    return [Layer(*parts) for parts in zip(block.resnets, transformers, after, strict=True)]
