"""Static int8 as quantise-dequantise pairs: activations uint8 a tensor, weights int8 a channel and symmetric.

Why not `onnxruntime.quantization.quantize_static`: it holds the whole model twice over, writes weights that other
graphs of the component have too once more, cannot say which layers' outputs stay float, and takes the copies that it
makes of shared constants for tensors of the same name (onnxruntime 1.32.0). Tests hold the two against each other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from obclip.export.quantise.graph import Layer, array, constant, drop_unused, layers
from obclip.export.quantise.ranges import Range
from obclip.export.quantise.zero_points import can_fold, fold_zero_point

# ONNX Runtime's CPU provider computes a convolution in int8 only if its output is uint8 as well; a product it gives in
# float32. OpenVINO takes both with float outputs, which lose less.
_QUANTISED_OUTPUTS = {"cpu": ("Conv",), "any": ("Conv",)}


def output_tensor(model_outputs: Mapping[str, str], layer: Layer) -> str:
    """What is quantised behind a layer: its output, or that of the ReLU it goes into."""
    return model_outputs.get(layer.output, layer.output)


def relu_outputs(model: ir.Model) -> dict[str, str]:
    """output of a convolution -> output of the ReLU that alone reads it."""
    found = {}
    for node in model.graph:
        if node.op_type == "Relu" and node.inputs[0] is not None:
            producer = node.inputs[0].producer()
            if producer is not None and producer.op_type == "Conv" and len(node.inputs[0].uses()) == 1:
                found[str(node.inputs[0].name)] = str(node.outputs[0].name)
    return found


def tensors_to_range(model: ir.Model, target: str) -> list[str]:
    """The activations whose ranges `insert` needs for this target, whatever layers it is asked for."""
    relus = relu_outputs(model)
    found = []
    for layer in layers(model):
        found.append(layer.data)
        if layer.kind in _QUANTISED_OUTPUTS.get(target, ()):
            found.append(output_tensor(relus, layer))
    return list(dict.fromkeys(found))


def insert(model: ir.Model, ranges: Mapping[str, Range], chosen: Collection[str], target: str) -> None:
    """Quantise the layers named in `chosen`, in place. target: of the provider that will run it."""
    relus = relu_outputs(model)
    values = {str(v.name): v for v in model.graph.inputs}
    values |= {str(v.name): v for node in model.graph for v in node.outputs}
    nodes = {str(node.name): node for node in model.graph}
    made: dict[str, ir.Value] = {}
    for layer in layers(model):
        if layer.name not in chosen:
            continue
        node, value, found = nodes[layer.name], values[layer.data], ranges[layer.data]
        scales = dequantised_weight(model, node, layer.weight, 0 if layer.kind == "Conv" else 1)
        if target == "openvino" and layer.kind == "Conv" and can_fold(node):
            fold_zero_point(model, node, _small(model, value, found, made), found)
        else:
            node.replace_input_with(0, _pair(model, value, found, made))
        if target in _QUANTISED_OUTPUTS:
            _bias(model, _bias_use(node), f"{node.name}.bias", ranges[layer.data].scale, scales)
        if layer.kind in _QUANTISED_OUTPUTS.get(target, ()):
            name = output_tensor(relus, layer)
            _behind(model, values[name], ranges[name], made)
    drop_unused(model)
    model.graph.sort()


def channel_scales(weight: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Per channel of `axis`, so that the largest magnitude becomes 127."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    return np.maximum(np.abs(weight).max(others) / np.float32(127), np.float32(1e-12)).astype(np.float32)


def quantise_weight(weight: NDArray[np.float32], scales: NDArray[np.float32], axis: int) -> NDArray[np.int8]:
    """int8, -127 to 127."""
    shape = [1] * weight.ndim
    shape[axis] = -1
    return np.clip(np.rint(weight / scales.reshape(shape)), -127, 127).astype(np.int8)


def dequantised_weight(model: ir.Model, node: ir.Node, weight_name: str, axis: int) -> NDArray[np.float32]:
    """Put int8 and a DequantizeLinear in place of the weight that `node` reads; returns the scales."""
    source = node.inputs[1]
    stored = None if source is None else source.const_value
    assert stored is not None
    scales = channel_scales(np.asarray(stored.numpy()), axis)

    def small() -> ir.TensorProtocol:
        return ir.Tensor(quantise_weight(np.asarray(stored.numpy()), scales, axis), name=f"{weight_name}.int8")

    lazy = ir.LazyTensor(
        small, dtype=ir.DataType.INT8, shape=ir.Shape(stored.shape.numpy()), name=f"{weight_name}.int8"
    )
    inputs = [
        constant(model, f"{weight_name}.int8", lazy),
        constant(model, f"{weight_name}.scale", ir.tensor(scales)),
        constant(model, f"{weight_name}.zero", ir.tensor(np.zeros(len(scales), np.int8))),
    ]
    dequantise = ir.node("DequantizeLinear", inputs, {"axis": axis}, name=f"{node.name}.weight")
    dequantise.outputs[0].name = f"{node.name}.weight"
    model.graph.insert_before(node, dequantise)
    node.replace_input_with(1, dequantise.outputs[0])
    return scales


def _bias_use(node: ir.Node) -> tuple[ir.Node, int] | None:
    """Who reads the bias, and as which input: a convolution itself, behind a product the Add that alone reads it.

    ONNX Runtime makes a Gemm of a product and its Add; with a float bias that Gemm runs in float32, on weights that are
    dequantised anew in every pass.
    """
    if node.op_type == "Conv":
        return (node, 2) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0][0].op_type != "Add" or node.outputs[0].is_graph_output():
        return None
    add, mine = uses[0][0], uses[0][1]
    other = add.inputs[1 - mine]
    if other is None or other.const_value is None or len(other.const_value.shape) != 1:
        return None
    return add, 1 - mine


def _bias(
    model: ir.Model,
    use: tuple[ir.Node, int] | None,
    name: str,
    data_scale: np.float32,
    scales: NDArray[np.float32],
) -> None:
    """int32 at the product of both scales, which is what accumulators hold."""
    if use is None:
        return
    reader, at = use
    scale = (data_scale * scales).astype(np.float32)
    bounds = np.iinfo(np.int32)
    small = np.clip(np.rint(array(reader.inputs[at]) / scale.astype(np.float64)), bounds.min, bounds.max)
    inputs = [
        constant(model, f"{name}.int32", ir.tensor(small.astype(np.int32))),
        constant(model, f"{name}.scale", ir.tensor(scale)),
        constant(model, f"{name}.zero", ir.tensor(np.zeros(len(scale), np.int32))),
    ]
    dequantise = ir.node("DequantizeLinear", inputs, {"axis": 0}, name=name)
    dequantise.outputs[0].name = name
    model.graph.insert_before(reader, dequantise)
    reader.replace_input_with(at, dequantise.outputs[0])


def _small(model: ir.Model, value: ir.Value, found: Range, made: dict[str, ir.Value]) -> ir.Value:
    """`value` quantised, once a tensor."""
    name = f"{value.name}.uint8"
    if name not in made:
        scale = constant(model, f"{value.name}.scale", ir.tensor(found.scale))
        zero = constant(model, f"{value.name}.zero", ir.tensor(found.zero_point))
        node = ir.node("QuantizeLinear", [value, scale, zero], name=f"{value.name}.quantise")
        made[name] = _named(model, node, name, value.shape, ir.DataType.UINT8)
    return made[name]


def _pair(model: ir.Model, value: ir.Value, found: Range, made: dict[str, ir.Value]) -> ir.Value:
    """`value` quantised and dequantised, once a tensor."""
    small, name = _small(model, value, found, made), f"{value.name}.float"
    if name not in made:
        parameters = [model.graph.initializers[f"{value.name}.{part}"] for part in ("scale", "zero")]
        node = ir.node("DequantizeLinear", [small, *parameters], name=f"{value.name}.dequantise")
        made[name] = _named(model, node, name, value.shape, ir.DataType.FLOAT)
    return made[name]


def _named(model: ir.Model, node: ir.Node, name: str, shape: ir.Shape | None, dtype: ir.DataType) -> ir.Value:
    output = node.outputs[0]
    output.name, output.shape, output.type = name, shape, ir.TensorType(dtype)
    model.graph.append(node)
    return output


def _behind(model: ir.Model, value: ir.Value, found: Range, made: dict[str, ir.Value]) -> None:
    """Everything that reads `value` reads it quantised and dequantised, the graph's outputs too."""
    back = _pair(model, value, found, made)
    for node, i in list(value.uses()):
        if node.op_type != "QuantizeLinear" or node.outputs[0].name != f"{value.name}.uint8":
            node.replace_input_with(i, back)
    for i, output in enumerate(model.graph.outputs):
        if output is value:
            name = str(value.name)
            value.name, back.name = f"{name}.raw", name
            model.graph.outputs[i] = back
