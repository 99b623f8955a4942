"""Ways to draw, by where the steps run, and what each of them tells the cloud."""

from __future__ import annotations

from obclip.core.errors import InputError
from obclip.edge.oblivious import CandidateSet

OBLIVIOUS, HYBRID, SERVER, DEVICE = "oblivious", "hybrid", "server", "device"
REVEALS = {
    OBLIVIOUS: "the cloud reads all candidates, not which of them is meant",
    HYBRID: "the cloud reads this prompt as it is, and sees the picture take shape",
    SERVER: "the cloud reads this prompt as it is, and can see the finished picture",
    DEVICE: "nothing leaves this device",
}
MODES = tuple(REVEALS)


def check_mode(mode: str) -> str:
    """InputError for a mode that is none."""
    if mode not in MODES:
        raise InputError(f"mode is {mode!r}; choose one of {', '.join(MODES)}")
    return mode


def reveals(mode: str, candidates: CandidateSet, finished: bool = False) -> str:
    """What the cloud learns of such a job. Where nothing is hidden, candidates tell what mode hybrid does, and either
    what mode server does where the cloud runs all steps, so that pictures leave it `finished`."""
    if mode == OBLIVIOUS and not candidates.attributes:
        mode = HYBRID
    return REVEALS[SERVER if mode == HYBRID and finished else mode]


def in_the_clear(prompt: str) -> CandidateSet:
    """A set of this prompt alone: nothing of it is hidden."""
    return CandidateSet((prompt,), 0, {}, ("the whole prompt",), ({},), prompt)
