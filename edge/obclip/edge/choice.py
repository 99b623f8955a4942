"""`--provider auto`: the quickest of what is installed here, measured once a bundle and machine and remembered."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from obclip.core.errors import InputError, ObclipError
from obclip.core.files import atomic_write_bytes
from obclip.core.manifest import Manifest, Variant
from obclip.edge.graph_cache import LARGE_BYTES, user_cache, versions
from obclip.edge.machine import processor, return_freed_memory
from obclip.edge.memory import fit
from obclip.edge.providers import Provider, available_providers, find
from obclip.edge.providers.base import Opening
from obclip.edge.sessions import SessionOptions
from obclip.edge.timing import time_pass

RUNS = 2
_MEASURED_FROM_BYTES = LARGE_BYTES  # a small bundle's passes take less than a measurement would


def choose(
    folder: Path, manifest: Manifest, options: SessionOptions, note: Callable[[str], None] | None = None
) -> SessionOptions:
    """`options` with a provider (and precision, where that is "auto" too) in place of "auto".

    A whole pass of each provider and precision that the bundle has device graphs for is timed (median of two after a
    first), and the quickest kept in the user's cache folder, by the bundle's files, the processor and the versions
    installed; one that fails is tried again at the next start. With a memory limit each runs as it would fit, and what
    does not fit is not opened. The CPU, unmeasured, if it is the only one or the bundle is small; and where nothing
    works. note(text) is called before anything is measured.
    """
    ways = candidates(manifest, options, available_providers())
    small = sum(f.bytes for f in manifest.files) < _MEASURED_FROM_BYTES
    cpu = [way for way in ways if way[0] == "cpu"]
    if not ways or (cpu and (small or len(ways) == 1)):
        return replace(options, provider="cpu")
    fitting = _fitting(manifest, options, ways)
    store = user_cache() / "choices.json"
    key = _key(manifest, fitting)
    seconds = _read(store).get(key, {})
    missing = {way: how for way, how in fitting.items() if "/".join(way) not in seconds}
    if missing and note is not None:
        note(f"measuring once which is quickest here: {', '.join(' '.join(way) for way in missing)}")
    if missing and (found := _measure(folder, missing, ways)):
        seconds = seconds | found
        with contextlib.suppress(ObclipError):  # without a place to remember it, it is measured again
            known = {k: {"pass_s": v} for k, v in (_read(store) | {key: seconds}).items()}
            atomic_write_bytes(store, (json.dumps(known, indent=1, sort_keys=True) + "\n").encode())
    if not seconds:
        return replace(options, provider="cpu")
    provider, precision = min(fitting, key=lambda way: seconds.get("/".join(way), math.inf))
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


def _fitting(
    manifest: Manifest, options: SessionOptions, ways: dict[tuple[str, str], Variant]
) -> dict[tuple[str, str], SessionOptions]:
    """Of the ways those that fit under the memory limit, as they would be run under it."""
    found = {}
    for provider, precision in ways:
        with contextlib.suppress(InputError):  # says how much more it would take
            wanted = replace(options, provider=provider, precision=precision)
            found[provider, precision] = fit(manifest, wanted, find(provider).target)
    return found


def _measure(
    folder: Path, wanted: dict[tuple[str, str], SessionOptions], ways: dict[tuple[str, str], Variant]
) -> dict[str, float]:
    """ "provider/precision" -> seconds of a whole pass, without those that do not work here."""
    seconds = {}
    for way, options in wanted.items():
        try:
            runner = find(options.provider)
            known = runner.arithmetics()
            arithmetic = options.arithmetic if options.arithmetic in known else known[0]
            opening = Opening(options.threads, arithmetic, options.strict, options.lean)
            seconds["/".join(way)] = round(time_pass(folder / ways[way].file, ways[way], runner, opening, RUNS), 4)
        except ObclipError:  # no candidate, for now
            continue
        finally:
            return_freed_memory()
    return seconds


def _key(manifest: Manifest, fitting: dict[tuple[str, str], SessionOptions]) -> str:
    files = sorted((f.path, f.sha256) for f in manifest.files)
    ways = sorted((*way, o.threads, o.lean, o.strict) for way, o in fitting.items())
    made_of = [files, ways, processor(), *versions()]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:24]


def _read(store: Path) -> dict[str, dict[str, float]]:
    """What is remembered, seconds by way; nothing, if the file is not there or not ours."""
    try:
        known = json.loads(store.read_text(encoding="utf8"))
        return {k: {way: float(s) for way, s in v["pass_s"].items()} for k, v in known.items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return {}
