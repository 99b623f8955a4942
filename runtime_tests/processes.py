"""A real cloud process for tests, ended by its own id."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_LIMIT_S = 120.0


@contextmanager
def cloud_process(folder: Path, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`python -m obclip.cloud.serve` on a free port: its URL and process. Terminated at the end of the block."""
    ready = folder / f"ready-{os.getpid()}-{time.monotonic_ns()}"
    command = [sys.executable, "-m", "obclip.cloud.serve", "--port", "0", "--device", "cpu", "--ready-file", str(ready)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    try:
        limit = time.monotonic() + START_LIMIT_S
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(f"the cloud did not start: {process.stdout.read() if process.stdout else ''}")
            time.sleep(0.05)  # polling a condition, bounded above
        yield ready.read_text(), process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdout:
            process.stdout.close()
