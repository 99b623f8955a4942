"""Many clients at once against a real server process: throughput and latency, with and without step batching.

    python -m runtime_tests.benchmarks.server_load --json docs/results/server_load.json

Loopback only, the embedded pair, requests of several sizes. Systems: `one by one` (a request at a time, nothing
reused), `steps, plain plan` (the step batcher, nothing reused), `steps` (the default). Each has a process of its own;
`--systems` runs some and keeps the file's rows of the others.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from obclip.core.files import atomic_write_bytes
from obclip.core.pairs import load_pair
from obclip.core.wire import DENOISE_PATH
from obclip.edge.machine import machine

from .server_fidelity import candidate_sets, request_for

SYSTEMS = {
    "one by one": ["--engine", "serial", "--plan", "plain"],
    "steps, plain plan": ["--plan", "plain"],
    "steps": [],
}
SIZES = (2, 2, 6, 2, 10, 2, 6, 2)  # candidates of successive requests
HANDOFF = 10


@contextmanager
def server(arguments: list[str]) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready"
        command = [sys.executable, "-m", "obclip.cloud.serve", "--port", "0", "--ready-file", str(ready)]
        command += ["--max-waiting", "256", "--max-waiting-rows", "100000", "--queue-timeout", "600"]
        process = subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL, env={**os.environ})
        try:
            limit = time.monotonic() + 120
            while not ready.exists():
                if process.poll() is not None or time.monotonic() > limit:
                    raise RuntimeError("the server did not start")
                time.sleep(0.05)  # polling a condition, bounded above
            yield ready.read_text()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=90)


async def clients(url: str, count: int, concurrency: int) -> tuple[list[float], list[int], float]:
    """Seconds of every request, status codes, and seconds in all: `concurrency` clients, one request after another."""
    pair = load_pair("emoji")
    sets = [candidate_sets(n, 1, i)[0] for i, n in enumerate(SIZES)]
    bodies = [request_for(pair, sets[i % len(sets)].prompts, HANDOFF, i).encode() for i in range(count)]
    queue = iter(bodies)
    seconds: list[float] = []
    codes: list[int] = []
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:

        async def work() -> None:
            for body in queue:
                started = time.perf_counter()
                answer = await client.post(DENOISE_PATH, content=body, headers={"content-type": "application/json"})
                seconds.append(time.perf_counter() - started)
                codes.append(answer.status_code)

        started = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(concurrency)))
        return seconds, codes, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    kept = json.loads(args.json.read_text())["rows"] if args.json and args.json.exists() else []
    rows: list[dict[str, Any]] = [row for row in kept if row["system"] not in args.systems]
    print(f"{'system':20}{'clients':>8}{'requests/s':>12}{'p50 s':>8}{'p95 s':>8}{'failed':>8}")
    for name in args.systems:
        with server(SYSTEMS[name]) as url:
            for concurrency in args.concurrency:
                seconds, codes, wall = asyncio.run(clients(url, args.requests, concurrency))
                row = {
                    "system": name, "clients": concurrency, "requests": len(codes),
                    "failed": sum(code != 200 for code in codes),
                    "requests_per_s": round(len(codes) / wall, 3), "p50_s": round(statistics.median(seconds), 3),
                    "p95_s": round(statistics.quantiles(seconds, n=20)[-1], 3),
                }  # fmt: skip
                rows.append(row)
                print(
                    f"{name:20}{concurrency:8}{row['requests_per_s']:12}{row['p50_s']:8}{row['p95_s']:8}{row['failed']:8}",
                    flush=True,
                )
                if args.json:
                    result = {"machine": machine(), "sizes": SIZES, "k": HANDOFF, "rows": rows}
                    atomic_write_bytes(args.json, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
