"""Where the drawings and captions that some tests use are, if they are on this machine."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("OBCLIP_DATA", ROOT.parent / "shared" / "data"))

needs_emoji = pytest.mark.skipif(
    not (FOLDER / "emoji" / "person.jsonl").is_file(), reason="the emoji captions are not on this machine (OBCLIP_DATA)"
)
needs_coco = pytest.mark.skipif(
    not (FOLDER / "prompts" / "coco_person.jsonl").is_file(), reason="the COCO captions are not here (OBCLIP_DATA)"
)


@lru_cache(maxsize=1)
def emoji_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / "emoji" / "person.jsonl").read_text("utf8").splitlines()]


def coco_captions() -> list[str]:
    lines = (FOLDER / "prompts" / "coco_person.jsonl").read_text("utf8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [row if isinstance(row, str) else row.get("caption") or row["prompt"] for row in rows]
