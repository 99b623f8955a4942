"""A note, kept on the device, of which alternatives a user's marks have had: changing them gives the real one away.

Who sees [[Alice|Bob|Carol]] today and [[Alice|Dave|Erin]] tomorrow knows Alice. The note holds keyed digests
(HMAC-SHA256) of words, never the words.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path
from typing import Any

from obclip.core.errors import ObclipError
from obclip.core.files import atomic_write_bytes
from obclip.edge.oblivious.marks import MARK, alternatives
from obclip.edge.oblivious.text import normalise


def history_path() -> Path:
    """`$XDG_STATE_HOME/obclip/marks.json`, or that below ~/.local/state."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "obclip" / "marks.json"


def changed_marks(prompt: str, path: Path) -> list[str]:
    """Warnings for marks of `prompt` that share an alternative with an earlier, different set of alternatives."""
    note = _read(path)
    found = []
    for choices in _sets(prompt):
        known = {note["sets"].get(_digest(note, word)) for word in choices} - {None, _digest(note, "|".join(choices))}
        if known:
            found.append(
                f"[[{'|'.join(choices)}]] has other alternatives than before: what the two share is likely the real "
                "one; keep to one set of alternatives"
            )
    return found


def remember_marks(prompt: str, path: Path) -> None:
    """Note the marks of `prompt`, which is about to leave. What cannot be written is left out: no guarantee."""
    note = _read(path)
    for choices in _sets(prompt):
        whole = _digest(note, "|".join(choices))
        note["sets"] |= {_digest(note, word): whole for word in choices}
    if note["sets"]:
        with contextlib.suppress(OSError, ObclipError):
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(path, json.dumps(note).encode())


def _sets(prompt: str) -> list[tuple[str, ...]]:
    return [tuple(sorted(normalise(word) for word in alternatives(inside))) for inside in MARK.findall(prompt)]


def _read(path: Path) -> dict[str, Any]:
    try:
        note = json.loads(path.read_bytes())
        if isinstance(note, dict) and isinstance(note.get("key"), str) and isinstance(note.get("sets"), dict):
            return note
    except (OSError, ValueError):
        pass
    return {"key": secrets.token_hex(16), "sets": {}}


def _digest(note: dict[str, Any], word: str) -> str:
    return hmac.new(note["key"].encode(), word.encode(), hashlib.sha256).hexdigest()
