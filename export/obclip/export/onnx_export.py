"""From a PyTorch module to model.onnx: torch.onnx's exporter, then weights stored as float16 if asked."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from obclip.export.components import Part

OPSET = 20  # the newest that mobile providers read whole: GroupNormalization and Attention arrive after it
EXTERNAL_ABOVE_BYTES = 1_900_000_000  # a protobuf file ends at 2 GiB
_HALVE_FROM_ELEMENTS = 256


def export_onnx(part: Part, path: Path, weights: str, external_above_bytes: int = EXTERNAL_ABOVE_BYTES) -> None:
    """Write `part` to `path` (and `path` + "_data" when large). weights: "fp32", or "fp16" for half the size.

    With "fp16" only the stored weights are float16; a Cast, which ONNX Runtime folds when it loads the model, brings
    them back, so the arithmetic stays float32.
    """
    model = _trace(part)
    if weights == "fp16":
        _store_weights_as_half(model)
    size = sum(len(t.raw_data) for t in model.graph.initializer)
    path.parent.mkdir(parents=True, exist_ok=True)
    if size > external_above_bytes:
        onnx.save(model, path, save_as_external_data=True, all_tensors_to_one_file=True, location=path.name + "_data")
    else:
        onnx.save(model, path)


def _trace(part: Part) -> onnx.ModelProto:
    example = part.inputs(2, 1.0, 0)
    axes = {name: {axis: torch.export.Dim.DYNAMIC for axis in part.dynamic[name]} for name in example}
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            part.module,
            (),
            kwargs=example,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(example),
            output_names=list(part.outputs),
            dynamic_shapes=axes,
        )
    assert program is not None
    model = program.model_proto
    _name_axes(model, part)
    return model


def _name_axes(model: onnx.ModelProto, part: Part) -> None:
    """Give free input axes the names that optimum uses."""
    for value in model.graph.input:
        for axis, name in part.dynamic[value.name].items():
            value.type.tensor_type.shape.dim[axis].dim_param = name


def _store_weights_as_half(model: onnx.ModelProto) -> None:
    graph, casts, kept = model.graph, [], []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or values.size < _HALVE_FROM_ELEMENTS:
            kept.append(tensor)
            continue
        with np.errstate(over="ignore"):  # masks hold -inf and the like: those stay float32
            half = values.astype(np.float16)
        if not np.isfinite(half).all():
            kept.append(tensor)
            continue
        name = tensor.name + ".half"
        kept.append(numpy_helper.from_array(half, name))
        casts.append(helper.make_node("Cast", [name], [tensor.name], to=TensorProto.FLOAT, name=tensor.name + ".cast"))
    del graph.initializer[:]
    graph.initializer.extend(kept)
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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
