"""A linear map from latents to colours, so that a device can show a picture in the making without its decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obclip.edge.providers import find
from obclip.edge.providers.base import Opening

Float32 = NDArray[np.float32]
_SAMPLES, _SIDE = 12, 16


def fit_preview(decoder: Path, channels: int, scale: float) -> dict[str, Any]:
    """By least squares of the decoder's pictures, averaged over each latent's pixels, on latents; with a constant.

    Returns `map`, [3][channels + 1]: red, green and blue in -1..1 of latents as the UNet has them (before they are
    divided by `scale`) and 1; and `explains`, the share of the pictures' variance that it gets right. Latents are
    smooth ones, drawn at random.
    """
    session = find("cpu").open(decoder, Opening())
    rows, colours = [], []
    for latents in _drawn(channels):
        picture = session.run(latent_sample=latents[None] / np.float32(scale))["sample"][0]
        side = picture.shape[1] // latents.shape[1]
        blocks = picture.reshape(3, latents.shape[1], side, latents.shape[2], side).mean(axis=(2, 4))
        rows.append(np.concatenate([latents, np.ones_like(latents[:1])]).reshape(channels + 1, -1).T)
        colours.append(blocks.reshape(3, -1).T)
    x, y = np.concatenate(rows).astype(np.float64), np.concatenate(colours).astype(np.float64)
    found, *_ = np.linalg.lstsq(x, y, rcond=None)
    spread = float(((y - y.mean(axis=0)) ** 2).sum())
    explained = 1 - float(((y - x @ found) ** 2).sum()) / spread if spread else 0.0
    return {"map": [[round(float(v), 6) for v in row] for row in found.T], "explains": round(explained, 4)}


def _drawn(channels: int) -> list[Float32]:
    """Noise on a coarse grid, blown up, of unit variance: latents of pictures change slowly from place to place."""
    rng = np.random.default_rng(0)
    found = []
    for coarse in (2, 4, 8) * (_SAMPLES // 3):
        grid = rng.standard_normal((channels, coarse, coarse))
        found.append(grid.repeat(_SIDE // coarse, axis=1).repeat(_SIDE // coarse, axis=2).astype(np.float32))
    return found
