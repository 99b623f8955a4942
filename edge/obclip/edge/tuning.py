"""`obclip bench --tune`: threads, spinning and the arena, measured on a bundle's whole pass and remembered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from obclip.core.cores import usable_cores
from obclip.core.errors import InputError
from obclip.core.files import atomic_write_bytes
from obclip.core.manifest import Manifest, Variant
from obclip.edge.graph_cache import user_cache, versions
from obclip.edge.machine import processor
from obclip.edge.providers.base import Opening, Provider
from obclip.edge.timing import time_pass

_GAIN = 0.97  # of the time before: what is less of a gain is noise
_STORE = "tuned.json"


@dataclass(frozen=True)
class Tuned:
    """What a session is opened with. pass_s: setting -> seconds of a whole pass, in the order they were tried."""

    threads: int | None
    spinning: bool
    arena: bool
    pass_s: dict[str, float]

    def apply(self, opening: Opening) -> Opening:
        """`opening` with these, but where it was asked for otherwise."""
        threads = self.threads if opening.threads is None else opening.threads
        return replace(opening, threads=threads, spinning=self.spinning, arena=self.arena)


def tune(
    folder: Path, manifest: Manifest, variant: Variant | None, provider: Provider, opening: Opening, runs: int = 3
) -> Tuned:
    """Opens and times the whole pass in one setting after the other; each is kept if it gains 3 %. Remembers what it
    found in the user's cache folder, where `Bundle.open` looks. InputError: a bundle without device graphs. RunError:
    the cache folder cannot be written.

    Only ONNX Runtime's CPU has spinning and an arena; of others threads alone are tried.
    """
    if variant is None:
        raise InputError("this bundle has no device graphs to tune for; export it again with --targets")
    found = search(provider.name, opening, lambda o: time_pass(folder / variant.file, variant, provider, o, runs))
    store = user_cache() / _STORE
    known = _read(store) | {_key(manifest, variant, provider, opening.arithmetic): asdict(found)}
    atomic_write_bytes(store, (json.dumps(known, indent=1, sort_keys=True) + "\n").encode())
    return found


def search(provider: str, opening: Opening, measure: Callable[[Opening], float]) -> Tuned:
    """measure: seconds of a pass in a setting."""
    best, best_s = opening, measure(opening)
    tried = {"as it comes": best_s}
    for change in _changes(provider):
        candidate = replace(best, **change)
        seconds = measure(candidate)
        tried[", ".join(f"{name} {value}" for name, value in change.items())] = seconds
        if seconds < _GAIN * best_s:
            best, best_s = candidate, seconds
    return Tuned(best.threads, best.spinning, best.arena, {k: round(v, 4) for k, v in tried.items()})


def _changes(provider: str) -> list[dict[str, Any]]:
    threads = [{"threads": count} for count in range(usable_cores(), 0, -1)]
    return [*threads, {"spinning": False}, {"arena": False}] if provider == "cpu" else list(threads)


def recall(manifest: Manifest, variant: Variant, provider: Provider, arithmetic: str) -> Tuned | None:
    """What was found for this graph, provider, processor and versions; None if nothing was."""
    found = _read(user_cache() / _STORE).get(_key(manifest, variant, provider, arithmetic))
    try:
        return None if found is None else Tuned(**found)
    except TypeError:
        return None


def _key(manifest: Manifest, variant: Variant, provider: Provider, arithmetic: str) -> str:
    digest = next(f.sha256 for f in manifest.files if f.path == variant.file)
    made_of = [digest, provider.full_name, arithmetic, processor(), *versions()]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:24]


def _read(store: Path) -> dict[str, Any]:
    """What is remembered; nothing, if the file is not there or not ours."""
    try:
        known = json.loads(store.read_text(encoding="utf8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
