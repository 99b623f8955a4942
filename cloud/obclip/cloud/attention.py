"""The attention processor of this project: own, kept or pivot's attention, and text keys and values projected once.

State comes in by call (`cross_attention_kwargs`), so that it belongs to the pass and not to the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention as AttentionLayer
from torch.nn import functional as F

from obclip.cloud.parts import Attention


@dataclass(frozen=True)
class AttentionState:
    """What one pass says to every attention layer.

    projected: layer name to its text keys and values, [m, tokens, inner] each. kept: `attention.NAME` to outputs
    [m, pixels, width]. pivots: for each row the row whose maps it takes. record: where outputs to be kept are written.
    """

    mode: Attention = Attention.OWN
    projected: Mapping[str, tuple[torch.Tensor, torch.Tensor]] | None = None
    kept: Mapping[str, torch.Tensor] | None = None
    pivots: tuple[int, ...] = ()
    record: dict[str, torch.Tensor] | None = None


class Processor:
    """Scaled dot-product attention for one layer of Stable Diffusion's transformer blocks."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(
        self,
        attn: AttentionLayer,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        state: AttentionState | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """hidden_states: [m, pixels, width]; the same out. encoder_hidden_states: [m, tokens, width2] or None."""
        state = state or AttentionState()
        if state.mode is Attention.KEPT:
            assert state.kept is not None
            return state.kept[f"attention.{self.name}"]
        output = self._attend(attn, hidden_states, encoder_hidden_states, state)
        if state.record is not None:
            state.record[self.name] = output
        return output

    def _attend(
        self, attn: AttentionLayer, x: torch.Tensor, text: torch.Tensor | None, state: AttentionState
    ) -> torch.Tensor:
        pivots = sorted(set(state.pivots)) if state.mode is Attention.PIVOT else None
        at_pivots = x if pivots is None else x[pivots]
        if text is not None and state.projected:
            keys, values = state.projected[self.name]
            keys = keys if pivots is None else keys[pivots]
        else:
            source = x if text is None else text
            keys, values = attn.to_k(source if pivots is None else source[pivots]), attn.to_v(source)
        query, keys, values = (_split(y, attn.heads) for y in (attn.to_q(at_pivots), keys, values))
        if pivots is None:
            output = F.scaled_dot_product_attention(query, keys, values, scale=attn.scale)
        else:
            output = _pivot_attention(query, keys, values, pivots, state.pivots, attn.scale)
        return attn.to_out[1](attn.to_out[0](output.transpose(1, 2).flatten(2)))


def _pivot_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, pivots: list[int], of: tuple[int, ...], scale: float
) -> torch.Tensor:
    """ObCLIP, algorithm 2: softmax(q* k*^T) V_j, one map for all j of a pivot.

    query, keys: [len(pivots), heads, length, d]; values: [m, heads, length2, d]. All values of a pivot are laid side by
    side as one wide value, so that attention stays one fused call and its map is never written out.
    """
    output = values.new_empty((values.shape[0], *query.shape[1:]))
    for i, pivot in enumerate(pivots):
        rows = [j for j, p in enumerate(of) if p == pivot]
        wide = values[rows].permute(1, 2, 0, 3).flatten(2)[None]  # [1, heads, length2, rows * d]
        found = F.scaled_dot_product_attention(query[i : i + 1], keys[i : i + 1], wide, scale=scale)
        output[rows] = found[0].unflatten(-1, (len(rows), -1)).permute(2, 0, 1, 3)
    return output


def _split(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[m, length, heads * d] to [m, heads, length, d]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def install(unet: UNet2DConditionModel) -> tuple[str, ...]:
    """Give every attention layer of `unet` a Processor; their names, in the model's order."""
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    unet.set_attn_processor({f"{name}.processor": Processor(name) for name in names})
    return tuple(names)


def cross_attention_layers(unet: UNet2DConditionModel) -> dict[str, AttentionLayer]:
    """Name to layer, of those that attend to text."""
    return {
        name: layer
        for name, layer in unet.named_modules()
        if isinstance(layer, AttentionLayer) and layer.is_cross_attention
    }


def project_text(unet: UNet2DConditionModel, text: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of `text` [M, tokens, width] for every layer that attends to text, each [M, tokens, inner]."""
    return {name: (layer.to_k(text), layer.to_v(text)) for name, layer in cross_attention_layers(unet).items()}
