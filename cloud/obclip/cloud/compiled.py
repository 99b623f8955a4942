"""The UNet's forward, compiled: whole, one graph for each part and padded batch size; CUDA graphs on a GPU.

Compilation of the blocks alone would leave Stable Diffusion's residual layers, half of its work, as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch

from obclip.cloud.parts import Keep, Part
from obclip.cloud.unet import Features, Inputs, LayeredUNet


def bucket_sizes(most: int) -> tuple[int, ...]:
    """Sizes that batches are padded to: 1, 2, 3, 4, 6, 8, 12, ..., `most`. At most a third of a batch is padding."""
    steps = (2**k * half // 2 for k in range(most.bit_length()) for half in (2, 3))
    return (*sorted({size for size in steps if size < most}), most)


def bucket(rows: int, sizes: Sequence[int]) -> int:
    """The smallest of the rising `sizes` that holds `rows`; wider batches are not padded."""
    return next((size for size in sizes if size >= rows), rows)


class CompiledForward:
    """Stands for a LayeredUNet's call. What it returns is its own: a graph's next replay does not write into it."""

    def __init__(self, layered: LayeredUNet) -> None:
        self.layered = layered
        self.graphs = layered.unet.device.type == "cuda"
        options: dict[str, Any] = {"mode": "reduce-overhead" if self.graphs else "default"}
        if "recompile_limit" in signature(torch.compile).parameters:  # not in older PyTorch
            options["recompile_limit"] = 256  # every part, padded size and set of kept features is a graph of its own
        self.compiled = torch.compile(layered, fullgraph=True, dynamic=False, **options)

    def __call__(
        self, x: torch.Tensor, inputs: Inputs, part: Part, kept: Features, keep: Keep, pivots: tuple[int, ...]
    ) -> tuple[torch.Tensor, Features]:
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        output, features = self.compiled(x, inputs, part, kept, keep, pivots)
        if not self.graphs:
            return output, features
        return output.clone(), {name: value.clone() for name, value in features.items()}
