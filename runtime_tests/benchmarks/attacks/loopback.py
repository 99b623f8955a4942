"""A cloud that answers at once, on a real socket of this machine, and a device that skips only the neural network."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obclip.core.pairs import Pair, load_pair
from obclip.core.schedule import SOLVERS
from obclip.core.wire import CAPABILITIES_PATH, PROTOCOL, Capabilities, Request, Response
from obclip.edge import Bundle

MODEL = "a" * 64
Answer = Callable[[Request], bytes]


@dataclass
class Seen:
    """One request as the cloud sees it; times in seconds of one clock, the answer's when its last byte was written."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    arrived_s: float
    answered_s: float = 0.0


@dataclass
class Log:
    """requests, and when their connections ended. `ended` is set each time one does."""

    requests: list[Seen] = field(default_factory=list)
    closed_s: list[float] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def clear(self) -> None:
        self.requests.clear()
        self.closed_s.clear()
        self.ended.clear()


class QuickBundle(Bundle):
    """The embedded bundle with its real tokenizer, schedule and text encoder; UNet and decoder answer with zeros."""

    def variant(self, component: str, role: str) -> None:
        return None  # no device graphs: every pass is a whole one

    def session(self, component: str, role: str = "whole") -> Any:
        return super().session(component, role) if component == "text_encoder" else _Zeros(self)


@dataclass(frozen=True)
class _Zeros:
    bundle: Bundle

    def run(self, **inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        if "sample" in inputs:
            return {"out_sample": np.zeros_like(inputs["sample"])}
        m = self.bundle.manifest
        return {"sample": np.zeros((1, 3, m.height, m.width), np.float32)}


def quick_bundle() -> QuickBundle:
    bundle = QuickBundle.open("emoji")
    assert isinstance(bundle, QuickBundle)
    bundle.encode("")
    return bundle


def capabilities(bundle: Bundle, pair: Pair) -> bytes:
    return Capabilities(
        protocol=PROTOCOL, version="0", pair_name=pair.name, pair=pair.digest, model=MODEL, solvers=SOLVERS,
        schedule_config=bundle.manifest.schedule_config, height=pair.height, width=pair.width,
        latent_channels=pair.latent_channels, latent_downscale=pair.latent_downscale, max_candidates=64, max_steps=100,
        max_tokens=bundle.manifest.max_tokens, max_body_bytes=10**6,
    ).encode()  # fmt: skip


def random_answer(bundle: Bundle, pair: Pair, seed: int) -> Answer:
    """Valid answers whose latents are noise: the same bytes for the same number of candidates."""
    made: dict[tuple[int, int, str, int], bytes] = {}

    def answer(request: Request) -> bytes:
        key = (len(request.candidates), request.handoff, request.solver, request.steps)
        if key not in made:
            rng = np.random.default_rng([seed, key[0]])
            latents = rng.standard_normal((key[0], *pair.latent_shape)).astype(np.float16)
            schedule = bundle.schedule(request.solver, request.steps).digest
            x0 = latents if request.want_x0 else None
            made[key] = Response(latents, x0, request.handoff, schedule, MODEL).encode()
        return made[key]

    return answer


@contextmanager
def loopback_cloud(bundle: Bundle, answer: Answer) -> Iterator[tuple[str, Log]]:
    """HTTP/1.1 with kept connections, as the real server speaks it; yields its URL and what it sees."""
    offer, log = capabilities(bundle, load_pair("emoji")), Log()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def do_GET(self) -> None:
            self._answer(b"", offer if self.path == CAPABILITIES_PATH else b"{}")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            self._answer(body, answer(Request.decode(body)))

        def _answer(self, body: bytes, reply: bytes) -> None:
            seen = Seen(self.command, self.path, tuple(self.headers.items()), body, time.perf_counter())
            log.requests.append(seen)
            self.send_response_only(200)
            self.send_header("content-length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)
            self.wfile.flush()
            seen.answered_s = time.perf_counter()

        def finish(self) -> None:
            log.closed_s.append(time.perf_counter())
            super().finish()
            log.ended.set()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", log
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
