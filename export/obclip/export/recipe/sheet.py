"""Contact sheets: images side by side, for a person to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image


def save_sheet(path: Path, images: torch.Tensor, columns: int) -> None:
    """images: float [M, 3, H, W] in -1..1, laid out row by row."""
    x = ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    m, h, w, _ = x.shape
    rows = -(-m // columns)
    sheet = np.full((rows * h, columns * w, 3), 255, np.uint8)
    for i in range(m):
        r, c = divmod(i, columns)
        sheet[r * h : (r + 1) * h, c * w : (c + 1) * w] = x[i]
    Image.fromarray(sheet).save(path)
