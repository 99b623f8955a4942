"""How long `obclip generate` takes to start at a large bundle: from the command to its candidates leaving, and how long
it then waits for its models when the cloud has answered.

    python -m runtime_tests.benchmarks.device_start --work DIR --json docs/results/device_start.json

DIR as `device` made it. Real commands against a cloud on loopback that answers behind a set time with noise: it
computes nothing, as one elsewhere would take nothing from this machine. The first start of each way finds nothing kept
(bundle not read yet, graphs not compiled); the others find what it left. One device step is run, and counted apart.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from obclip.core.files import atomic_write_bytes
from obclip.core.noise import initial_noise
from obclip.core.pairs import load_pair
from obclip.core.wire import CAPABILITIES_PATH, PROTOCOL, Capabilities, Request, Response
from obclip.edge import Bundle
from obclip.edge.machine import machine

WAYS = (("openvino", "int8"), ("openvino", "fp32"), ("cpu", "fp32"))
PROMPT = "noto style emoji of a woman cook"
HANDOFF = 24  # of 25


class Cloud:
    """Answers with noise `seconds` behind a request. arrived: when the candidates were here, by time.perf_counter."""

    def __init__(self, bundle: Bundle, pair_file: Path, seconds: float) -> None:
        pair, self.seconds, self.arrived = load_pair(str(pair_file)), seconds, 0.0
        self.schedule = bundle.schedule(pair.solver, pair.steps).digest
        self.model, self.shape = "0" * 64, pair.latent_shape
        self.offered = Capabilities(
            PROTOCOL, version("obclip"), pair.name, pair.digest, self.model, (pair.solver,),
            bundle.manifest.schedule_config, pair.height, pair.width, pair.latent_channels, pair.latent_downscale,
            64, 1000, 77, 10**6,
        )  # fmt: skip

    def answer(self, body: bytes) -> bytes:
        request = Request.decode(body)
        time.sleep(self.seconds)
        noise = np.stack([initial_noise(i, self.shape) for i in range(len(request.candidates))]).astype(np.float16)
        return Response(noise, None, request.handoff, self.schedule, self.model).encode()


@contextmanager
def serving(cloud: Cloud) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(cloud.offered.encode() if self.path == CAPABILITIES_PATH else b"")

        def do_POST(self) -> None:
            cloud.arrived = time.perf_counter()
            self._send(cloud.answer(self.rfile.read(int(self.headers["Content-Length"]))))

        def _send(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def start(work: Path, cloud: Cloud, url: str, way: tuple[str, str], cache: Path) -> dict[str, Any]:
    provider, precision = way
    command = [
        sys.executable, "-c", "from obclip.edge.cli import main; main()", "generate", PROMPT, "--cloud", url,
        "--pair", str(work / "pair.toml"), "--bundle", str(work / "bundle"), "--handoff", str(HANDOFF),
        "--provider", provider, "--precision", precision, "--decoder", "tiny", "--allow-public", "--json",
        "--out", str(cache / "picture.png"),
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | {"OBCLIP_CACHE": str(cache)}
    began = time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - began
    if ended.returncode != 0:
        return {"failed": (ended.stderr.strip() or "no word").splitlines()[-1]}
    timings = json.loads(ended.stdout)["timings_s"]
    work_s = timings["cloud"] + timings["device_steps"] + timings["decode"]
    return {
        "sent_s": round(cloud.arrived - began, 2),
        "waited_s": round(timings.get("open", 0.0), 2),
        "besides_s": round(seconds - work_s, 2),
        "seconds": round(seconds, 2),
        "timings_s": timings,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cloud-s", type=float, nargs="+", default=[0.0, 5.0], help="seconds that the cloud takes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=["/".join(way) for way in WAYS])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    bundle, rows = Bundle.open(asked.work / "bundle", verify=False), []
    for way in (tuple(w.split("/")) for w in asked.ways):
        shutil.rmtree(asked.work / "bundle" / ".cache", ignore_errors=True)
        with tempfile.TemporaryDirectory() as kept:
            for number in range(1 + asked.repeats):
                for seconds in asked.cloud_s if number else asked.cloud_s[:1]:
                    cloud = Cloud(bundle, asked.work / "pair.toml", seconds)
                    with serving(cloud) as url:
                        row = start(asked.work, cloud, url, way, Path(kept))
                    rows.append({"way": "/".join(way), "start": number, "cloud_s": seconds, **row})
                    print(rows[-1], file=sys.stderr, flush=True)
    print(table(rows))
    if asked.json:
        found = {"machine": machine(), "bundle_bytes": sum(f.bytes for f in bundle.manifest.files), "rows": rows}
        atomic_write_bytes(asked.json, (json.dumps(found, indent=1) + "\n").encode())


def table(rows: list[dict[str, Any]]) -> str:
    """Medians; a first start is one."""
    lines = [
        "| way | start | cloud s | candidates leave after s | then waits for models s | besides s |",
        "|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for row in rows:
        if "failed" not in row:
            groups.setdefault((row["way"], "later" if row["start"] else "first", row["cloud_s"]), []).append(row)
    for (way, which, cloud_s), found in groups.items():
        middle = [statistics.median(r[key] for r in found) for key in ("sent_s", "waited_s", "besides_s")]
        lines.append(f"| {way} | {which} | {cloud_s:.0f} | " + " | ".join(f"{m:.1f}" for m in middle) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
