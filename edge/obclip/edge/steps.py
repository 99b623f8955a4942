"""What each of the device's steps evaluates, as plain data: the whole UNet or its outermost layers, with or without
the unconditional branch.

Cached steps: deep features change little from one step to the next, so that a shallow pass may run on those that an
earlier whole one left (DeepCache, Ma et al. 2024, arXiv 2312.00858). Late guidance: near the end the branches agree,
and one suffices (Castillo et al. 2023, arXiv 2312.12487). Both are off for a pair on which they were not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from obclip.core.errors import InputError
from obclip.core.pairs import Pair, load_pair
from obclip.edge.modes import HYBRID, OBLIVIOUS


@dataclass(frozen=True)
class DeviceStep:
    """index: of the solver's step. shallow: on the features of the last whole pass. guided: both branches run."""

    index: int
    shallow: bool = False
    guided: bool = True


@dataclass(frozen=True)
class Saving:
    """every: of so many steps one is whole, 1 for all. guided_share: of the steps, from the first, that are guided."""

    every: int = 1
    guided_share: float = 1.0

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"every (--whole-every) is {self.every}; wanted 1 or more")
        if not 0 <= self.guided_share <= 1:
            raise InputError(f"guided_share (--guided-share) is {self.guided_share}; wanted 0 to 1")

    def __str__(self) -> str:
        """As `generate` names it: "plain", or what is saved."""
        said = [f"one step in {self.every} whole"] if self.every > 1 else []
        said += [f"guided for {self.guided_share:.0%} of the steps"] if self.guided_share < 1 else []
        return ", ".join(said) or "plain"


PLAIN = Saving()
# By pair: the quickest that kept attributes within 0.02 and 36 dB on that pair (docs/results/device_steps.json)
_MEASURED: dict[str, Saving] = {"emoji": Saving(2, 0.6)}


def default_saving(pair: Pair, mode: str = OBLIVIOUS) -> Saving:
    """What was measured to do no harm on this pair, behind a cloud's steps; plain where nothing was."""
    if pair.name not in _MEASURED or mode not in (OBLIVIOUS, HYBRID):
        return PLAIN
    same = pair == replace(load_pair(pair.name), policy=pair.policy)  # a file of one's own may bear the name
    return _MEASURED[pair.name] if same else PLAIN


def plan_steps(start: int, stop: int, saving: Saving = PLAIN, can_be_shallow: bool = True) -> tuple[DeviceStep, ...]:
    """Steps start..stop-1. The first and the last are whole. can_be_shallow: whether the bundle has such graphs."""
    count = stop - start
    guided = round(saving.guided_share * count)
    return tuple(
        DeviceStep(
            index=start + i,
            shallow=can_be_shallow and 0 < i < count - 1 and i % saving.every != 0,
            guided=i < guided,
        )
        for i in range(count)
    )


def passes(steps: Sequence[DeviceStep], guided: bool = True) -> tuple[int, int]:
    """How many whole and how many shallow passes they take. guided: False where the scale is 1 and none is."""
    whole = sum((2 if s.guided and guided else 1) for s in steps if not s.shallow)
    return whole, sum((2 if s.guided and guided else 1) for s in steps if s.shallow)
