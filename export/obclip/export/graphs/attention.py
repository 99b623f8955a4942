"""Attention as one operator where the provider has it, or as the products and the softmax that others fuse."""

from __future__ import annotations

from collections.abc import Callable

import torch

from obclip.core.errors import InputError

# query [1, S, C], key and value [1, L, C], heads, scale -> [1, S, C]
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int, float], torch.Tensor]


def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, scale: float) -> torch.Tensor:
    """MatMul, Softmax, MatMul on [1, heads, S, d]."""
    q, k, v = (_split(x, heads) for x in (query, key, value))
    weights = torch.softmax(torch.matmul(q * scale, k.transpose(2, 3)), dim=-1)
    return torch.matmul(weights, v).transpose(1, 2).flatten(2)


def fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, scale: float) -> torch.Tensor:
    """com.microsoft.MultiHeadAttention, which ONNX Runtime's CPU provider computes without writing the map out.

    Outside of torch.export the same as `plain`.
    """
    if not torch.compiler.is_exporting():
        return plain(query, key, value, heads, scale)
    return torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention", (query, key, value), attrs={"num_heads": heads, "scale": scale},
        dtype=query.dtype, shape=query.shape, version=1,
    )  # fmt: skip


def _split(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[1, S, heads * d] to [1, heads, S, d]."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


_BY_TARGET: dict[str, Attend] = {"cpu": fused}


def for_target(target: str, targets: tuple[str, ...]) -> Attend:
    """InputError for a target that is none of `targets`."""
    if target not in targets:
        raise InputError(f"target is {target!r}; choose from {', '.join(targets)}")
    return _BY_TARGET.get(target, plain)
