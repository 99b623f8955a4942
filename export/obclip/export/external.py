"""Weights beside the graph: one data file a component, each tensor written from where it lies, equal ones once."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

# Below it a model is one file. Above, serialising weights inside a protobuf would cost memory twice over (and 2 GiB
# is a protobuf file's end), while weights beside it are written one by one and mapped when read.
EXTERNAL_ABOVE_BYTES = 100_000_000
INLINE_BELOW_BYTES = 1024  # shapes, scales and the like, which shape inference wants to see
PAGE_BYTES = 4096


def save_model(model: ir.Model, path: Path, external_above_bytes: int = EXTERNAL_ABOVE_BYTES) -> None:
    """Write `path`, and its weights to `path` + "_data" if they exceed `external_above_bytes`. OSError: disk full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    if sum(t.nbytes for t in tensors) > external_above_bytes:
        _move_out(model, path.with_name(path.name + "_data"))
    ir.save(model, path)


def _move_out(model: ir.Model, data: Path) -> None:
    places: dict[tuple[str, int], int] = {}
    with data.open("wb") as file:
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < INLINE_BELOW_BYTES:
                continue
            offset, length = _write_once(file, tensor, places)
            value.const_value = ir.ExternalTensor(
                data.name, offset, length, tensor.dtype, shape=ir.Shape(tensor.numpy().shape), name=str(value.name),
                base_dir=data.parent,
            )  # fmt: skip


def _write_once(file: BinaryIO, tensor: ir.TensorProtocol, places: dict[tuple[str, int], int]) -> tuple[int, int]:
    """(offset, bytes) of the tensor in the file; offsets are multiples of a page so that each can be mapped alone."""
    array = np.ascontiguousarray(tensor.numpy())
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    raw = memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    key = (hashlib.sha256(raw).hexdigest(), len(raw))
    if key not in places:
        places[key] = file.seek(-(-file.tell() // PAGE_BYTES) * PAGE_BYTES)
        file.write(raw)
    return places[key], len(raw)
