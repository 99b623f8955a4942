"""Pictures in the making: clean latents to colours by the bundle's linear map, no decoder needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from obclip.core.errors import InputError
from obclip.core.manifest import Manifest
from obclip.edge.generate import Watch
from obclip.edge.image import save_png


def preview(manifest: Manifest, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Clean latents [C, h, w] to an RGB picture of the bundle's size, uint8 [H, W, 3]. InputError: no map."""
    if manifest.preview is None:
        raise InputError("this bundle has no map for previews; export it again, or leave --preview out")
    weights = np.asarray(manifest.preview["map"], np.float32)
    colours = np.tensordot(weights[:, :-1], latents, axes=1) + weights[:, -1, None, None]
    small = ((np.clip(colours, -1, 1) + 1) * 127.5).round().astype(np.uint8).transpose(1, 2, 0)
    size = (manifest.width, manifest.height)
    return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))


def preview_to(path: Path, manifest: Manifest, every: int, about: dict[str, Any] | None = None) -> Watch:
    """Writes a PNG at every so many steps, each whole or not at all. InputError: every below 1, or no map.

    about: what its metadata say beside the step.
    """
    if every < 1:
        raise InputError(f"previews every {every} steps; it must be 1 or more")
    c, h, w = manifest.latent_channels, manifest.height, manifest.width
    shape = (c, h // manifest.latent_downscale, w // manifest.latent_downscale)
    preview(manifest, np.zeros(shape, np.float32))
    count = 0

    def watch(done: int, clean: NDArray[np.float32]) -> None:
        nonlocal count
        if count % every == 0:
            save_png(path, preview(manifest, clean), {**(about or {}), "step": done, "preview": True})
        count += 1

    return watch
