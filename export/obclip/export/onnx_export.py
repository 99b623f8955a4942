"""From a PyTorch module to model.onnx: torch.onnx's exporter, then weights stored as float16 if asked."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from obclip.export.components import Part
from obclip.export.external import EXTERNAL_ABOVE_BYTES, save_model

OPSET = 20  # the newest that mobile providers read whole: GroupNormalization and Attention arrive after it
_HALVE_FROM_ELEMENTS = 256

__all__ = ["EXTERNAL_ABOVE_BYTES", "OPSET", "export_onnx", "forget_traces", "quiet", "store_weights_as_half"]


def export_onnx(part: Part, path: Path, weights: str, external_above_bytes: int = EXTERNAL_ABOVE_BYTES) -> None:
    """Write `part` to `path` (and `path` + "_data" when large). weights: "fp32", or "fp16" for half the size.

    With "fp16" only the stored weights are float16; a Cast, which ONNX Runtime folds when it loads the model, brings
    them back, so the arithmetic stays float32. Weights go from the module to the file one at a time.
    """
    model = trace(part)
    if weights == "fp16":
        store_weights_as_half(model)
    save_model(model, path, external_above_bytes)


def trace(part: Part) -> ir.Model:
    """`part` as a graph whose initializers are still the module's own tensors."""
    example = part.inputs(2, 1.0, 0)
    with torch.no_grad(), quiet():
        program = torch.onnx.export(
            part.module,
            (),
            kwargs=example,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(example),
            output_names=list(part.outputs),
            dynamic_shapes={n: {axis: torch.export.Dim.DYNAMIC for axis in part.dynamic[n]} for n in example},
        )
    assert program is not None
    _name_axes(program.model, part)
    forget_traces(program.model)
    return program.model


def forget_traces(model: ir.Model) -> None:
    """The exporter notes on every node which lines of which files it came from: paths of a machine, half the size."""
    model.metadata_props.clear()
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        graph.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()


def _name_axes(model: ir.Model, part: Part) -> None:
    """Give free axes the names that optimum uses, wherever they occur."""
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, name in part.dynamic[str(value.name)].items():
            assert value.shape is not None
            names[str(value.shape[axis])] = name
    seen = {id(v): v for node in model.graph for v in node.outputs}
    for value in [*model.graph.inputs, *seen.values()]:
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int) and str(size) in names and value.shape is not None:
                value.shape[axis] = ir.SymbolicDim(names[str(size)])
    for value in model.graph.outputs:
        for axis, name in part.free.get(str(value.name), {}).items():
            if value.shape is not None:
                value.shape[axis] = ir.SymbolicDim(name)


def store_weights_as_half(model: ir.Model) -> None:
    graph = model.graph
    casts = []
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        assert tensor is not None
        if tensor.dtype != ir.DataType.FLOAT or tensor.size < _HALVE_FROM_ELEMENTS:
            continue
        with np.errstate(over="ignore"):  # masks hold -inf and the like: those stay float32
            half = tensor.numpy().astype(np.float16)
        if not np.isfinite(half).all():
            continue
        stored = ir.Value(name=f"{name}.half", shape=ir.Shape(half.shape), type=ir.TensorType(ir.DataType.FLOAT16))
        stored.const_value = ir.Tensor(half, name=stored.name)
        graph.initializers.pop(name)
        graph.register_initializer(stored)
        cast = ir.Node("", "Cast", [stored], [ir.AttrInt64("to", int(ir.DataType.FLOAT))], name=f"{name}.cast")
        value.replace_all_uses_with(cast.outputs[0])
        cast.outputs[0].name = name
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(half.shape)
        casts.append(cast)
    graph.insert_before(graph[0], casts)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter reports progress on stdout and warns about its own internals; errors still come through."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
