"""Weights beside the graphs: one data file for all of a component's, in which equal bytes are stored once.

ONNX lets a tensor lie in another file, at an offset. Offsets are multiples of a page, so that a runtime maps the file
instead of reading it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

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
    if sum(t.nbytes for t in tensors) <= external_above_bytes:
        ir.save(model, path)
        return
    data = path.with_name(path.name + "_data")
    data.unlink(missing_ok=True)
    SharedData(data).save(model, path)


class SharedData:
    """Appends to `path`. What models already have there is found again by `adopt`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[tuple[bytes, int], int] = {}  # (SHA-256, bytes) -> offset

    def add(self, raw: memoryview) -> int:
        """Where `raw` lies in the file, from now on or before."""
        key = (hashlib.sha256(raw).digest(), len(raw))
        if key in self._places:
            return self._places[key]
        with self.path.open("ab") as file:
            at = file.tell()
            offset = -(-at // PAGE_BYTES) * PAGE_BYTES
            file.write(b"\0" * (offset - at))
            file.write(raw)
        self._places[key] = offset
        return offset

    def adopt(self, model: Path) -> None:
        """Remember the tensors of the model at `model` that lie in this file.

        Each is read, not mapped: mapped pages would stay, as many as all of the weights.
        """
        found = [v.const_value for v in ir.load(model).graph.initializers.values()]
        mine = [t for t in found if isinstance(t, ir.ExternalTensor) and Path(t.path).name == self.path.name]
        if not mine:
            return
        with self.path.open("rb") as file:
            for tensor in mine:
                offset = int(tensor.offset or 0)
                file.seek(offset)
                raw = file.read(tensor.nbytes)
                self._places[hashlib.sha256(raw).digest(), len(raw)] = offset

    def save(self, model: ir.Model, path: Path) -> None:
        """Write `model` to `path`, beside this file, its large tensors in it. OSError: disk full."""
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < INLINE_BELOW_BYTES:
                continue
            raw = _bytes(tensor)
            value.const_value = ir.ExternalTensor(
                self.path.name, self.add(raw), len(raw), tensor.dtype, shape=ir.Shape(tensor.numpy().shape),
                name=str(value.name), base_dir=self.path.parent,
            )  # fmt: skip
        ir.save(model, path)


def _bytes(tensor: ir.TensorProtocol) -> memoryview:
    array = np.ascontiguousarray(tensor.numpy())
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
