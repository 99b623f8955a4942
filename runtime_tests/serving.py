"""The real server around an application, in a thread of the test's process, on a real socket of loopback."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from obclip.cloud.server import Server, listen

LIMIT_S = 30.0


@dataclass
class Serving:
    url: str
    server: Server
    thread: threading.Thread

    def terminate(self, sig: int = signal.SIGTERM) -> None:
        """What the process does when it gets the signal."""
        self.server.handle_exit(sig, None)

    def wait(self) -> None:
        """Until it has gone down by itself."""
        self.thread.join(LIMIT_S)
        assert not self.thread.is_alive()


@contextmanager
def serving(app: Any, tls: tuple[Path, Path] | None = None, drain_s: float = 20.0) -> Iterator[Serving]:
    with listen("127.0.0.1", 0) as listener:
        server = Server(app, listener, tls=tls, drain_s=drain_s)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        until(lambda: server.started or not thread.is_alive())
        try:
            yield Serving(server.url, server, thread)
        finally:
            server.should_exit = True
            thread.join(LIMIT_S)


def until(condition: Callable[[], object]) -> None:
    """Wait for `condition`, within a limit."""
    limit = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.005)  # polling a condition, bounded above
