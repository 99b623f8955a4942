"""`--provider auto`: the quickest of what is installed here, measured once a bundle and machine and remembered."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from obclip.core.errors import InputError, ObclipError
from obclip.core.manifest import Manifest, Variant
from obclip.core.typed import build
from obclip.edge.graph_cache import LARGE_BYTES, versions
from obclip.edge.machine import processor, return_freed_memory
from obclip.edge.memory import fit
from obclip.edge.providers import Provider, available_providers, find
from obclip.edge.providers.base import Opening
from obclip.edge.remembered import digest, recall, remember
from obclip.edge.sessions import SessionOptions
from obclip.edge.timing import time_pass

RUNS = 2
_MEASURED_FROM_BYTES = LARGE_BYTES  # a small bundle's passes take less than a measurement would
_AGAIN_S = 7 * 86_400.0  # from when a way failed: it may work by now
_KIND = "choices"


@dataclass(frozen=True)
class Found:
    """Of each way, "provider/precision": pass_s, seconds of a whole pass; failed_at, when it last failed."""

    pass_s: dict[str, float] = field(default_factory=dict)
    failed_at: dict[str, float] = field(default_factory=dict)


def choose(
    folder: Path, manifest: Manifest, options: SessionOptions, note: Callable[[str], None] | None = None
) -> SessionOptions:
    """`options` with a provider (and precision, where that is "auto" too) in place of "auto".

    A whole pass of each provider and precision that the bundle has device graphs for is timed (median of two after a
    first), and the quickest kept in the user's cache folder, by the bundle's files, the processor and the versions
    installed; one that fails is said to, and tried again a week later. With a memory limit each runs as it would fit,
    and what does not fit is not opened. The CPU, unmeasured, if it is the only one or the bundle is small; and where
    nothing works. note(text) is called before anything is measured, and of each that fails.
    """
    ways = candidates(manifest, options, available_providers())
    small = sum(f.bytes for f in manifest.files) < _MEASURED_FROM_BYTES
    cpu = [way for way in ways if way[0] == "cpu"]
    if not ways or (cpu and (small or len(ways) == 1)):
        return replace(options, provider="cpu")
    fitting = _fitting(manifest, options, ways)
    key, tell = _key(manifest, fitting), note or (lambda text: None)
    known = _recall(key)
    missing = {way: how for way, how in fitting.items() if "/".join(way) not in known.pass_s | known.failed_at}
    if missing:
        tell(f"measuring once which is quickest here: {', '.join(' '.join(way) for way in missing)}")
        found = _measure(folder, missing, ways, tell)
        known = Found(known.pass_s | found.pass_s, known.failed_at | found.failed_at)
        with contextlib.suppress(ObclipError):  # without a place to remember it, it is measured again
            remember(_KIND, key, asdict(known))
    if not known.pass_s:
        return replace(options, provider="cpu")
    provider, precision = min(fitting, key=lambda way: known.pass_s.get("/".join(way), math.inf))
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
    folder: Path,
    wanted: dict[tuple[str, str], SessionOptions],
    ways: dict[tuple[str, str], Variant],
    tell: Callable[[str], None],
) -> Found:
    found = Found()
    for way, options in wanted.items():
        try:
            runner = find(options.provider)
            known = runner.arithmetics()
            arithmetic = options.arithmetic if options.arithmetic in known else known[0]
            opening = Opening(options.threads, arithmetic, options.strict, options.lean)
            taken = time_pass(folder / ways[way].file, ways[way], runner, opening, RUNS)
            found.pass_s["/".join(way)] = round(taken, 4)
        except ObclipError as error:
            found.failed_at["/".join(way)] = time.time()
            tell(f"{' '.join(way)} does not work here and is left out for {_AGAIN_S / 86_400:.0f} days: {error}")
        finally:
            return_freed_memory()
    return found


def _key(manifest: Manifest, fitting: dict[tuple[str, str], SessionOptions]) -> str:
    files = sorted((f.path, f.sha256) for f in manifest.files)
    ways = sorted((*way, o.threads, o.lean, o.strict) for way, o in fitting.items())
    return digest(files, ways, processor(), *versions())


def _recall(key: str) -> Found:
    """What is remembered, but failures of long ago; nothing, if it is not ours."""
    try:
        known: Found = build(Found, recall(_KIND, key))
    except ValueError:
        return Found()
    now = time.time()
    return Found(known.pass_s, {way: at for way, at in known.failed_at.items() if 0 <= now - at < _AGAIN_S})
