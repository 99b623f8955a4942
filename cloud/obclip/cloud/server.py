"""The process around the application: where it listens, how it goes down."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, start_http_server

from obclip.cloud.logs import Log
from obclip.cloud.service import Service
from obclip.core.errors import InputError, RunError
from obclip.core.files import atomic_write_bytes

log = Log("obclip.cloud.server")
_LAST_ANSWERS_S = 10.0  # for sending what is done, once nothing more is waited for


class Server(uvicorn.Server):
    """Serves until a signal, then drains: new requests get 503 while those let in are finished, within `drain_s`.

    Also ends when the engine is dead, after every client was told. A second SIGINT does not wait. ready_file: gets the
    URL once ready. After `run`: `interrupted` says whether the signal was SIGINT.
    """

    def __init__(
        self,
        app: FastAPI,
        listener: socket.socket,
        *,
        tls: tuple[Path, Path] | None = None,
        ready_file: Path | None = None,
        drain_s: float = 60.0,
    ) -> None:
        cert, key = tls or (None, None)
        super().__init__(
            uvicorn.Config(
                app, log_config=None, access_log=False, server_header=False, ws="none",
                timeout_graceful_shutdown=int(_LAST_ANSWERS_S), ssl_certfile=cert, ssl_keyfile=key,
            )
        )  # fmt: skip
        self.service: Service = app.state.service
        host, port = listener.getsockname()[:2]
        self.url = f"{'https' if tls else 'http'}://" + (f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        self.interrupted = False
        self._ready_file, self._drain_s, self._until_s = ready_file, drain_s, 0.0

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to go down. Raises what kept the application from starting, if anything did."""
        try:
            super().run(sockets)
        except SystemExit:  # uvicorn's, for an application that did not start
            raise self.service.failure or RunError("the server did not start; the lines above say why") from None
        except OSError as error:  # two that are bound and do not listen yet may have one port
            raise RunError(f"cannot listen at {self.url} ({error.strerror}); choose another port") from error

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(f"listening on {self.url}", flush=True)
            log.info("listening", url=self.url)
            if self._ready_file is not None:
                atomic_write_bytes(self._ready_file, self.url.encode())

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """uvicorn's hook for SIGTERM and SIGINT. It would close the port at once; here it stays open, for refusals."""
        if self.service.state == "draining" and sig == signal.SIGINT:
            self.should_exit = self.force_exit = True
        self.interrupted = self.interrupted or sig == signal.SIGINT
        self.service.drain()

    async def on_tick(self, counter: int) -> bool:
        """uvicorn's hook, ten times a second: whether to stop."""
        if await super().on_tick(counter):
            return True
        state, busy = self.service.state, self.service.in_flight
        if state not in ("draining", "dead"):
            return False
        if not self._until_s:
            log.info("draining", requests=busy, reason="dead" if state == "dead" else "signal")
            self._until_s = time.monotonic() + (_LAST_ANSWERS_S if state == "dead" else self._drain_s)
        if busy and time.monotonic() < self._until_s:
            return False
        if busy:
            log.warning("drain_timeout", requests=busy)
            await asyncio.get_running_loop().run_in_executor(None, self.service.engine.close, 0.0)
        return True


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to `host` and `port`. InputError for a port that is none, RunError for one that is taken."""
    if not 0 <= port <= 65535:
        raise InputError(f"port is {port}; it must be from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise RunError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another port, or 0 for any"
        ) from error
    return listener


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_tls(cert: Path | None, key: Path | None) -> tuple[Path, Path] | None:
    """Both or neither, and they fit together. InputError if not, before a model is loaded."""
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise InputError("TLS takes both --tls-cert and --tls-key")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{cert} and {key} are no certificate chain and its key, in PEM ({reason})") from error
    return cert, key


@contextlib.contextmanager
def metrics_server(port: int | None, registry: CollectorRegistry) -> Iterator[str | None]:
    """Metrics on a port of their own, on loopback alone, where no key is asked for: an agent on the machine reads them,
    nobody else can. Yields the URL. None serves none."""
    if port is None:
        yield None
        return
    listen("127.0.0.1", port).close()  # the same words for a port that is none or taken
    server, thread = start_http_server(port, "127.0.0.1", registry)
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
