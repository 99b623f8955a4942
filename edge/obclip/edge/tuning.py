"""`obclip bench --tune`: threads, spinning and the arena, measured on a bundle's whole pass and remembered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from obclip.core.cores import usable_cores
from obclip.core.errors import InputError, RunError
from obclip.core.manifest import Manifest, Variant
from obclip.core.typed import Least, build
from obclip.edge import remembered
from obclip.edge.graph_cache import versions
from obclip.edge.machine import processor
from obclip.edge.providers import available_providers
from obclip.edge.providers.base import Opening, Provider
from obclip.edge.timing import time_passes

_RUNS, _SETTING_S = 5, 1.0  # of each setting, at least: a median of passes of a millisecond takes many
_GAIN = 0.03  # of the time before: what is less of a gain is worth nothing
_KIND = "tuned"
AS_IT_COMES = "as it comes"


@dataclass(frozen=True)
class Tuned:
    """What a session is opened with. pass_s: setting -> seconds of a whole pass, the median, in the order they were
    tried. spread: how far such medians lie apart without a change, as a share of the time as it comes.
    """

    threads: Annotated[int, Least(1)] | None
    spinning: bool
    arena: bool
    pass_s: dict[str, float]
    spread: float

    def apply(self, opening: Opening) -> Opening:
        """`opening` with these, but where it was asked for otherwise."""
        threads = self.threads if opening.threads is None else opening.threads
        return replace(opening, threads=threads, spinning=self.spinning, arena=self.arena)

    def told(self, threads: int | None = None) -> list[str]:
        """What it changes, in words, where so many threads were asked for: ["tuned (threads 1, no arena)"], or []."""
        said = [f"threads {self.threads}"] * (self.threads is not None and threads is None)
        said += ["no spinning"] * (not self.spinning) + ["no arena"] * (not self.arena)
        return [f"tuned ({', '.join(said)})"] * bool(said)


def tune(folder: Path, manifest: Manifest, variant: Variant | None, provider: Provider, opening: Opening) -> Tuned:
    """Opens and times the whole pass in one setting after the other, and remembers what gained in the user's cache
    folder, where `Bundle.open` looks; if nothing did, forgets what was there. InputError: a bundle without device
    graphs. RunError: the cache folder cannot be written.

    Only ONNX Runtime's CPU has spinning and an arena; of others threads alone are tried.
    """
    if variant is None:
        raise InputError("this bundle has no device graphs to tune for; export it again with --targets")
    path = folder / variant.file
    found = search(provider.name, opening, lambda o: time_passes(path, variant, provider, o, _RUNS, _SETTING_S))
    key = _key(manifest, variant, provider, opening.arithmetic)
    if found.told():
        remembered.remember(_KIND, key, asdict(found))
    else:
        _forget(key)
    return found


def search(provider: str, opening: Opening, measure: Callable[[Opening], Sequence[float]]) -> Tuned:
    """measure: seconds of each of several passes in a setting.

    A setting is kept on top of those before if it gains 3 % and more than one setting's passes spread. The first is
    measured when the machine is cold, and so again in the end, as is what gained: the worse of its two medians must be
    as much below the better of those as it comes, and more than these differ.
    """
    best, (first, spread) = opening, _judge(measure(opening))
    tried, before, best_spread = {AS_IT_COMES: first}, first, spread
    for change in _changes(provider):
        candidate = replace(best, **change)
        seconds, seen = _judge(measure(candidate))
        tried[", ".join(f"{name} {value}" for name, value in change.items())] = seconds
        if before - seconds > max(_GAIN * before, best_spread, seen):
            best, before, best_spread = candidate, seconds, seen
    again, seen = _judge(measure(opening))
    plain = tried[AS_IT_COMES] = min(first, again)
    spread = max(spread, seen, abs(first - again))
    if best != opening:  # of many, one may have been lucky
        seconds, seen = _judge(measure(best))
        spread = max(spread, best_spread, seen)
        if plain - max(before, seconds) <= max(_GAIN * plain, spread):
            best = opening
    pass_s = {name: round(seconds, 6) for name, seconds in tried.items()}
    threads = None if best.threads == opening.threads else best.threads  # what was asked for is no finding
    return Tuned(threads, best.spinning, best.arena, pass_s, round(spread / plain, 4))


def recall(manifest: Manifest, variant: Variant, provider: Provider, arithmetic: str) -> Tuned | None:
    """What was found for this graph, provider, processor and versions; None if nothing was."""
    try:
        found: Tuned = build(Tuned, remembered.recall(_KIND, _key(manifest, variant, provider, arithmetic)))
    except ValueError:
        return None
    return found


def untune(manifest: Manifest) -> int:
    """Forgets what was found for the bundle on this machine, with any provider; how many entries there were.

    RunError if they cannot be removed.
    """
    graphs = [v for v in manifest.variants if v.component == "unet" and v.role in ("full", "whole")]
    providers = available_providers().values()
    keys = {_key(manifest, v, p, arithmetic) for v in graphs for p in providers for arithmetic in p.arithmetics()}
    return sum(_forget(key) for key in keys)


def _forget(key: str) -> bool:
    try:
        return remembered.forget(_KIND, key)
    except OSError as error:
        raise RunError(f"what was tuned cannot be forgotten ({error.strerror}): {error.filename}") from error


def _changes(provider: str) -> list[dict[str, Any]]:
    threads = [{"threads": count} for count in range(usable_cores(), 0, -1)]
    return [*threads, {"spinning": False}, {"arena": False}] if provider == "cpu" else list(threads)


def _judge(passes: Sequence[float]) -> tuple[float, float]:
    """The median, and how far those of five stretches of the passes lie apart: seconds."""
    medians = [float(np.median(part)) for part in np.array_split(passes, min(5, len(passes)))]
    return float(np.median(passes)), max(medians) - min(medians)


def _key(manifest: Manifest, variant: Variant, provider: Provider, arithmetic: str) -> str:
    file = next(f.sha256 for f in manifest.files if f.path == variant.file)
    return remembered.digest(file, provider.full_name, arithmetic, processor(), str(usable_cores()), *versions())
