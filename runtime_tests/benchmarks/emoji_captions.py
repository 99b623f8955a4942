"""Captions of the emoji drawings, or sentences like them where the drawings are not on this machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from obclip.core.errors import InputError
from runtime_tests.data import FOLDER

SPLITS = ("train", "test_iid")
STYLES = ("noto", "blob")
WOMEN = ("a woman", "a girl", "an older woman", "a woman cook", "a woman judge")
MEN = ("a man", "a boy", "an older man", "a man cook", "a man judge")
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")


@dataclass(frozen=True)
class Captions:
    """texts: all different. source: what they are, for a report."""

    texts: tuple[str, ...]
    source: str


def load_captions(folder: Path | None) -> Captions:
    """The captions in a folder of drawings, sorted; by default in the usual one, and built-in ones without it.

    InputError for a folder that was named and holds none.
    """
    path = (folder or FOLDER / "emoji") / "person.jsonl"
    if not path.is_file():
        if folder is not None:
            raise InputError(f"no person.jsonl in {folder}; name the folder of drawings, or none for built-in captions")
        return Captions(built_in_captions(), "built-in templates")
    rows = [json.loads(line) for line in path.read_text("utf8").splitlines()]
    texts = {row["caption"] for row in rows if row["split"] in SPLITS}
    return Captions(tuple(sorted(texts)), "emoji captions, " + " and ".join(SPLITS))


def built_in_captions() -> tuple[str, ...]:
    tails = ("", *(f" with {tone} skin tone" for tone in TONES))
    return tuple(f"{style} style emoji of {who}{tail}" for style in STYLES for who in (*WOMEN, *MEN) for tail in tails)
