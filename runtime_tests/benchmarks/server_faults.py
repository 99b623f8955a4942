"""What clients see when things break: a real server under load, one fault at a time.

    python -m runtime_tests.benchmarks.server_faults --json docs/results/server_faults.json

Loopback, the embedded pair. Half of the requests come from a plain HTTP client that tries once, half from the device's
`Client`, which sends the same bytes again where that helps. Answers are compared with those of a server at peace.
Exit code 1 if anybody saw what the table in `SCENARIOS` does not allow.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any

import httpx
import numpy as np

from obclip.core.errors import CloudError
from obclip.core.files import atomic_write_bytes
from obclip.core.pairs import load_pair
from obclip.core.problems import Problem
from obclip.core.wire import DENOISE_PATH, Request, Response
from obclip.edge import Bundle, Client
from obclip.edge.machine import machine

from .server_fidelity import candidate_sets, request_for

PAIR = load_pair("emoji")
SIZES = (2, 6, 2, 10)  # candidates of successive requests
K = 4
JSON = {"content-type": "application/json"}
TOLERANCE = 0.02  # of latents, in their own scale: float16 answers of batches that differ
START_S, LIMIT_S = 120.0, 90.0


class Process:
    """`faulty_server`, ended by its own id."""

    def __init__(self, folder: Path, arguments: list[str], port: int = 0) -> None:
        ready = folder / f"ready-{time.monotonic_ns()}"
        command = [sys.executable, "-m", "runtime_tests.benchmarks.faulty_server", "--ready-file", str(ready)]
        with (folder / "log").open("ab") as log:
            self.process = subprocess.Popen([*command, "--port", str(port), *arguments], stdout=log, stderr=log)
        limit = time.monotonic() + START_S
        while not ready.exists():
            if self.process.poll() is not None or time.monotonic() > limit:
                self.process.kill()
                raise RuntimeError(f"the server did not start:\n{(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)  # polling a condition, bounded above
        self.url = ready.read_text()

    def end(self) -> int:
        """Its exit code, after SIGTERM if it still runs."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=LIMIT_S)


@dataclass
class Seen:
    """plain, device: what each client saw, and how often. error: the largest difference of an answer from that of a
    server at peace. goes_on: whether the next request was answered; None if the server is meant to be gone."""

    name: str
    plain: Counter[str] = field(default_factory=Counter)
    device: Counter[str] = field(default_factory=Counter)
    error: float = 0.0
    goes_on: bool | None = None
    exit_code: int | None = None
    seconds: float = 0.0
    note: str = ""


class Load:
    """`count` requests, `at_once` at a time; `answered` counts those that ended."""

    def __init__(self, count: int, at_once: int) -> None:
        sets = [candidate_sets(n, 1, i)[0] for i, n in enumerate(SIZES)]
        self.requests = [request_for(PAIR, sets[i % len(sets)].prompts, K, i) for i in range(count)]
        self.at_once, self.reference = at_once, dict[int, np.ndarray]()
        self.schedule = Bundle.open("emoji", verify=False).schedule(PAIR.solver, PAIR.steps)
        self.answered = threading.Semaphore(0)
        self.devices: Queue[Client] = Queue()

    def run(self, url: str, seen: Seen) -> None:
        """The devices are there, and have shaken hands, before the load begins."""
        with ThreadPoolExecutor(self.at_once) as pool, ExitStack() as open_clients:
            for _ in range(self.at_once):
                client = open_clients.enter_context(Client(url, timeout_s=LIMIT_S, patience_s=20.0))
                client.capabilities()
                self.devices.put(client)
            list(pool.map(lambda i: self._one(url, i, seen), range(len(self.requests))))

    def _one(self, url: str, i: int, seen: Seen) -> None:
        request = self.requests[i]
        try:
            latents, what = self._device(request) if i % 2 else self._plain(url, request)
        finally:
            self.answered.release()
        (seen.device if i % 2 else seen.plain)[what] += 1
        if latents is not None:
            latents = latents.astype(np.float32)
            seen.error = max(seen.error, float(np.abs(latents - self.reference.setdefault(i, latents)).max()))

    def _plain(self, url: str, request: Request) -> tuple[Any, str]:
        try:
            answer = httpx.post(url + DENOISE_PATH, content=request.encode(), headers=JSON, timeout=LIMIT_S)
        except httpx.TransportError as error:
            return None, f"connection {'refused' if isinstance(error, httpx.ConnectError) else 'broken'}"
        if answer.status_code != 200:
            return None, f"{answer.status_code} {Problem.decode(answer.content, answer.status_code).slug}"
        return Response.decode(answer.content, request, PAIR.latent_shape).latents, "200"

    def _device(self, request: Request) -> tuple[Any, str]:
        client = self.devices.get(timeout=LIMIT_S)
        try:
            return client.denoise(request, self.schedule, PAIR.latent_shape).latents, "picture"
        except CloudError as error:
            return None, type(error).__name__
        finally:
            self.devices.put(client)

    def wait_for(self, answers: int) -> None:
        for _ in range(answers):
            if not self.answered.acquire(timeout=LIMIT_S):
                raise RuntimeError("the server answers nobody")


Act = Callable[[Process, Load, Path, Seen], Process]


@dataclass(frozen=True)
class Scenario:
    """act: what is done to the server or beside the load, and which process serves afterwards. plain: what a client
    that tries once may see, beside 200. device: what the device may see, beside a picture. hit: how many clients at
    least see one of these. exit_code: of the server in the end."""

    fault: str | None = None
    calls: tuple[int, ...] = ()
    act: Act | None = None
    plain: tuple[str, ...] = ()
    device: tuple[str, ...] = ()
    hit: int = 0
    goes_on: bool = True
    exit_code: int = 0

    def complaints(self, seen: Seen) -> list[str]:
        said = []
        for who, allowed in ((seen.plain, ("200", *self.plain)), (seen.device, ("picture", *self.device))):
            said += [f"{count} x {what}" for what, count in who.items() if what not in allowed]
        failures = sum(n for what, n in (seen.plain + seen.device).items() if what not in ("200", "picture"))
        if failures < self.hit:
            said.append(f"{failures} clients saw the fault, at least {self.hit} should")
        if seen.error > TOLERANCE:
            said.append(f"an answer is {seen.error:.3g} off")
        if self.goes_on and not seen.goes_on:
            said.append("the server does not go on")
        if seen.exit_code != self.exit_code:
            said.append(f"exit code {seen.exit_code}")
        return said


def _kill_and_start_anew(server: Process, load: Load, folder: Path, seen: Seen) -> Process:
    load.wait_for(4)
    os.kill(server.process.pid, signal.SIGKILL)
    started = time.monotonic()
    server.process.wait(timeout=LIMIT_S)
    again = Process(folder, [], int(server.url.rpartition(":")[2]))
    seen.note = f"back after {time.monotonic() - started:.1f} s"
    return again


def _terminate(server: Process, load: Load, folder: Path, seen: Seen) -> Process:
    load.wait_for(4)
    server.process.send_signal(signal.SIGTERM)
    return server


def _slow_senders(server: Process, load: Load, folder: Path, seen: Seen) -> Process:
    """Three clients that send a byte of their request every now and then."""
    host, port = server.url.removeprefix("http://").split(":")
    said = []
    for _ in range(3):
        with socket.create_connection((host, int(port)), timeout=LIMIT_S) as slow:
            slow.sendall(b"POST /v1/denoise HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
            slow.sendall(b"Content-Length: 400\r\n\r\n{")
            said.append(slow.recv(64).split(b" ")[1].decode())
    seen.note = f"the slow ones: {Counter(said).most_common()[0][1]} x {said[0]}"
    if said != ["408"] * 3:
        seen.plain[f"slow sender got {said}"] += 1
    return server


def _hang_up(server: Process, load: Load, folder: Path, seen: Seen) -> Process:
    """Four clients that go away while their request is in work; it is dropped at the next step."""
    host, port = server.url.removeprefix("http://").split(":")
    body = request_for(PAIR, load.requests[3].candidates, PAIR.steps, 0).encode()  # long enough to be left
    head = f"POST {DENOISE_PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    for _ in range(4):
        with socket.create_connection((host, int(port)), timeout=LIMIT_S) as one:
            one.sendall(head.encode() + b"\r\n\r\n" + body)
            load.wait_for(1)
    limit = time.monotonic() + LIMIT_S
    while (dropped := _metric(server.url, "obclip_cancelled_total")) < 4 and time.monotonic() < limit:
        time.sleep(0.05)  # polling a condition, bounded above
    seen.note = f"{dropped:.0f} of 4 dropped in mid-work"
    if dropped < 4:
        seen.plain["not dropped"] += 1
    return server


def _metric(url: str, name: str) -> float:
    lines = httpx.get(url + "/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


_UNREACHABLE, _RESPONSE = "CloudUnreachableError", "CloudResponseError"
_GONE = ("connection refused", "connection broken")

SCENARIOS: dict[str, Scenario] = {
    "nothing": Scenario(),
    "a forward raises once": Scenario("raise", (9,)),
    "a forward raises, and again for one request": Scenario(
        "raise", (9, 10), plain=("500 internal",), device=(_RESPONSE,), hit=1
    ),
    "a number is not finite": Scenario("nan", (9,)),
    "a number is not finite in float32 either": Scenario(
        "nan", (9, 10), plain=("500 not-finite",), device=(_RESPONSE,), hit=1
    ),
    "out of memory": Scenario("oom", (9,), plain=("500 out-of-memory",)),
    "the device fails": Scenario(
        "device", (20,), plain=("503 engine-dead", *_GONE), device=(_UNREACHABLE,), hit=4, goes_on=False, exit_code=1
    ),
    "clients that send slowly": Scenario(act=_slow_senders),
    "clients that hang up": Scenario(act=_hang_up),
    "SIGTERM": Scenario(act=_terminate, plain=("503 draining", *_GONE), device=(_UNREACHABLE,), hit=1, goes_on=False),
    "kill -9, then a new process": Scenario(act=_kill_and_start_anew, plain=_GONE),
}


def play(name: str, load: Load, folder: Path) -> Seen:
    """One scenario, from a fresh server to its end."""
    scenario, seen = SCENARIOS[name], Seen(name)
    arguments = ["--fault", scenario.fault, "--calls", *map(str, scenario.calls)] if scenario.fault else []
    server, started = Process(folder, arguments), time.monotonic()
    load.answered, load.devices = threading.Semaphore(0), Queue()
    try:
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(load.run, server.url, seen)
            if scenario.act is not None:
                server = scenario.act(server, load, folder, seen)
            running.result(timeout=4 * LIMIT_S)
        seen.seconds = round(time.monotonic() - started, 2)
        if scenario.goes_on:
            seen.goes_on = load._plain(server.url, load.requests[0])[1] == "200"
    finally:
        seen.exit_code = server.end()
    return seen


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--only", nargs="+", choices=list(SCENARIOS), help="scenarios, by name")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    load, rows, wrong = Load(args.requests, args.at_once), [], 0
    with _folder() as folder:
        for name in SCENARIOS if args.only is None else ["nothing", *(n for n in args.only if n != "nothing")]:
            seen = play(name, load, folder)
            complaints = SCENARIOS[name].complaints(seen)
            wrong += bool(complaints)
            rows.append(vars(seen) | {"complaints": complaints})
            print(f"{name} ({seen.seconds:.1f} s, exit code {seen.exit_code}{', ' + seen.note if seen.note else ''})")
            for who, found in (("plain", seen.plain), ("device", seen.device)):
                print(f"    {who:7}" + ", ".join(f"{count} x {what}" for what, count in found.most_common()))
            print("".join(f"    NOT AS PROMISED: {text}\n" for text in complaints), end="", flush=True)
    if args.json:
        result = {"machine": machine(), "requests": args.requests, "at_once": args.at_once, "k": K, "rows": rows}
        atomic_write_bytes(args.json, (json.dumps(result, indent=1) + "\n").encode())
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
