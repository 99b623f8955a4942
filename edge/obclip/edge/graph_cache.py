"""Where what a provider makes of a large graph is kept: beside the bundle, or in the user's cache folder."""

from __future__ import annotations

import os
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from obclip.core.files import remove_folder
from obclip.core.manifest import Manifest
from obclip.edge.machine import processor
from obclip.edge.providers.base import Opening, Provider
from obclip.edge.remembered import digest, user_cache

LARGE_BYTES = 50_000_000  # below that, optimising takes less time than a cached file would save
KEPT_SHARE = 2.0  # of the bundle's own bytes; one way of running it takes about its own size once
_FOLDER = ".cache"


def cache_folder(bundle: Path, manifest: Manifest, file: str, provider: Provider, opening: Opening) -> Path | None:
    """A folder for one graph, by digest, provider, versions, machine and settings; None for a small graph, or where
    no place can be written to. For one that is new, the least recently used ones beyond KEPT_SHARE are removed."""
    part = Path(file).parent.as_posix()
    entries = [f for f in manifest.files if f.path == file or f.path.startswith(f"{part}/{Path(file).stem}.")]
    shared = [f for f in manifest.files if f.path.startswith(f"{part}/") and f.path.endswith("_data")]
    if sum(f.bytes for f in {*entries, *shared}) < LARGE_BYTES:
        return None
    root = _root(bundle, manifest)
    if root is None:
        return None
    settings = {k: v for k, v in asdict(opening).items() if k != "cache"}
    digests = sorted((f.path, f.sha256) for f in {*entries, *shared})
    key = digest(digests, provider.full_name, settings, processor(), *versions())
    folder = root / f"{Path(file).stem}-{key}"
    try:
        os.utime(folder)
    except OSError:
        trim(root, int(KEPT_SHARE * sum(f.bytes for f in manifest.files)))
    return folder


def trim(root: Path, limit_bytes: int) -> list[Path]:
    """Removes the least recently used folders of `root` until the rest takes at most `limit_bytes`; what was removed.

    One that another process holds open stays, where the system does not let go of it.
    """
    total, removed = 0, []
    try:
        dated = sorted(((p.stat().st_mtime_ns, p) for p in root.iterdir() if p.is_dir()), reverse=True)
        sizes = [sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) for _, p in dated]
    except OSError:  # another process is at it
        return []
    for (_, folder), size in zip(dated, sizes, strict=True):
        total += size
        if total > limit_bytes and remove_folder(folder):
            removed.append(folder)
    return removed


def _root(bundle: Path, manifest: Manifest) -> Path | None:
    whole = digest(sorted((f.path, f.sha256) for f in manifest.files))
    for place in (bundle / _FOLDER, user_cache() / "graphs" / whole):
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(place, os.W_OK):
            return place
    return None


@lru_cache
def versions() -> tuple[str, ...]:
    """Of the runtimes installed here."""
    found = []
    for package in ("onnxruntime", "openvino", "onnxruntime-qnn"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return tuple(found)
