"""The drawings that the embedded pair is trained on: one person each, on white, with that person's attributes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from obclip.core.errors import InputError

TILES_PER_ROW = 36
STORED_PX = 128


@dataclass(frozen=True)
class Drawings:
    """images: uint8 [M, px, px, 3] RGB; rows: M dicts with style, gender, age, skin, hair, activity, split, ..."""

    images: np.ndarray
    rows: list[dict[str, Any]]

    def split(self, *names: str) -> Drawings:
        keep = [i for i, row in enumerate(self.rows) if row["split"] in names]
        return Drawings(self.images[keep], [self.rows[i] for i in keep])


def load_drawings(folder: Path, px: int) -> Drawings:
    """Read every drawing under `folder`, area-averaged from 128 px to `px` (which must divide 128)."""
    index = folder / "person.jsonl"
    if not index.is_file():
        raise InputError(f"no drawings at {folder}: person.jsonl is missing; pass --data DIR, the folder that has it")
    if STORED_PX % px:
        raise InputError(f"px is {px}; it must divide {STORED_PX}")
    rows = [json.loads(line) for line in index.read_text(encoding="utf8").splitlines()]
    images = np.empty((len(rows), px, px, 3), np.uint8)
    for style in sorted({row["style"] for row in rows}):
        sheet = _read_sheet(folder / f"person{STORED_PX}_{style}.webp")
        for i, row in enumerate(rows):
            if row["style"] == style:
                y, x = divmod(row["tile"], TILES_PER_ROW)
                tile = sheet[y * STORED_PX : (y + 1) * STORED_PX, x * STORED_PX : (x + 1) * STORED_PX]
                images[i] = _area_average(tile, px)
    return Drawings(images, rows)


def _read_sheet(path: Path) -> np.ndarray:
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # the sheets are larger than Pillow's bomb guard
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _area_average(tile: np.ndarray, px: int) -> np.ndarray:
    f = STORED_PX // px
    return np.asarray(tile.reshape(px, f, px, f, 3).mean(axis=(1, 3)).round().astype(np.uint8))
