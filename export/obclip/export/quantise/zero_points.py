"""Convolutions whose uint8 input has no zero point, for OpenVINO: it opens them sooner and computes the same.

With a zero point oneDNN sums the weights while it lays them out, anew at each start: with OpenVINO 2026.4 most of the
time in which small-sd's compiled int8 UNet opened. A convolution is linear: W * s (q - z) = W * s q - s z sum(W), so
the sum of the weights can go off the bias once and for all. Where it pads with zeros, the uint8 input is padded with z
before.
Products need nothing of the kind: OpenVINO does so to them itself.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from obclip.export.quantise.graph import array, constant
from obclip.export.quantise.ranges import Range


def can_fold(node: ir.Node) -> bool:
    """Whether the convolution says its padding in numbers, as PyTorch's exporter writes it."""
    auto = node.attributes.get("auto_pad")
    return auto is None or auto.as_string() == "NOTSET"


def fold_zero_point(model: ir.Model, node: ir.Node, small: ir.Value, found: Range) -> None:
    """Let the convolution `node`, its weight quantised already, read `small`, uint8 of range `found`, in place."""
    name, zero = str(node.name), int(found.zero_point)
    pads = node.attributes["pads"].as_ints() if "pads" in node.attributes else ()
    if zero and any(pads):
        small = _padded(model, node, small, list(pads), found)
        node.attributes["pads"] = ir.AttrInt64s("pads", [0] * len(pads))
    parameters = [
        constant(model, f"{name}.data.scale", ir.tensor(found.scale)),
        constant(model, f"{name}.data.zero", ir.tensor(np.uint8(0))),
    ]
    back = ir.node("DequantizeLinear", [small, *parameters], name=f"{name}.data")
    back.outputs[0].name = f"{name}.data"
    back.outputs[0].shape, back.outputs[0].type = small.shape, ir.TensorType(ir.DataType.FLOAT)
    model.graph.insert_before(node, back)
    node.replace_input_with(0, back.outputs[0])
    if zero:
        _off_the_bias(model, node, zero * float(found.scale))


def _padded(model: ir.Model, node: ir.Node, small: ir.Value, pads: list[int], found: Range) -> ir.Value:
    """The border that the convolution would add, before it: where the float input is 0, the uint8 one is z."""
    half = len(pads) // 2
    around = np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)
    inputs = [
        small,
        constant(model, f"{node.name}.pads", ir.tensor(around)),
        constant(model, f"{node.name}.border", ir.tensor(found.zero_point)),
    ]
    pad = ir.node("Pad", inputs, {"mode": "constant"}, name=f"{node.name}.pad")
    output = pad.outputs[0]
    output.name, output.type = f"{node.name}.padded", ir.TensorType(ir.DataType.UINT8)
    output.shape = _grown(small.shape, pads)
    model.graph.insert_before(node, pad)
    return output


def _grown(shape: ir.Shape | None, pads: list[int]) -> ir.Shape | None:
    if shape is None:
        return None
    half = len(pads) // 2
    more = [0, 0, *(pads[i] + pads[half + i] for i in range(half))]
    return ir.Shape([d + m if isinstance(d, int) else None if m else d for d, m in zip(shape, more, strict=True)])


def _off_the_bias(model: ir.Model, node: ir.Node, offset: float) -> None:
    """offset: how much more the convolution now reads everywhere."""
    weight = node.inputs[1]
    dequantise = None if weight is None else weight.producer()
    assert dequantise is not None
    small, scales = array(dequantise.inputs[0]), array(dequantise.inputs[1]).astype(np.float64)
    sums = small.sum(tuple(range(1, small.ndim)), dtype=np.int64) * scales
    has = len(node.inputs) > 2 and node.inputs[2] is not None
    old = array(node.inputs[2]).astype(np.float64) if has else np.zeros(len(scales))
    new = constant(model, f"{node.name}.bias", ir.tensor((old - offset * sums).astype(np.float32)))
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, new)
