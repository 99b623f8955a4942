"""How much of each attack is run. Everything is drawn from `seed`, except what a clock says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """captions: photo captions read at most. users: simulated users. runs: timed requests per N.

    drawings: prompts drawn through the embedded pair. marks: marks told apart. fuzz: altered mentions of each kind.
    """

    seed: int = 1
    captions: int = 6000
    users: int = 4000
    runs: int = 1200
    drawings: int = 12
    marks: int = 10
    fuzz: int = 400


FULL = Settings()
QUICK = Settings(captions=1500, users=1000, runs=200, drawings=3, marks=6, fuzz=150)
