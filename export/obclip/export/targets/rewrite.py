"""Rewrites of an ONNX graph towards what an accelerator takes: fixed shapes, names that cannot clash, flat norms.

Each takes a model and returns a new one that computes the same; `runtime_tests/test_targets.py` compares them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from obclip.core.errors import InputError

_SMALL_BYTES = 4096  # constants that shapes may depend on are no larger
_ELEMENTWISE = ("Add", "Mul", "Sigmoid", "Tanh", "Sub", "Div")


def fix_shapes(model: onnx.ModelProto, dims: Mapping[str, int]) -> onnx.ModelProto:
    """Give free axes their sizes, by name, and fold what is constant then. InputError if an axis stays free."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in dims:
                dim.dim_value = dims[dim.dim_param]
    free = {d.dim_param for v in fixed.graph.input for d in v.type.tensor_type.shape.dim if d.dim_param}
    if free:
        raise InputError(
            f"no size for the axes {', '.join(sorted(free))}; an accelerator's graph has none that are free"
        )
    del fixed.graph.value_info[:]  # of the free shapes
    return _folded(fixed)


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """After ONNX Runtime's basic optimisations, which stay within ONNX's own operators."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "source.onnx", Path(folder) / "folded.onnx"
        onnx.save(model, source, save_as_external_data=True, location="source.data")
        options.optimized_model_filepath = str(out)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "folded.data")
        ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        return onnx.load(out)


def unique_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """Inner tensors renamed so that no name is another's with digits behind.

    ONNX Runtime's quantiser numbers the copies of a shared constant that way, and takes a tensor of that name for one
    of them: wrong numbers, or a graph that does not load (onnxruntime 1.32.0).
    """
    new = onnx.ModelProto()
    new.CopyFrom(model)
    graph = new.graph
    kept = {v.name for v in (*graph.input, *graph.output)} | {""}
    names = {i.name for i in graph.initializer} | {o for n in graph.node for o in n.output}
    renamed = {name: name if name in kept else f"{name}_t" for name in names}
    for tensor in graph.initializer:
        tensor.name = renamed[tensor.name]
    for value in graph.value_info:
        value.name = renamed.get(value.name, value.name)
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
        for i, name in enumerate(node.output):
            node.output[i] = renamed.get(name, name)
    return new


def flat_norms(model: onnx.ModelProto) -> onnx.ModelProto:
    """What follows a group norm element by element (affine, SiLU) on [1, C, H*W], and back to [1, C, H, W] behind it.

    Qualcomm's HTP gets elementwise operators wrong that follow a norm on [1, C, H, W] with H and W of 8 or less
    (qairt of onnxruntime-qnn 2.7.0: relative error 0.9 to 1.2, by operator and number of channels); in this form not.
    """
    new = onnx.ModelProto()
    new.CopyFrom(model)
    graph = new.graph
    shapes = _shapes(new)
    constants = {t.name: t for t in graph.initializer}
    norms = {o for n in graph.node if n.op_type == "InstanceNormalization" for o in n.output}
    flat: dict[str, tuple[int, ...]] = {}  # tensor -> the shape [1, C, H, W] it had
    nodes: list[onnx.NodeProto] = []
    back: dict[str, str] = {}
    for node in graph.node:
        shape = shapes.get(node.output[0], ())
        if node.op_type == "Reshape" and node.input[0] in norms and len(shape) == 4 and shape[0] == 1:
            node.input[1] = _shape_constant(graph, f"{node.output[0]}_flat", (1, shape[1], shape[2] * shape[3]))
            flat[node.output[0]] = shape
        elif node.op_type in _ELEMENTWISE and _stays_flat(node, flat, constants):
            for i, name in enumerate(node.input):
                if name in constants:
                    node.input[i] = _flat_constant(graph, constants[name], f"{node.output[0]}_c{i}")
            flat[node.output[0]] = next(flat[name] for name in node.input if name in flat)
        else:
            for i, name in enumerate(node.input):
                if name in flat:
                    if name not in back:
                        back[name] = f"{name}_back"
                        size = _shape_constant(graph, f"{name}_shape", flat[name])
                        nodes.append(helper.make_node("Reshape", [name, size], [back[name]], name=back[name]))
                    node.input[i] = back[name]
        nodes.append(node)
    for value in graph.output:
        if value.name in flat:
            raise InputError(f"the graph's output {value.name} follows a norm directly; that is no UNet or decoder")
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    _infer_shapes(new)
    return new


def flat_products(model: onnx.ModelProto) -> onnx.ModelProto:
    """Products of [1, S, C] with a constant matrix as products of [S, C], the only ones that XNNPACK takes."""
    new = onnx.ModelProto()
    new.CopyFrom(model)
    graph = new.graph
    shapes = _shapes(new)
    constants = {t.name for t in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        shape, out = shapes.get(node.input[0], ()), node.output[0]
        if node.op_type != "MatMul" or node.input[1] not in constants or len(shape) != 3 or shape[0] != 1:
            nodes.append(node)
            continue
        rows, product = f"{out}_rows", f"{out}_product"
        flat = _shape_constant(graph, f"{out}_flat", shape[1:])
        full = _shape_constant(graph, f"{out}_full", shapes[out])
        nodes += [
            helper.make_node("Reshape", [node.input[0], flat], [rows], name=rows),
            helper.make_node("MatMul", [rows, node.input[1]], [product], name=product),
            helper.make_node("Reshape", [product, full], [out], name=node.name),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    _infer_shapes(new)
    return new


def _stays_flat(
    node: onnx.NodeProto, flat: Mapping[str, tuple[int, ...]], constants: Mapping[str, onnx.TensorProto]
) -> bool:
    data = [name for name in node.input if name not in constants]
    return (
        bool(data)
        and all(name in flat for name in data)
        and len({flat[name] for name in data}) == 1
        and all(_per_channel(constants[name], flat[data[0]][1]) for name in node.input if name in constants)
    )


def _per_channel(tensor: onnx.TensorProto, channels: int) -> bool:
    dims = tuple(tensor.dims)
    return all(d == 1 for d in dims) or (len(dims) in (3, 4) and dims[-3:] == (channels, 1, 1))


def _flat_constant(graph: onnx.GraphProto, tensor: onnx.TensorProto, name: str) -> str:
    values = numpy_helper.to_array(tensor)
    if values.size == 1:
        return tensor.name
    graph.initializer.append(numpy_helper.from_array(values.reshape(1, -1, 1), name))
    return name


def _shape_constant(graph: onnx.GraphProto, name: str, shape: tuple[int, ...]) -> str:
    graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), name))
    return name


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    _infer_shapes(model)
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    return {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with shapes inferred, its large constants as inputs: a protobuf message ends at 2 GiB."""
    bare = onnx.ModelProto()
    bare.ir_version, bare.producer_name = model.ir_version, model.producer_name
    bare.opset_import.extend(model.opset_import)
    graph = bare.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= _SMALL_BYTES:
            graph.initializer.append(tensor)
        else:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return onnx.shape_inference.infer_shapes(bare)


def _infer_shapes(model: onnx.ModelProto) -> None:
    inferred = without_weights(model).graph.value_info
    del model.graph.value_info[:]
    model.graph.value_info.extend(inferred)
