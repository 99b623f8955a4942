"""What runs a graph that is judged: the runtime that will run it on the device, where that is installed here.

OpenVINO's int8 arithmetic is its own, so that its graphs are judged on it; all others on ONNX Runtime's CPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from obclip.core.errors import VerificationError
from obclip.export.quantise.graph import Feed, Session, session

Graph = Path | tuple[ir.Model, Path]  # a file, or a model in memory and the folder its weights lie in


def runtime_of(target: str) -> str:
    """Name and version of what `open_graph` takes for the target."""
    if _on_openvino(target):
        return f"OpenVINO {version('openvino')}"
    return f"ONNX Runtime {version('onnxruntime')}"


def open_graph(graph: Graph, target: str = "cpu") -> Session:
    """VerificationError: the target's runtime does not take it."""
    if not _on_openvino(target):
        return session(graph) if isinstance(graph, Path) else session(*graph)
    if isinstance(graph, Path):
        return _OpenVinoSession(graph)
    model, folder = graph
    path = folder / "judged.onnx"  # from there it finds its weights
    try:
        path.write_bytes(ir.to_proto(model).SerializeToString())
        return _OpenVinoSession(path)
    finally:
        path.unlink(missing_ok=True)


def _on_openvino(target: str) -> bool:
    return target == "openvino" and importlib.util.find_spec("openvino") is not None


class _OpenVinoSession:
    """A graph that OpenVINO has compiled, in float32 where it is not int8, with the face of ONNX Runtime's session."""

    def __init__(self, path: Path) -> None:
        import openvino

        config = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        try:
            compiled = openvino.Core().compile_model(path, "CPU", config)
        except RuntimeError as error:
            said = str(error).strip().splitlines()[-1]
            raise VerificationError(f"OpenVINO takes no {path.name} ({said}); leave its target out") from error
        self._request = compiled.create_infer_request()
        self._inputs, self._outputs = [_named(p) for p in compiled.inputs], [_named(p) for p in compiled.outputs]

    def get_inputs(self) -> Sequence[Any]:
        return self._inputs

    def get_outputs(self) -> Sequence[Any]:
        return self._outputs

    def run(self, names: Sequence[str], feed: Feed) -> Sequence[NDArray[Any]]:
        found = self._request.infer({name: np.ascontiguousarray(value) for name, value in feed.items()})
        values = {output.name: np.array(value) for output, value in zip(self._outputs, found.values(), strict=True)}
        return [values[name] for name in names]


def _named(port: Any) -> SimpleNamespace:
    return SimpleNamespace(name=min(port.get_names(), key=len))  # the graph's own, of those that OpenVINO adds to it
