"""What a process takes, as the operating system sees it."""

from __future__ import annotations

import resource
from pathlib import Path


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def resident_bytes() -> dict[str, int]:
    """Now: `anonymous`, which only swap could take, and `file`, which the system may drop and read again. Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss")}
    return {"anonymous": found["RssAnon"], "file": found["RssFile"] + found["RssShmem"]}
