"""ONNX Runtime sessions: which provider, how many threads, and what each node really runs on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from obclip.core.errors import BundleError, InputError, RunError

_SUFFIX = "ExecutionProvider"
_SILENT = 3  # errors only: warnings about constant folding are of no use to a user


@dataclass(frozen=True)
class SessionOptions:
    """provider: "auto" (the CPU), or any name from `available_providers`. threads: None lets ONNX Runtime choose."""

    provider: str = "auto"
    threads: int | None = None


class Session:
    """One model. `run` takes and returns arrays by name."""

    def __init__(self, path: Path, options: SessionOptions) -> None:
        settings = ort.SessionOptions()
        settings.log_severity_level = _SILENT
        if options.threads is not None:
            if options.threads < 1:
                raise InputError(f"threads is {options.threads}; it must be 1 or more")
            settings.intra_op_num_threads = options.threads
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        self.requested = provider_name(options.provider)
        try:
            self._session = ort.InferenceSession(str(path), settings, providers=[self.requested])
        except Exception as error:  # ONNX Runtime's errors share no base class but Exception
            raise BundleError(f"{path} cannot be loaded by ONNX Runtime {ort.__version__}: {error}") from error
        self.input_names = [v.name for v in self._session.get_inputs()]
        self.output_names = [v.name for v in self._session.get_outputs()]

    def run(self, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """RunError if ONNX Runtime refuses the inputs or fails."""
        try:
            outputs = self._session.run(None, inputs)
        except Exception as error:  # ONNX Runtime's errors share no base class but Exception
            raise RunError(f"ONNX Runtime failed on this model: {error}") from error
        return dict(zip(self.output_names, outputs, strict=True))

    def nodes_per_provider(self) -> dict[str, int]:
        """How many nodes each provider was given, as ONNX Runtime recorded it when it built the session."""
        counts: Counter[str] = Counter()
        for subgraph in self._session.get_provider_graph_assignment_info():
            counts[subgraph.ep_name] += len(subgraph.get_nodes())
        return dict(counts)


def available_providers() -> list[str]:
    """Short names of the providers in this ONNX Runtime, e.g. ["cpu"]."""
    return [name.removesuffix(_SUFFIX).lower() for name in ort.get_available_providers()]


def provider_name(short: str) -> str:
    """ONNX Runtime's name of a provider. InputError, listing what is here, for one that is not."""
    if short == "auto":
        return "CPUExecutionProvider"
    for full in ort.get_available_providers():
        if full.removesuffix(_SUFFIX).lower() == short.lower():
            return str(full)
    here = ", ".join(["auto", *available_providers()])
    raise InputError(f"provider {short!r} is not in this ONNX Runtime ({ort.__version__}); choose one of {here}")


def target_of(provider: str) -> str:
    """Which variants of a bundle's graphs a provider runs (obclip.core.manifest.Variant.target)."""
    short = provider_name(provider).removesuffix(_SUFFIX).lower()
    return short if short in ("cpu", "openvino", "qnn", "coreml", "xnnpack", "webgpu") else "any"


def scalar(value: float) -> NDArray[np.float32]:
    """A float32 array without axes, as the UNet's timestep wants."""
    return np.asarray(value, np.float32)
