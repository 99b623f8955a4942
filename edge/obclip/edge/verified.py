"""A large bundle's files are compared with their digests once; after that, only those that may have changed since."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from obclip.core.errors import ObclipError
from obclip.core.manifest import Manifest
from obclip.edge.graph_cache import LARGE_BYTES
from obclip.edge.remembered import digest, recall, remember

_KIND = "verified"
_WORTH_A_WORD_BYTES = 500_000_000
_SETTLED_S = 2.0  # a file written to less long ago may be written to again within its time stamps' resolution


def verify_all(folder: Path, manifest: Manifest, note: Callable[[str], None]) -> None:
    """Every file is read, whatever was found before. note(text), BundleError: as `verify_once`."""
    _announce(sum(f.bytes for f in manifest.files), note, "")
    manifest.verify_files(folder)


def verify_once(folder: Path, manifest: Manifest, note: Callable[[str], None] | None = None) -> None:
    """BundleError as `Manifest.verify_files`. note(text) is called before so much is read that one has to wait.

    Hashing gigabytes takes longer than opening them: what was found right is noted in the user's cache folder by size,
    inode, and times of the last change of the contents and of the inode, and is not read again while those stay. A
    bundle that is small is always read.
    """
    if sum(f.bytes for f in manifest.files) < LARGE_BYTES:
        manifest.verify_files(folder)
        return
    key = digest(str(folder.resolve()))
    known, now = recall(_KIND, key), time.time()
    found = {f.path: [f.sha256, *_stamps(folder / f.path)] for f in manifest.files}
    unchanged = {path for path, stamps in found.items() if known.get(path) == stamps}
    unread = sum(f.bytes for f in manifest.files if f.path not in unchanged)
    if note is not None:
        _announce(unread, note, ", once")
    manifest.verify_files(folder, unread=unchanged)
    settled = {p: s for p, s in found.items() if p in unchanged or now - _last_change(folder / p) > _SETTLED_S}
    if settled != known:
        with contextlib.suppress(ObclipError):  # without a place to note it, all is read again
            remember(_KIND, key, settled)


def _announce(size: int, note: Callable[[str], None], times: str) -> None:
    if size > _WORTH_A_WORD_BYTES:
        note(f"checking {size / 1e9:.1f} GB of the bundle{times}")


def _stamps(path: Path) -> list[int]:
    """Nothing for a file that is not there."""
    try:
        s = path.stat()
    except OSError:
        return []
    return [s.st_size, s.st_dev, s.st_ino, s.st_mtime_ns, s.st_ctime_ns]


def _last_change(path: Path) -> float:
    s = path.stat()
    return max(s.st_mtime, s.st_ctime)
