"""Qualcomm's HTP as an execution provider: its emulator, which onnxruntime-qnn brings for x86."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import onnxruntime_qnn

NAME = "QNNExecutionProvider"
# Snapdragon 8 Gen 3; the emulator compiles for it and executes that
OPTIONS = {"backend_type": "htp", "htp_arch": "75", "soc_model": "57", "offload_graph_io_quantization": "0"}


def register() -> None:
    """Once a process."""
    if not any(device.ep_name == NAME for device in ort.get_ep_devices()):
        ort.register_execution_provider_library(NAME, onnxruntime_qnn.get_library_path())


def htp_session(model: Path, context: Path | None = None) -> ort.InferenceSession:
    """A session of which no node may run on the CPU. context: where the compiled graph is written, too."""
    register()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if context is not None:
        options.add_session_config_entry("ep.context_enable", "1")
        options.add_session_config_entry("ep.context_file_path", str(context))
        options.add_session_config_entry("ep.context_embed_mode", "0")
    device = next(device for device in ort.get_ep_devices() if device.ep_name == NAME)
    options.add_provider_for_devices([device], OPTIONS)
    return ort.InferenceSession(str(model), options)


def cpu_session(model: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
