"""Which layers stay float: each group's damage is measured alone, the worst groups' layer by layer, and what is worst
for its cost is left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from obclip.core.errors import VerificationError
from obclip.export.quantise.graph import Feed, Layer, groups, layers, load_graph, run, session
from obclip.export.quantise.qdq import insert
from obclip.export.quantise.ranges import Range, macs
from obclip.export.quantise.verdict import CONDITIONING_TOLERANCE, Verdict

GROUPS = 40
_LITTLE = 0.01  # of all noise: groups that add no more together are not looked into
_NOISY = 8.0  # times its share of the work: what a group may add of the error before it is left float at once
_ROUNDS = 6
_LEAST_SHARE = 0.5
_HEADROOM_DB = 0.5
_OVERSHOOT_DB = 2.0


@dataclass(frozen=True)
class Damage:
    """What quantising `layers` alone does. noise: squared error of the output over its power; share: of the work."""

    layers: tuple[str, ...]
    noise: float
    share: float


@dataclass(frozen=True)
class Choice:
    """excluded: names of layers that stay float. share: of the multiply-accumulates that are quantised.

    table: damage of every group, worst for its cost first. rounds: verdict and number of layers left out, each try.
    """

    excluded: tuple[str, ...]
    share: float
    verdict: Verdict
    table: tuple[Damage, ...]
    rounds: tuple[tuple[int, Verdict], ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "quantised_share": round(self.share, 4),
            "float_layers": list(self.excluded),
            **self.verdict.to_dict(),
            "tries": [{"float_layers": count} | verdict.to_dict() for count, verdict in self.rounds],
            "sensitivity": [
                asdict(d) | {"noise": float(f"{d.noise:.3g}"), "share": float(f"{d.share:.3g}")} for d in self.table
            ],
        }


def damage(
    source: Path, ranges: Mapping[str, Range], feeds: Sequence[Feed], target: str, at_most: int = GROUPS
) -> list[Damage]:
    """Quantise one group at a time, then each layer of the worst groups; layers with the same input go together.

    Noise is that on the first output, the mean over `feeds`. Worst for its cost first. In most groups that are bad one
    layer is, and its neighbours need not stay float with it: at most half as many measurements more are made.
    """
    reference = session(source)
    name = reference.get_outputs()[0].name
    wanted = [run(reference, feed, [name])[name].astype(np.float64) for feed in feeds]
    del reference
    work = macs(source, feeds[0])
    total = sum(work.values())
    found = layers(load_graph(source))

    def measured(group: tuple[Layer, ...]) -> Damage:
        noise = _noise(source, ranges, group, feeds, wanted, target, name)
        return Damage(tuple(x.name for x in group), noise, sum(work[x.name] for x in group) / total)

    rest = _worst_first([measured(group) for group in groups(found, at_most)])
    little, single, spent = _LITTLE * sum(d.noise for d in rest), list[Damage](), 0
    while spent < at_most // 2 and sum(d.noise for d in rest) > little:
        bad = rest.pop(0)
        parts = groups([layer for layer in found if layer.name in bad.layers], len(found))
        if len(parts) > 1:
            spent += len(parts)
            single += [measured(part) for part in parts]
        else:
            single.append(bad)
    return _worst_first([*single, *rest])


def _worst_first(found: Sequence[Damage]) -> list[Damage]:
    return sorted(found, key=lambda d: d.noise / d.share, reverse=True)


def _noise(
    source: Path, ranges: Mapping[str, Range], group: tuple[Layer, ...], feeds: Sequence[Feed],
    wanted: Sequence[np.ndarray], target: str, name: str,
) -> float:  # fmt: skip
    model = load_graph(source)
    insert(model, ranges, {layer.name for layer in group}, target)
    sess = session(model, source.parent)
    errors = [
        float(np.mean((run(sess, feed, [name])[name] - w) ** 2) / np.mean(w**2))
        for feed, w in zip(feeds, wanted, strict=True)
    ]
    return float(np.mean(errors))


def choose(table: Sequence[Damage], judge: Callable[[tuple[str, ...]], Verdict], floor_db: float) -> Choice:
    """Leave out cheap and noisy groups at once, then as many more as the floor takes; errors of groups add up, roughly.

    Where they do not, and what met the floor is far above it, fewer are tried, halfway to what did not meet it.
    judge(excluded) measures the whole. VerificationError if six tries do not meet the floor, or less than half
    of the work could be quantised.
    """
    total = sum(d.noise for d in table)
    count = sum(d.noise / total > _NOISY * d.share for d in table) if total > 0 else 0  # the table begins with them
    below, best, floats = -1, None, 0.0
    rounds: list[tuple[int, Verdict]] = []
    while len(rounds) < _ROUNDS and (share := sum(d.share for d in table[count:])) >= _LEAST_SHARE:
        excluded = tuple(name for d in table[:count] for name in d.layers)
        verdict = judge(excluded)
        rounds.append((len(excluded), verdict))
        floats = max(1 - share, 0.0)
        if verdict.meets(floor_db):
            best = Choice(excluded, share, verdict, tuple(table), ())
            above = count
            if below < 0 or verdict.psnr_db < floor_db + _OVERSHOOT_DB:
                break
        else:
            below = count
        if best is None:
            allowed = sum(d.noise for d in table[count:]) * 10 ** (-_gap_db(verdict, floor_db) / 10)
            while count < len(table) and sum(d.noise for d in table[count:]) > allowed:
                count += 1
        elif above - below > 1:
            count = (above + below) // 2
        else:
            break
    if best is not None:
        return replace(best, rounds=tuple(rounds))
    raise VerificationError(_gave_up(rounds, floats, floor_db))


def _gave_up(rounds: Sequence[tuple[int, Verdict]], floats: float, floor_db: float) -> str:
    """floats: share of the work that was float in the last try."""
    if not rounds:
        return "this graph has no layers that int8 could take; leave int8 out"
    last = rounds[-1][1]
    ended = f"these were {_ROUNDS} tries" if len(rounds) == _ROUNDS else "a further try would leave over half of it so"
    return (
        f"with {floats:.0%} of the work left in float32 int8 pictures are still {last.psnr_db:.1f} dB from float32's "
        f"(wanted {floor_db:g}), the response to the text {last.conditioning:.3f} of theirs (wanted 1 within 5 %), and "
        f"{ended}; ask for less (--picture-psnr), calibrate with more prompts, or leave int8 out"
    )


def _gap_db(verdict: Verdict, floor_db: float) -> float:
    """By how much the error must fall. What it adds to a response goes with its power as well."""
    deaf = abs(verdict.conditioning - 1) / CONDITIONING_TOLERANCE
    return max(floor_db - verdict.psnr_db, 10 * np.log10(max(deaf, 1.0)), 0.0) + _HEADROOM_DB
