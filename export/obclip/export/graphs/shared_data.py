"""One file of weights for all graphs of a component: equal bytes are stored once.

ONNX lets a tensor lie in another file, at an offset. Offsets are multiples of a page, so that a runtime maps the file
instead of reading it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx_ir as ir

from obclip.export.external import INLINE_BELOW_BYTES, PAGE_BYTES


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
