"""How many cores are for this process: a container or `taskset` may leave it fewer than the machine has."""

from __future__ import annotations

import os


def usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def session_threads() -> int:
    """ONNX Runtime's `intra_op_num_threads`: 0, its own choice, where the process may use the whole machine.

    ONNX Runtime counts the machine's cores; with fewer for the process, its threads would wait awake for one another.
    """
    usable = usable_cores()
    return usable if usable < (os.cpu_count() or 1) else 0
