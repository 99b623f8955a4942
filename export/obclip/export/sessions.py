"""ONNX Runtime's sessions of an export: on the CPU, silent, with a thread for each core of this process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort

from obclip.core.cores import session_threads

_NOTHING: Mapping[str, str] = {}


def cpu_session(
    model: Path | bytes, *, arena: bool = True, settings: Mapping[str, str] = _NOTHING
) -> ort.InferenceSession:
    """arena: keep memory between runs, for speed. settings: entries of ONNX Runtime's session configuration."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = session_threads()
    options.enable_cpu_mem_arena = options.enable_mem_pattern = arena
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
