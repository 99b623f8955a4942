"""ONNX graphs as the quantiser works on them: weights stay in their files until a tensor is written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from obclip.core.errors import InputError
from obclip.export.sessions import cpu_session

Feed = dict[str, NDArray[Any]]
Item = TypeVar("Item")
_NEVER_FROM = (
    "encoder_hidden_states",
    "input_ids",
)  # keys and values of the text: cheap, and hearing is what goes first


class Session(Protocol):
    """Of ONNX Runtime's sessions what is used here; what they give has a `name`."""

    def get_inputs(self) -> Sequence[Any]: ...

    def get_outputs(self) -> Sequence[Any]: ...

    def run(self, names: Sequence[str], feed: Feed) -> Sequence[NDArray[Any]]: ...


@dataclass(frozen=True)
class Layer:
    """A convolution or a product with a constant matrix. data, weight, output: names of its tensors.

    per_value: multiply-accumulates for one number of the output.
    """

    name: str
    kind: str
    data: str
    weight: str
    output: str
    per_value: int


def load_graph(path: Path) -> ir.Model:
    """The model at `path`, weights on demand; a Cast of stored weights counts as the weights that it gives.

    InputError: it cannot be read.
    """
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf and onnx_ir have classes of their own for a damaged file
        raise InputError(f"{path} is no ONNX model that can be read ({error}); export it again") from error
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Cast" else None
        if source is None or source.const_value is None or source.name not in model.graph.initializers:
            continue
        _become_constant(model, node, source.const_value)
    model.graph.sort()
    return model


def layers(model: ir.Model) -> list[Layer]:
    """What can be quantised, in order: not the step's embedding (Gemm), nor what reads the text."""
    found = []
    for node in model.graph:
        if node.op_type not in ("Conv", "MatMul") or node.domain not in ("", "ai.onnx"):
            continue
        data, weight = node.inputs[0], node.inputs[1]
        if data is None or weight is None or weight.const_value is None or data.const_value is not None:
            continue
        if weight.const_value.dtype != ir.DataType.FLOAT or data.name in _NEVER_FROM:
            continue
        shape = weight.const_value.shape.numpy()
        per_value = math.prod(shape[1:]) if node.op_type == "Conv" else shape[0]
        output = str(node.outputs[0].name)
        found.append(Layer(str(node.name), node.op_type, str(data.name), str(weight.name), output, per_value))
    if len({layer.name for layer in found}) != len(found):
        raise InputError("two nodes of this graph share a name; export it again")
    return found


def groups(found: Sequence[Layer], at_most: int) -> list[tuple[Layer, ...]]:
    """Neighbours together, those with the same input always, in at most `at_most` groups of similar length."""
    atoms: list[list[Layer]] = []
    for layer in found:
        if atoms and atoms[-1][0].data == layer.data:
            atoms[-1].append(layer)
        else:
            atoms.append([layer])
    size = math.ceil(len(atoms) / at_most)
    return [tuple(layer for atom in atoms[i : i + size] for layer in atom) for i in range(0, len(atoms), size)]


def constant(model: ir.Model, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """An initializer, made or found again."""
    if name in model.graph.initializers:
        return model.graph.initializers[name]
    value = ir.Value(
        name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value


def array(value: ir.Value | None) -> NDArray[Any]:
    """The numbers of a constant."""
    tensor = None if value is None else value.const_value
    assert tensor is not None
    return np.asarray(tensor.numpy())


def drop_unused(model: ir.Model) -> None:
    """Remove constants that nothing reads any more."""
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            model.graph.initializers.pop(name)


def session(model: ir.Model | Path, folder: Path | None = None) -> ort.InferenceSession:
    """On the CPU. folder: where the external data of a model in memory lies."""
    if isinstance(model, Path):
        return cpu_session(model)
    settings = {} if folder is None else {"session.model_external_initializers_file_folder_path": str(folder)}
    return cpu_session(ir.to_proto(model).SerializeToString(), arena=False, settings=settings)


def run(sess: Session, feed: Feed, wanted: Sequence[str] | None = None) -> Feed:
    """Outputs by name; of `feed` what the model declares. InputError for an input that is missing."""
    names = [v.name for v in sess.get_inputs()]
    if missing := [name for name in names if name not in feed]:
        raise InputError(f"calibration data lacks {', '.join(missing)}; this graph's inputs are {', '.join(names)}")
    outputs = list(wanted) if wanted is not None else [v.name for v in sess.get_outputs()]
    found = sess.run(outputs, {name: feed[name] for name in names})
    return dict(zip(outputs, found, strict=True))


def every(items: Iterable[Item], at_most: int) -> list[Item]:
    """At most `at_most` of the items, evenly spaced, the first and the last among them."""
    found = list(items)
    if len(found) <= at_most:
        return found
    return [found[i] for i in np.linspace(0, len(found) - 1, at_most).round().astype(int)]


def _become_constant(model: ir.Model, node: ir.Node, stored: ir.TensorProtocol) -> None:
    to = ir.DataType(node.attributes["to"].as_int())
    output = node.outputs[0]
    name = str(output.name)
    if output.is_graph_output() or to != ir.DataType.FLOAT:
        return

    def cast() -> ir.TensorProtocol:
        return ir.Tensor(stored.numpy().astype(np.float32), name=name)

    tensor = ir.LazyTensor(cast, dtype=to, shape=ir.Shape(stored.shape.numpy()), name=name)
    output.name = f"{name}.cast"
    new = constant(model, name, tensor)
    output.replace_all_uses_with(new)
    source = node.inputs[0]
    model.graph.remove(node, safe=True)
    if source is not None and not source.uses():
        model.graph.initializers.pop(str(source.name))
