"""`--provider auto`: the quickest of what is installed here, measured once a bundle and machine and remembered."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from obclip.core.errors import ObclipError
from obclip.core.files import atomic_write_bytes
from obclip.core.manifest import Manifest, Variant
from obclip.edge.graph_cache import LARGE_BYTES, user_cache, versions
from obclip.edge.machine import processor
from obclip.edge.providers import Provider, available_providers, find
from obclip.edge.providers.base import Opening
from obclip.edge.sessions import SessionOptions
from obclip.edge.timing import time_pass

RUNS = 2
_MEASURED_FROM_BYTES = LARGE_BYTES  # a small bundle's passes take less than a measurement would


def choose(folder: Path, manifest: Manifest, options: SessionOptions) -> SessionOptions:
    """`options` with a provider (and precision, where that is "auto" too) in place of "auto".

    A whole pass of each provider and precision that the bundle has device graphs for is timed (median of two after a
    first), and the quickest kept in the user's cache folder, by the bundle's files, the processor and the versions
    installed. The CPU, unmeasured, where there is nothing to choose from.
    """
    ways = candidates(manifest, options, available_providers())
    size = sum(f.bytes for f in manifest.files)
    if len(ways) < 2 or size < _MEASURED_FROM_BYTES:
        return replace(options, provider="cpu")
    store = user_cache() / "choices.json"
    key = _key(manifest, options, ways)
    known = _read(store)
    if key not in known:
        known[key] = _quickest(folder, manifest, options, ways)
        with contextlib.suppress(ObclipError):  # without a place to remember it, it is measured again
            atomic_write_bytes(store, (json.dumps(known, indent=1, sort_keys=True) + "\n").encode())
    provider, precision = known[key]["chosen"]
    return replace(options, provider=provider, precision=precision)


def candidates(
    manifest: Manifest, options: SessionOptions, here: dict[str, Provider]
) -> dict[tuple[str, str], Variant]:
    """(provider, precision) -> the graph of its whole pass, for what is installed and what the bundle was made for."""
    found: dict[tuple[str, str], Variant] = {}
    for name, provider in here.items():
        for variant in manifest.variants:
            if (variant.component, variant.role, variant.target) != ("unet", "full", provider.target):
                continue
            computed = [variant.precision]
            if variant.precision == "fp32":
                computed = list(provider.arithmetics())
            for precision in computed:
                if options.precision in ("auto", precision):
                    found[name, precision] = variant
    return found


def _quickest(
    folder: Path, manifest: Manifest, options: SessionOptions, ways: dict[tuple[str, str], Variant]
) -> dict[str, Any]:
    seconds: dict[str, float | str] = {}
    best: tuple[float, tuple[str, str]] | None = None
    for way, variant in ways.items():
        provider, precision = way
        try:
            runner = find(provider)
            known = runner.arithmetics()
            wanted = replace(options, provider=provider, precision=precision).arithmetic
            opening = Opening(options.threads, wanted if wanted in known else known[0], options.strict, options.lean)
            took = time_pass(folder / variant.file, variant, runner, opening, RUNS)
        except ObclipError as error:  # one that does not work here is no candidate
            seconds["/".join(way)] = str(error)
            continue
        seconds["/".join(way)] = round(took, 4)
        if best is None or took < best[0]:
            best = took, way
    return {"chosen": list(best[1] if best else ("cpu", "auto")), "pass_s": seconds}


def _key(manifest: Manifest, options: SessionOptions, ways: dict[tuple[str, str], Variant]) -> str:
    files = sorted((f.path, f.sha256) for f in manifest.files)
    made_of = [files, sorted(ways), options.threads, options.lean, processor(), *versions()]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:24]


def _read(store: Path) -> dict[str, dict[str, Any]]:
    """What is remembered; nothing, if the file is not there or not ours."""
    try:
        known = json.loads(store.read_text(encoding="utf8"))
        return {k: v for k, v in known.items() if len(v["chosen"]) == 2}
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return {}
