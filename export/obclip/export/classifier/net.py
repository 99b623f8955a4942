"""A small residual network with one head for each thing that a caption says."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

WIDTHS = (48, 96, 160, 224)
FEATURES = WIDTHS[-1]


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016); the first may halve the size."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outside)
        self.second = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outside)
        self.shortcut = nn.Conv2d(inside, outside, 1, stride, bias=False) if inside != outside else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(y)) + self.shortcut(x))


class Net(nn.Module):
    """float32 [M, 3, 64, 64] in -1..1 to features [M, FEATURES] and logits by head."""

    def __init__(self, sizes: dict[str, int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTHS[0], 5, 2, 2)  # 64 -> 32
        inside, blocks = WIDTHS[0], []
        for width in WIDTHS:
            blocks += [Block(inside, width, 1 if width == WIDTHS[0] else 2), Block(width, width, 1)]
            inside = width
        self.blocks = nn.Sequential(*blocks[:-1])  # 32, 16, 8, 4
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, size) for name, size in sizes.items()})

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        features = self.blocks(F.relu(self.stem(x))).mean(dim=(2, 3))
        return features, {name: head(features) for name, head in self.heads.items()}
