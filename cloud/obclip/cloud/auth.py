"""Who is asking: the bearer token of a request to a client."""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from obclip.cloud.keys import Key, digest_of, read_keys
from obclip.cloud.limits import Rate
from obclip.cloud.logs import Log
from obclip.core.errors import InputError

log = Log("obclip.cloud.auth")
_LOOK_EVERY_S = 1.0


@dataclass(frozen=True)
class Client:
    """name: of its key. denoise, metrics: what it may do."""

    name: str
    rate: Rate = field(default_factory=Rate)
    denoise: bool = True
    metrics: bool = True


ANONYMOUS = Client("anonymous")


class Authenticator:
    """Takes one token (which may do everything), the keys of a file, both, or, with neither, anybody.

    The file is looked at again every second at most, so that keys are added and revoked without a restart; one that has
    become unreadable changes nothing, is said in the log, and is tried again. InputError if it cannot be read at first.
    """

    def __init__(
        self, token: str | None = None, keys: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._token = None if not token else digest_of(token)
        self._path, self._clock, self._lock = keys, clock, threading.Lock()
        self._stamp, self._looked_s = self._state(), clock()  # before reading: a change meanwhile is seen next time
        self._unreadable = self._stamp  # of the last file that could not be read, and was said
        self._keys: tuple[Key, ...] = () if keys is None else read_keys(keys)

    @property
    def open(self) -> bool:
        """Whether anybody is served."""
        return self._token is None and self._path is None

    def client(self, authorization: str) -> Client | None:
        """Whom the value of an Authorization header belongs to; None if nobody.

        What is compared are digests, every one of them in constant time, whether or not an earlier one fits: how long
        it takes says nothing about a key.
        """
        if self.open:
            return ANONYMOUS
        scheme, _, secret = authorization.partition(" ")
        given, found = digest_of(secret.strip()), None
        if self._token is not None and hmac.compare_digest(given, self._token):
            found = Client("(token)")  # no key has such a name
        for key in self._current():
            if hmac.compare_digest(given, key.digest):
                found = Client(key.name, key.rate, denoise=not key.metrics, metrics=key.metrics)
        return found if scheme.lower() == "bearer" else None

    def _current(self) -> tuple[Key, ...]:
        with self._lock:
            now = self._clock()
            if self._path is not None and now - self._looked_s >= _LOOK_EVERY_S:
                self._looked_s = now
                stamp = self._state()
                if stamp != self._stamp:
                    try:
                        self._keys = read_keys(self._path)
                        self._stamp = stamp
                        log.info("keys_read", keys=len(self._keys))
                    except InputError:
                        if stamp != self._unreadable:
                            log.error("keys_unreadable", kept=len(self._keys))
                        self._unreadable = stamp
            return self._keys

    def _state(self) -> tuple[int, int, int] | None:
        try:
            found = None if self._path is None else self._path.stat()
        except OSError:
            return None
        return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)
