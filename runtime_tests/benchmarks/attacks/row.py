"""One measured number of one attack, and the table of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .stats import wilson

Covered = Literal["theorem", "outside", "measured"]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    target: what is attacked. chance: the value an adversary without information would see, or None where there is no
    such value. n: independent trials behind `value`. low, high: its 95 % interval, where it is a rate.
    covered: "theorem" (must be at chance by closure and the rules around it), "outside" (the theorem makes no claim),
    "measured" (it depends on people, words or machines, so it is measured and reported). A baseline's row says what
    holds for ours at that place.
    """

    attack: str
    target: str
    metric: str
    value: float
    chance: float | None
    n: int
    covered: Covered
    note: str = ""
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def rate(
    attack: str, target: str, metric: str, hits: float, n: int, chance: float | None, covered: Covered, note: str = ""
) -> Row:
    """A row whose value is the share `hits` / `n`, with its 95 % interval."""
    return Row(attack, target, metric, hits / n if n else math.nan, chance, n, covered, note, *wilson(hits, n))


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text, attacks apart from one another."""
    lines = [_line("target", "metric", "value", "95 %", "chance", "n", "covered", "note")]
    attack = ""
    for row in rows:
        if row.attack != attack:
            attack = row.attack
            lines += ["", attack]
        interval = "" if row.low is None or row.high is None else f"{_number(row.low)}..{_number(row.high)}"
        chance = "" if row.chance is None else _number(row.chance)
        lines.append(
            _line(row.target, row.metric, _number(row.value), interval, chance, str(row.n), row.covered, row.note)
        )
    return "\n".join(lines)


def _line(target: str, metric: str, value: str, interval: str, chance: str, n: str, covered: str, note: str) -> str:
    return f"  {target:34} {metric:46} {value:>8} {interval:>13} {chance:>8} {n:>6}  {covered:9} {note}".rstrip()


def _number(value: float) -> str:
    if value != value:
        return "-"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value)) if abs(value) >= 10 or value == 0 else f"{value:.3f}"
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3f}"
