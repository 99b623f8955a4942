"""What a UNet computes, as a list of layer shapes: what floors of time, and encrypted versions, are composed from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from torch import nn

from obclip.cloud.cost import run_once

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """kind and shape: conv (in, out, kernel, height, width of the output), linear (rows, in, out), attention (heads,
    queries, keys, width of a head), group_norm (channels, pixels, groups), layer_norm (rows, width), silu (elements),
    geglu (rows, width). count: how often one pass has it."""

    kind: str
    shape: Shape
    count: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one of them: of convolutions, linear layers and attention's two products."""
        s = self.shape
        if self.kind == "conv":
            return s[0] * s[1] * s[2] ** 2 * s[3] * s[4]
        if self.kind == "linear":
            return s[0] * s[1] * s[2]
        return 2 * s[0] * s[1] * s[2] * s[3] if self.kind == "attention" else 0

    @property
    def elements(self) -> int:
        """Of what goes through a function that is not linear: softmax's inputs, a norm's, an activation's."""
        s = self.shape
        by_kind = {"group_norm": s[0] * s[1] if len(s) > 1 else 0, "layer_norm": s[0] * s[-1], "silu": s[0]}
        if self.kind == "attention":
            return s[0] * s[1] * s[2]
        return s[0] * s[1] if self.kind == "geglu" else by_kind.get(self.kind, 0)


def layers_of(unet: UNet2DConditionModel, latent_shape: tuple[int, int, int], tokens: int) -> list[Layer]:
    """One row through the UNet, on whatever device it is (the meta device included)."""
    found: Counter[tuple[str, Shape]] = Counter()

    def note(kind: str, *shape: int) -> None:
        found[kind, tuple(int(s) for s in shape)] += 1

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        x = args[0] if args else kwargs.get("hidden_states")
        if isinstance(module, nn.Conv2d):
            note("conv", module.in_channels, module.out_channels, module.kernel_size[0], *output.shape[-2:])
        elif isinstance(module, nn.Linear):
            note("linear", output.numel() // module.out_features, module.in_features, module.out_features)
        elif isinstance(module, nn.GroupNorm):
            note("group_norm", module.num_channels, x.numel() // module.num_channels, module.num_groups)
        elif isinstance(module, nn.LayerNorm):
            note("layer_norm", x.numel() // x.shape[-1], x.shape[-1])
        elif isinstance(module, nn.SiLU):
            note("silu", x.numel())
        elif isinstance(module, GEGLU):
            note("geglu", output.numel() // output.shape[-1], output.shape[-1])
        elif isinstance(module, Attention):
            text = kwargs.get("encoder_hidden_states")
            keys = x.shape[1] if text is None else text.shape[1]
            note("attention", module.heads, x.shape[1], keys, module.inner_dim // module.heads)

    hooks = [m.register_forward_hook(hook, with_kwargs=True) for m in unet.modules()]
    try:
        run_once(unet, latent_shape, tokens)
    finally:
        for h in hooks:
            h.remove()
    return [Layer(kind, shape, count) for (kind, shape), count in sorted(found.items())]
