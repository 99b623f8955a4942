"""What a phone's provider takes of a graph: nodes placed, partitions, and what would stay on the CPU.

By name and shape of each operator, from the providers' own lists; the provider itself has the last word, where it can
be run. Partitions are counted by ONNX Runtime's mobile usability checker (onnxruntime.tools.mobile_helpers).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.tools.mobile_helpers import usability_checker

from obclip.core.errors import InputError
from obclip.export.targets.rewrite import without_weights

_COREML = Path(usability_checker.__file__).parent / "coreml_supported_mlprogram_ops.md"
_RANK = 5  # of a tensor, at most
# onnxruntime-qnn's op builders and onnxruntime's WebGPU kernels, those that diffusion models need
_COMMON = frozenset(
    (
        "Add", "Cast", "Concat", "Conv", "Cos", "DequantizeLinear", "Div", "Equal", "Expand", "Gather", "Gelu", "Gemm",
        "InstanceNormalization", "LayerNormalization", "MatMul", "Mul", "Pow", "ReduceMean", "Relu", "Reshape",
        "Resize", "Sigmoid", "Sin", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose",
        "Unsqueeze",
    )
)  # fmt: skip
_QNN = _COMMON | {"ArgMax", "Clip", "GatherND", "QuantizeLinear"}
_WEBGPU = _COMMON | {"Clip", "Erf"}


@dataclass(frozen=True)
class Placement:
    """partitions: groups of nodes that would run on the provider, one after the other. on_cpu: operator -> nodes."""

    provider: str
    nodes: int
    placed: int
    partitions: int
    on_cpu: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class _Rules:
    """What ONNX Runtime's partition counter asks: is this node supported?"""

    def __init__(self, supports: Callable[[onnx.NodeProto], bool]) -> None:
        self.is_op_supported = supports


def placement(model: onnx.ModelProto, provider: str) -> Placement:
    """model: with fixed shapes. provider: coreml, qnn, webgpu or xnnpack; InputError for another."""
    if provider not in PROVIDERS:
        raise InputError(f"no list of operators for {provider!r}; there are {', '.join(sorted(PROVIDERS))}")
    bare = without_weights(model)
    _fill_optional_inputs(bare.graph)
    rules = PROVIDERS[provider](bare, frozenset(t.name for t in model.graph.initializer))
    found = usability_checker.check_partitioning(bare.graph, rules, True, _RANK)
    placed = Counter(node.op_type for group in found.supported_groups for node in group)
    left = Counter(node.op_type for node in bare.graph.node) - placed
    return Placement(provider, found.num_nodes, found.num_supported_nodes, found.num_partitions, dict(left))


def _fill_optional_inputs(graph: onnx.GraphProto) -> None:
    """A name for inputs that a node leaves out (Resize's region): the counter takes them for tensors without a size."""
    name = "left_out"
    graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, [1], [0.0]))
    for node in graph.node:
        for i, value in enumerate(node.input):
            if not value:
                node.input[i] = name


def _coreml(model: onnx.ModelProto, constants: frozenset[str]) -> Any:
    return usability_checker._SupportedOpsChecker(_COREML)


def _named(operators: frozenset[str]) -> Callable[[onnx.ModelProto, frozenset[str]], Any]:
    return lambda model, constants: _Rules(lambda node: node.op_type in operators and node.domain in ("", "ai.onnx"))


def _xnnpack(model: onnx.ModelProto, constants: frozenset[str]) -> Any:
    """Convolutions with constant weights, softmax over the last axis, products of two matrices of which the second is
    constant (https://onnxruntime.ai/docs/execution-providers/Xnnpack-ExecutionProvider.html)."""
    graph = model.graph
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in (*graph.value_info, *graph.input, *graph.output)}

    def supports(node: onnx.NodeProto) -> bool:
        rank = ranks.get(node.input[0], 0)
        if node.op_type == "Conv":
            return rank == 4 and constants.issuperset(node.input[1:])
        if node.op_type in ("MatMul", "Gemm"):
            return rank == 2 and node.input[1] in constants
        if node.op_type == "Softmax":
            return next((a.i for a in node.attribute if a.name == "axis"), -1) in (-1, rank - 1)
        return False

    return _Rules(supports)


PROVIDERS: dict[str, Callable[[onnx.ModelProto, frozenset[str]], Any]] = {
    "coreml": _coreml,
    "qnn": _named(_QNN),
    "webgpu": _named(_WEBGPU),
    "xnnpack": _xnnpack,
}
