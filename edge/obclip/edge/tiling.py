"""Decoding in overlapping tiles: a decoder's memory is that of one tile, at the price of a little more work.

Tiles are blended by ramps over their overlaps, so that seams of a decoder with norms over the whole tile do not show.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from obclip.core.errors import InputError

Float32 = NDArray[np.float32]
TILE, OVERLAP = 32, 8  # of latents: 256 px, blended over 64


def decode_tiled(
    decode: Callable[[Float32], Float32], latents: Float32, scale: int, tile: int = TILE, overlap: int = OVERLAP
) -> Float32:
    """Latents [C, h, w] to [3, h * scale, w * scale] by `decode`, which takes [C, t, t] and gives [3, t * scale, ...].

    InputError: an overlap of more than half a tile.
    """
    if not 0 <= overlap <= tile // 2:
        raise InputError(f"the overlap is {overlap}; it must be from 0 to half of the tile ({tile // 2})")
    _, h, w = latents.shape
    out = np.zeros((3, h * scale, w * scale), np.float32)
    weight = np.zeros((h * scale, w * scale), np.float32)
    for top in starts(h, tile, overlap):
        for left in starts(w, tile, overlap):
            part = decode(latents[:, top : top + tile, left : left + tile])
            _, ph, pw = part.shape
            ramp = np.outer(_ramp(ph, overlap * scale), _ramp(pw, overlap * scale))
            y, x = top * scale, left * scale
            out[:, y : y + ph, x : x + pw] += part * ramp
            weight[y : y + ph, x : x + pw] += ramp
    return np.asarray(out / weight, np.float32)


def starts(size: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along an axis: each `tile - overlap` behind the one before, but the last ends with it."""
    if size <= tile:
        return [0]
    found = list(range(0, size - tile, tile - overlap))
    return [*found, size - tile]


def _ramp(size: int, overlap: int) -> Float32:
    """Rises over `overlap` pixels from either end, and is never zero."""
    if overlap == 0:
        return np.ones(size, np.float32)
    distance = np.minimum(np.arange(size) + 1, size - np.arange(size))
    return np.minimum(distance / (overlap + 1), 1).astype(np.float32)
