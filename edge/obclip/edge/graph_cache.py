"""Where what a provider makes of a large graph is kept: beside the bundle, or in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from obclip.core.manifest import Manifest
from obclip.edge.machine import processor
from obclip.edge.providers.base import Opening, Provider

LARGE_BYTES = 50_000_000  # below that, optimising takes less time than a cached file would save
_FOLDER = ".cache"


def cache_folder(bundle: Path, manifest: Manifest, file: str, provider: Provider, opening: Opening) -> Path | None:
    """A folder for one graph, by digest, provider, versions, machine and settings; None for a small graph, or where
    no place can be written to."""
    part = Path(file).parent.as_posix()
    entries = [f for f in manifest.files if f.path == file or f.path.startswith(f"{part}/{Path(file).stem}.")]
    shared = [f for f in manifest.files if f.path.startswith(f"{part}/") and f.path.endswith("_data")]
    if sum(f.bytes for f in {*entries, *shared}) < LARGE_BYTES:
        return None
    root = _root(bundle)
    if root is None:
        return None
    settings = {k: v for k, v in asdict(opening).items() if k != "cache"}
    digests = sorted((f.path, f.sha256) for f in {*entries, *shared})
    made_of = [digests, provider.full_name, settings, processor(), *versions()]
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:24]
    return root / f"{Path(file).stem}-{key}"


def user_cache() -> Path:
    """OBCLIP_CACHE, else the system's place for caches."""
    if given := os.environ.get("OBCLIP_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "obclip"


def _root(bundle: Path) -> Path | None:
    for place in (bundle / _FOLDER, user_cache() / "graphs"):
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
