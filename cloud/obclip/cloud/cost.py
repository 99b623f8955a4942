"""The cost of a plan in multiply-accumulates (MACs), from a profile of the UNet taken once.

Counted: convolutions, linear layers, and apart from them the two products of attention (queries with keys, weights with
values). Not counted: normalisation, activations, softmax, element-wise arithmetic.

Three ways of counting are in use: `layers` leaves attention's products out (the 338.6 G often given for Stable
Diffusion 1.x at 512 px); `published` has one of the two (the ObCLIP paper's tables: 18.53 T for 25 guided steps);
`total` has both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention as AttentionLayer
from torch import nn

from obclip.cloud.attention import cross_attention_layers
from obclip.cloud.parts import Attention
from obclip.cloud.plan import Pass, Plan
from obclip.cloud.unet import LayeredUNet


@dataclass(frozen=True)
class Macs:
    """layers: convolutions and linear layers. products: both products of attention, of equal cost."""

    layers: int = 0
    products: int = 0

    @property
    def total(self) -> int:
        return self.layers + self.products

    @property
    def published(self) -> int:
        return self.layers + self.products // 2

    def __add__(self, other: Macs) -> Macs:
        return Macs(self.layers + other.layers, self.products + other.products)

    def __mul__(self, times: int) -> Macs:
        return Macs(self.layers * times, self.products * times)


@dataclass
class Segment:
    """MACs of one row in one layer of the UNet. maps: what a pivot's attention saves the others; text: keys and values
    of the text, which a request pays once; attention: all that kept outputs save, `maps` included, `text` not."""

    plain: Macs = field(default_factory=Macs)
    attention: Macs = field(default_factory=Macs)
    maps: Macs = field(default_factory=Macs)
    text: Macs = field(default_factory=Macs)

    def of(self, attention: Attention) -> Macs:
        return self.plain if attention is Attention.KEPT else self.plain + self.attention


@dataclass(frozen=True)
class Profile:
    """One row's MACs, layer by layer, and those of projecting one text."""

    head: Segment
    down: tuple[Segment, ...]
    middle: Segment
    up: tuple[Segment, ...]
    tail: Segment
    embedding: Segment

    @property
    def row(self) -> Macs:
        """One row through the whole UNet, its text's keys and values included: what is published for a model."""
        return sum((s.plain + s.attention + s.text for s in self._all()), Macs())

    @property
    def text(self) -> Macs:
        return sum((s.text for s in self._all()), Macs())

    def cost(self, one: Pass) -> Macs:
        """MACs of one pass."""
        segments = list(self._of(one))
        rows = sum((s.of(one.part.attention) for s in segments), Macs()) * len(one.rows)
        if not one.pivots:
            return rows
        saved = sum((s.maps for s in segments), Macs()) * (len(one.rows) - len(set(one.pivots)))
        return Macs(rows.layers - saved.layers, rows.products - saved.products)

    def _all(self) -> Iterator[Segment]:
        yield from (self.embedding, self.head, *self.down, self.middle, *self.up, self.tail)

    def _of(self, one: Pass) -> Iterator[Segment]:
        depth = one.part.depth
        if depth is None:
            yield from self._all()
            return
        yield self.embedding
        if not one.part.kept_skips:
            yield from (self.head, *self.down[: depth - 1])
        yield from (*self.up[-depth:], self.tail)


def plan_macs(plan: Plan, profile: Profile) -> Macs:
    """MACs of all of a plan's passes, and of the keys and values of its texts."""
    passes = sum((profile.cost(p) for step in plan.steps for p in step.passes), Macs())
    texts = plan.candidates + any(step.guided for step in plan.steps)
    return passes + profile.text * texts


def profile_unet(layered: LayeredUNet, latent_shape: tuple[int, int, int], tokens: int) -> Profile:
    """Run one row through the UNet, on whatever device it is (the meta device included), and count by layer."""
    unet = layered.unet
    head, tail, middle, embedding = Segment(), Segment(), Segment(), Segment()
    down = tuple(Segment() for _ in layered.down)
    up = tuple(Segment() for _ in layered.up)
    owner: dict[nn.Module, Segment] = {}
    for segment, roots in [
        (head, [unet.conv_in]), (tail, [unet.conv_out]), (middle, [unet.mid_block]),
        (embedding, [unet.time_embedding, getattr(unet, "add_embedding", None)]),
        *zip(down, ([layer.resnet, layer.attention] for layer in layered.down), strict=True),
        *zip(up, ([layer.resnet, layer.attention, layer.after] for layer in layered.up), strict=True),
    ]:  # fmt: skip
        owner |= {m: segment for root in roots if root is not None for m in root.modules()}
    text_layers = set(cross_attention_layers(unet).values())
    role: dict[nn.Module, str] = {}
    for module in unet.modules():
        if isinstance(module, AttentionLayer):
            text = module in text_layers
            role |= {m: "attention" for m in module.modules()}
            role[module.to_q] = "maps"
            role[module.to_k] = "text" if text else "maps"
            role[module.to_v] = "text" if text else "attention"

    def layer(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        per_output = module.weight[0].numel() if isinstance(module, nn.Conv2d) else module.in_features
        _count(owner[module], role.get(module, "plain"), Macs(output.numel() * per_output))

    def products(module: AttentionLayer, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        queries = hidden.shape[1]
        keys = tokens if module in text_layers else queries
        one = Macs(0, queries * keys * module.inner_dim)
        _count(owner[module], "maps", one)
        _count(owner[module], "attention", one)

    hooks = []
    for module in unet.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            hooks.append(module.register_forward_hook(layer))
        elif isinstance(module, AttentionLayer):
            hooks.append(module.register_forward_hook(products, with_kwargs=True))
    try:
        run_once(unet, latent_shape, tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return Profile(head, down, middle, up, tail, embedding)


def _count(segment: Segment, role: str, macs: Macs) -> None:
    if role == "maps":
        segment.maps += macs
        role = "attention"
    setattr(segment, role, getattr(segment, role) + macs)


@torch.inference_mode()
def run_once(unet: UNet2DConditionModel, latent_shape: tuple[int, int, int], tokens: int) -> None:
    """One row of zeros through the UNet, for hooks to see, on whatever device it is."""
    parameter = next(unet.parameters())
    x = torch.zeros((1, *latent_shape), device=parameter.device, dtype=parameter.dtype)
    text = x.new_zeros((1, tokens, unet.config.cross_attention_dim))
    added = None
    if unet.config.addition_embed_type == "text_time":
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        added = {"text_embeds": x.new_zeros((1, pooled)), "time_ids": x.new_zeros((1, 6))}
    unet(x, torch.zeros((), device=parameter.device), text, added_cond_kwargs=added)
