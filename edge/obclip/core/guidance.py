"""How a latent consistency model is told its guidance scale."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def guidance_embedding(scale: float, width: int) -> NDArray[np.float32]:
    """float32 [1, width]: sinusoids of 1000 times the scale less one (Meng et al. 2023, arXiv 2210.03142; in diffusers'
    order)."""
    half = width // 2
    angles = (scale - 1.0) * 1000.0 * np.exp(-math.log(10000.0) / (half - 1) * np.arange(half))
    values = np.concatenate([np.sin(angles), np.cos(angles), np.zeros(width % 2)])
    return values[None].astype(np.float32)
