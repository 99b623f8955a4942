"""Weight-only int8: a quarter of the bytes; arithmetic and activations stay as they are."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from obclip.export.quantise.graph import array, constant, drop_unused, layers
from obclip.export.quantise.qdq import dequantised_weight

BLOCK = 128  # of input channels that share a scale in MatMulNBits
_INT8_ACCUMULATION = 4  # its accuracy_level: activations are quantised block by block as they come


def dequantise_weights(model: ir.Model, chosen: Collection[str]) -> None:
    """int8 weights behind a DequantizeLinear each, in place: any provider, and what OpenVINO compresses weights to."""
    nodes = {str(node.name): node for node in model.graph}
    for layer in layers(model):
        if layer.name in chosen:
            dequantised_weight(model, nodes[layer.name], layer.weight, 0 if layer.kind == "Conv" else 1)
    drop_unused(model)


def block_products(model: ir.Model, chosen: Collection[str]) -> None:
    """Products as com.microsoft.MatMulNBits with 8 bits, in place; convolutions stay float."""
    nodes = {str(node.name): node for node in model.graph}
    for layer in layers(model):
        if layer.name not in chosen or layer.kind != "MatMul":
            continue
        node = nodes[layer.name]
        inputs, outputs = (int(n) for n in array(node.inputs[1]).shape)
        packed, scales = pack_blocks(array(node.inputs[1]))
        values = [
            constant(model, f"{layer.weight}.{what}", ir.tensor(data))
            for what, data in (("packed", packed), ("scales", scales))
        ]
        new = ir.node(
            "MatMulNBits", [node.inputs[0], *values],
            {"K": inputs, "N": outputs, "bits": 8, "block_size": BLOCK, "accuracy_level": _INT8_ACCUMULATION},
            domain="com.microsoft", name=node.name,
        )  # fmt: skip
        new.outputs[0].shape, new.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
        model.graph.insert_before(node, new)
        name = node.outputs[0].name
        node.outputs[0].replace_all_uses_with(new.outputs[0], replace_graph_outputs=True)
        node.outputs[0].name, new.outputs[0].name = f"{name}.old", name
        model.graph.remove(node, safe=True)
    model.graph.opset_imports.setdefault("com.microsoft", 1)
    drop_unused(model)


def pack_blocks(weight: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """[K, N] as MatMulNBits has it: uint8 [N, blocks, BLOCK] around 128, and float32 scales [N * blocks]."""
    inputs, outputs = weight.shape
    blocks = -(-inputs // BLOCK)
    padded = np.zeros((outputs, blocks * BLOCK), np.float32)
    padded[:, :inputs] = weight.T
    split = padded.reshape(outputs, blocks, BLOCK)
    scales = np.maximum(np.abs(split).max(-1) / np.float32(127), np.float32(1e-12))
    return (np.rint(split / scales[..., None]) + 128).astype(np.uint8), scales.reshape(-1)
