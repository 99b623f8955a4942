"""fp16 for accelerators: weights and arithmetic in float16, inputs and outputs float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnxruntime.transformers.float16 import convert_float_to_float16

from obclip.export.quantise.graph import load_graph

# Where float16 loses the range of sums over many numbers, or has no kernel
_KEPT = ("Resize", "InstanceNormalization", "LayerNormalization", "Sin", "Cos", "Range")
_LARGE_ELEMENTS = 4096
_LARGEST = np.finfo(np.float16).max


def half_model(source: Path) -> ir.Model:
    """The model at `source` with a float16 graph; norms (and the step's sinusoid) stay float32, behind casts.

    ONNX Runtime's converter rewrites the graph. It would copy the weights several times, 11 GB for half a billion of
    them, so it sees large ones as inputs; they are put back as float16, each converted when it is written.
    """
    model = load_graph(source)
    kept = [str(v.name) for v in (*model.graph.inputs, *model.graph.outputs)]
    large: dict[str, ir.TensorProtocol] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.dtype == ir.DataType.FLOAT and tensor.size > _LARGE_ELEMENTS:
            large[name] = tensor
            model.graph.initializers.pop(name)
            value.const_value = None
            model.graph.inputs.append(value)
        elif isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.Tensor(np.array(tensor.numpy()), name=name)
    half = ir.from_proto(
        convert_float_to_float16(
            ir.to_proto(model), keep_io_types=kept, disable_shape_infer=True, op_block_list=list(_KEPT)
        )
    )
    for value in [v for v in half.graph.inputs if v.name in large]:
        half.graph.inputs.remove(value)
        value.const_value = _halved(large[str(value.name)], str(value.name))
        value.type = ir.TensorType(ir.DataType.FLOAT16)
        half.graph.register_initializer(value)
    return half


def _halved(tensor: ir.TensorProtocol, name: str) -> ir.LazyTensor:
    def convert() -> ir.TensorProtocol:
        return ir.Tensor(np.clip(tensor.numpy(), -_LARGEST, _LARGEST).astype(np.float16), name=name)

    return ir.LazyTensor(convert, dtype=ir.DataType.FLOAT16, shape=ir.Shape(tensor.shape.numpy()), name=name)
