"""Writing a quantised graph beside its source: what already lies in the component's data file stays where it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from obclip.core.errors import InputError
from obclip.export.external import EXTERNAL_ABOVE_BYTES, INLINE_BELOW_BYTES, SharedData


def new_bytes(model: ir.Model, path: Path) -> int:
    """What the weights of `model` would add to `path`."""
    tensors = [v.const_value for v in model.graph.initializers.values()]
    return sum(t.nbytes for t in tensors if t is not None and _is_new(t, path))


def save_beside(
    model: ir.Model, out: Path, data: SharedData | None, external_above_bytes: int = EXTERNAL_ABOVE_BYTES
) -> None:
    """Write `out`, new weights appended to `data` one by one, or inside the graph where there is no data file.

    data: None starts `OUT_data` where the weights exceed `external_above_bytes`. InputError: weights lie outside the
    folder of `out`, where no graph in it can read them. OSError: disk full.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    if data is None and new_bytes(model, out) > external_above_bytes:
        path = out.with_name(out.name + "_data")
        path.unlink(missing_ok=True)
        data = SharedData(path)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None:
            continue
        if isinstance(tensor, ir.ExternalTensor):
            if Path(tensor.path).resolve().parent == out.parent.resolve():
                continue
            if data is None:
                value.const_value = ir.Tensor(np.array(tensor.numpy()), name=str(value.name))
                continue
        if data is None or tensor.nbytes < INLINE_BELOW_BYTES:
            continue
        array = np.ascontiguousarray(tensor.numpy())
        raw = memoryview(array.reshape(-1).view(np.uint8).data)
        shape, name = ir.Shape(tensor.shape.numpy()), str(value.name)
        value.const_value = ir.ExternalTensor(
            data.path.name, data.add(raw), len(raw), tensor.dtype, shape=shape, name=name, base_dir=data.path.parent
        )
    if data is not None and data.path.parent.resolve() != out.parent.resolve():
        raise InputError(f"{data.path} and {out} lie in different folders; a graph's weights must be in its own")
    ir.save(model, out)


def _is_new(tensor: ir.TensorProtocol, out: Path) -> bool:
    return not (isinstance(tensor, ir.ExternalTensor) and Path(tensor.path).resolve().parent == out.parent.resolve())
