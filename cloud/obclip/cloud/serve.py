"""The server process: uvicorn around the application, loopback by default. `obclip serve` and this module run it."""

from __future__ import annotations

import argparse
import ipaddress
import os
import socket
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import uvicorn

from obclip.cloud.app import Limits, create_app
from obclip.cloud.model import load_model
from obclip.core.errors import InputError, ObclipError, RunError
from obclip.core.files import atomic_write_bytes
from obclip.core.pairs import load_pair

DRAIN_S = 60


@dataclass(frozen=True)
class ServeOptions:
    """model: a diffusers folder in place of the pair's. port 0: any free one. ready_file: gets the URL once ready.

    token: wanted of every client, and without it only loopback is served; by default from OBCLIP_TOKEN.
    """

    pair: str = "emoji"
    model: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8250
    device: str | None = None
    dtype: str | None = None
    max_candidates: int = 64
    max_rows: int = 64
    max_waiting: int = 8
    token: str | None = None
    ready_file: Path | None = None


def run_server(options: ServeOptions) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in work and return. ObclipError for what cannot be served."""
    token = options.token or os.environ.get("OBCLIP_TOKEN")
    if not _is_loopback(options.host) and not token:
        raise InputError(f"host {options.host} is reachable from outside; set a token (OBCLIP_TOKEN), or use 127.0.0.1")
    pair = load_pair(options.pair)
    listener = _listen(options.host, options.port)
    model = load_model(pair, options.device, options.dtype, options.model)
    limits = Limits(max_candidates=options.max_candidates, max_rows=options.max_rows, max_waiting=options.max_waiting)
    app = create_app(model, pair, limits, token, version("obclip"))
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=DRAIN_S
    )
    _Server(config, listener, options.ready_file).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Says where it listens once it is ready."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket, ready_file: Path | None) -> None:
        super().__init__(config)
        host, port = listener.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self.ready_file = ready_file

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(f"listening on {self.url}", flush=True)
            if self.ready_file is not None:
                atomic_write_bytes(self.ready_file, self.url.encode())


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise InputError(f"port is {port}; it must be from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise RunError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another port, or 0 for any"
        ) from error
    return listener


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m obclip.cloud.serve", description=__doc__)
    parser.add_argument("--pair", default="emoji")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8250)
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--ready-file", type=Path)
    try:
        run_server(ServeOptions(**vars(parser.parse_args())))
    except ObclipError as error:
        print(f"obclip serve: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
