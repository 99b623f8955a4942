"""What this machine is: processor, cores, memory. Numbers need it beside them."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime as ort


def machine() -> dict[str, Any]:
    """Processor, cores, memory, system, versions."""
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "memory_bytes": memory_bytes(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
        "obclip": version("obclip"),
    }


def processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def peak_memory_bytes() -> int | None:
    """The most resident memory this process has had; None where the system does not tell (Windows)."""
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024  # getrusage's also has what the parent took before it started this one
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def return_freed_memory() -> None:
    """Hand what was freed back to the system; glibc keeps it otherwise. Elsewhere nothing is done."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def return_mapped_pages(*folders: Path) -> int:
    """Hand back the pages of files under `folders` that are mapped to be read only; returns the bytes mapped there.

    What a runtime has copied into a layout of its own it reads no more from the file, but the pages stay resident. A
    page that is read after all comes back from the file. Linux; elsewhere nothing is done.
    """
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return 0
    libc, returned = ctypes.CDLL(None), 0
    within = tuple(f"{folder.resolve()}{os.sep}" for folder in folders)
    for line in maps.read_text().splitlines():
        span, rights, *_, path = line.split(maxsplit=5)
        if "w" in rights or "x" in rights or not path.startswith(within):
            continue
        start, end = (int(at, 16) for at in span.split("-"))
        if libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED) == 0:
            returned += end - start
    return returned
