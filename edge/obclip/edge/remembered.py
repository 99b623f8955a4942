"""What was found once on this machine, in the user's cache folder: a small JSON file for each entry.

Each is written in one step, and no entry is in another's file: processes side by side lose nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from obclip.core.files import atomic_write_bytes


def user_cache() -> Path:
    """OBCLIP_CACHE, else obclip in XDG_CACHE_HOME or ~/.cache, on every system."""
    if given := os.environ.get("OBCLIP_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "obclip"


def digest(*made_of: Any) -> str:
    """A short name for what these JSON values say."""
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:24]


def recall(kind: str, key: str) -> dict[str, Any]:
    """The entry; empty, if there is none or it is not ours."""
    try:
        known = json.loads(_file(kind, key).read_text(encoding="utf8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def remember(kind: str, key: str, entry: dict[str, Any]) -> None:
    """RunError if the cache folder cannot be written."""
    atomic_write_bytes(_file(kind, key), (json.dumps(entry, indent=1, sort_keys=True) + "\n").encode())


def forget(kind: str, key: str) -> bool:
    """Whether there was such an entry. OSError if it cannot be removed."""
    try:
        _file(kind, key).unlink()
    except FileNotFoundError:
        return False
    return True


def _file(kind: str, key: str) -> Path:
    return user_cache() / kind / f"{key}.json"
