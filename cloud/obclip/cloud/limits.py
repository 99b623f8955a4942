"""What one request may ask for, and how much a client may ask for in a minute."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from obclip.core.errors import InputError
from obclip.core.wire import MAX_PROMPT_CHARS


@dataclass(frozen=True)
class Limits:
    """max_rows: rows (candidates x branches) in one UNet pass. max_held_rows: of all requests in work, whose kept
    features are in memory; a request holds as many as its widest pass has. max_waiting, max_waiting_rows: requests, and
    rows of them, that may wait; one may always.

    What waits counts in the step engine as it is held, in the serial one with the rows of its whole plan.
    queue_timeout_s: until a request's turn. service_timeout_s: from then on. body_timeout_s: for a client to send its
    request. InputError for limits that would serve nobody, or not the widest requests.
    """

    max_candidates: int = 64
    max_rows: int = 64
    max_steps: int = 100
    max_held_rows: int = 256
    max_waiting: int = 32
    max_waiting_rows: int = 1024
    queue_timeout_s: float = 60.0
    service_timeout_s: float = 120.0
    body_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith("_s"):
                if not 0 < value < math.inf:
                    raise InputError(f"{name} is {value}; it must be more than 0 seconds")
            elif value < 1:
                raise InputError(f"{name} is {value}; it must be 1 or more")
        if self.max_held_rows < self.max_rows:
            raise InputError(
                f"max_held_rows is {self.max_held_rows}, less than one request may hold: max_rows, {self.max_rows}; "
                "raise max_held_rows or lower max_rows"
            )

    @property
    def max_body_bytes(self) -> int:
        return 4096 + (self.max_candidates + 1) * MAX_PROMPT_CHARS * 4


@dataclass(frozen=True)
class Rate:
    """What a client may use in a minute; None is without limit. rows: UNet evaluations, as plans count them."""

    requests_per_minute: int | None = None
    rows_per_minute: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"{name} is {value!r}; it must be a whole number from 1, or left out")


class TokenBucket:
    """Holds what a minute allows, and is full at first; fills up at an even rate. clock: monotonic seconds.

    A cost that is more than the whole bucket needs a full one and leaves it in debt, so that the rate holds in the long
    run and no request is impossible.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.capacity, self._rate, self._clock = float(per_minute), per_minute / 60.0, clock
        self._level, self._at_s = self.capacity, clock()
        self._lock = threading.Lock()

    def take(self, cost: float) -> float:
        """0 if `cost` was taken; else nothing was, and in so many seconds it can be, if nobody else comes first."""
        with self._lock:
            now = self._clock()
            self._level = min(self.capacity, self._level + (now - self._at_s) * self._rate)
            self._at_s = now
            missing = min(cost, self.capacity) - self._level
            if missing > 1e-9:  # what rounding leaves of a wait that was over
                return missing / self._rate
            self._level -= cost
            return 0.0

    def give_back(self, cost: float) -> None:
        """Undo a `take` that came to nothing."""
        with self._lock:
            self._level = min(self.capacity, self._level + cost)


class RateLimiter:
    """Two buckets for each client that has limits. A client whose limits change starts with full buckets."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, tuple[Rate, TokenBucket | None, TokenBucket | None]] = {}
        self._lock = threading.Lock()

    def take_request(self, client: str, rate: Rate) -> float:
        """0 if the client may make a request now, else the seconds until it may."""
        bucket = self._of(client, rate)[0]
        return 0.0 if bucket is None else bucket.take(1)

    def take_rows(self, client: str, rate: Rate, rows: int) -> float:
        """As `take_request`, for a request of so many rows."""
        bucket = self._of(client, rate)[1]
        return 0.0 if bucket is None else bucket.take(rows)

    def give_back_request(self, client: str, rate: Rate) -> None:
        """Undo `take_request`, for a request that was not let in."""
        bucket = self._held(client, rate)[0]
        if bucket is not None:
            bucket.give_back(1)

    def give_back_rows(self, client: str, rate: Rate, rows: int) -> None:
        bucket = self._held(client, rate)[1]
        if bucket is not None:
            bucket.give_back(rows)

    def _held(self, client: str, rate: Rate) -> tuple[TokenBucket | None, TokenBucket | None]:
        """None if the client's limits are others by now: nothing was taken from the buckets of those."""
        with self._lock:
            known = self._buckets.get(client)
        return (None, None) if known is None or known[0] != rate else known[1:]

    def _of(self, client: str, rate: Rate) -> tuple[TokenBucket | None, TokenBucket | None]:
        with self._lock:
            known = self._buckets.get(client)
            if known is None or known[0] != rate:
                requests, rows = (
                    None if n is None else TokenBucket(n, self._clock)
                    for n in (rate.requests_per_minute, rate.rows_per_minute)
                )
                known = self._buckets[client] = (rate, requests, rows)
            return known[1], known[2]


def retry_after(seconds: float) -> dict[str, str]:
    """The header that says when to come back: whole seconds, never too early, at least 1."""
    return {"Retry-After": str(max(1, math.ceil(seconds - 1e-6)))}
