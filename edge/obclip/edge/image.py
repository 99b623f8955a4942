"""Pictures on disk: PNG with what is needed to repeat them, and contact sheets."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from obclip.core.errors import InputError
from obclip.core.files import atomic_write_bytes

Picture = NDArray[np.uint8]
KEY = "obclip"
_GAP, _LABEL = 8, 16


def save_png(path: Path, picture: Picture, metadata: dict[str, Any]) -> None:
    """Write uint8 [H, W, 3] to `path`, whole or not at all, with `metadata` as JSON in a text chunk."""
    info = PngInfo()
    info.add_itxt(KEY, json.dumps(metadata, sort_keys=True, ensure_ascii=False))
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", pnginfo=info)
    atomic_write_bytes(path, buffer.getvalue())


def check_png(path: Path) -> None:
    """InputError unless the name is a PNG's, which is what is written under any name."""
    if path.suffix.lower() != ".png":
        raise InputError(f"{path} would hold a PNG; give it a name that ends in .png")


def read_metadata(path: Path) -> dict[str, Any]:
    """What `save_png` wrote. InputError if the file is no PNG of ours."""
    try:
        with Image.open(path) as image:
            image.load()
            text = getattr(image, "text", {}).get(KEY)
    except (OSError, SyntaxError) as error:
        raise InputError(f"{path} is no readable picture: {error}") from error
    if text is None:
        raise InputError(f"{path} has no {KEY} metadata; it was not written by obclip")
    try:
        values = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: its {KEY} metadata is not JSON; it was not written by obclip") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: its {KEY} metadata is no JSON object; it was not written by obclip")
    return values


def contact_sheet(rows: Sequence[Sequence[tuple[str, Picture]]], scale: int = 1, marked: str = "") -> Picture:
    """Rows of labelled pictures of one size, enlarged `scale` times; those labelled `marked...` get a frame."""
    side = max(p.shape[1] for row in rows for _, p in row) * scale
    columns = max(len(row) for row in rows)
    cell_w, cell_h = side + _GAP, side + _LABEL + _GAP
    sheet = Image.new("RGB", (columns * cell_w + _GAP, len(rows) * cell_h + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for r, row in enumerate(rows):
        for c, (label, picture) in enumerate(row):
            x, y = _GAP + c * cell_w, _GAP + r * cell_h
            shown = Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(shown, (x, y + _LABEL))
            draw.text((x, y), _fit(label, side, font), fill="black", font=font)
            if marked and label.startswith(marked):
                draw.rectangle((x - 2, y + _LABEL - 2, x + side + 1, y + _LABEL + side + 1), outline="red", width=2)
    return np.asarray(sheet)


def _fit(label: str, width: int, font: Any) -> str:
    if font.getlength(label) <= width:
        return label
    while label and font.getlength(label + "…") > width:
        label = label[:-1]
    return label + "…"
