"""OpenVINO's own runtime on the same ONNX files: no other package, newer than ONNX Runtime's provider for it.

`openvino` is imported when a session is opened, not before.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obclip.core.errors import BundleError, RunError
from obclip.core.files import remove_folder
from obclip.edge.machine import return_mapped_pages
from obclip.edge.providers.base import Opening

_HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoProvider:
    name, full_name, target = "openvino", "OpenVINO runtime, CPU", "openvino"
    # Compiling makes a copy of the weights, which one run does not repay: 0.7 GB for small-sd's texts
    once = "cpu"

    @staticmethod
    def installed() -> bool:
        return importlib.util.find_spec("openvino") is not None

    def arithmetics(self) -> tuple[str, ...]:
        import openvino

        has = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return ("fp32", "bf16") if "BF16" in has else ("fp32",)

    def open(self, path: Path, opening: Opening) -> OpenVinoSession:
        import openvino

        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[opening.arithmetic],
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_MMAP": True,
        }
        if opening.threads is not None:
            config["INFERENCE_NUM_THREADS"] = opening.threads
        core, compiled = openvino.Core(), None
        if opening.cache is not None:
            try:
                opening.cache.mkdir(parents=True, exist_ok=True)
                compiled = core.compile_model(str(path), "CPU", config | {"CACHE_DIR": str(opening.cache)})
            except (OSError, RuntimeError):  # what cannot be kept, or read again, is made without
                remove_folder(opening.cache)
        try:
            session = OpenVinoSession(compiled or core.compile_model(core.read_model(path), "CPU", config))
        except RuntimeError as error:
            said = str(error).strip().splitlines()[-1]
            raise BundleError(f"{path} cannot be loaded by OpenVINO {openvino.__version__}: {said}") from error
        return_mapped_pages(path.parent, *filter(None, [opening.cache]))  # it has copies of all it needs by now
        return session


class OpenVinoSession:
    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self.input_names = [_name(v) for v in compiled.inputs]
        self.output_names = [_name(v) for v in compiled.outputs]

    def run(self, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        try:
            given = {name: np.asarray(value, order="C") for name, value in inputs.items()}  # a scalar stays one
            found = self._request.infer(given)
        except Exception as error:  # from bindings: RuntimeError, TypeError and others
            said = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise RunError(f"OpenVINO failed on this model ({said}); try --provider cpu") from error
        return {_name(port): np.array(value) for port, value in found.items()}

    def nodes_per_provider(self) -> dict[str, int]:
        ops = self._compiled.get_runtime_model().get_ops()
        counted = [op for op in ops if op.get_type_name() not in ("Parameter", "Result", "Constant")]
        return {OpenVinoProvider.full_name: len(counted)}


def _name(port: Any) -> str:
    return str(min(port.get_names(), key=len))
