"""PyTorch's exporter traces a model for seconds, however small it is: tests trace each model once a session.

A second trace of a part with the same weights, settings and example shapes is the first one's graph, read back from a
file. What happens to it afterwards (halving, saving, verification) is done anew every time, and so are device graphs.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch

import obclip.export.onnx_export as onnx_export


@contextmanager
def kept(folder: Path) -> Iterator[Callable[[], int]]:
    """Traces are kept in `folder` in here; gives a function that counts them."""

    def remembered(trace: Callable[[Any], ir.Model], describe: Callable[[Any], Any]) -> Callable[[Any], ir.Model]:
        def once(asked: Any) -> ir.Model:
            path = folder / f"{_digest(asked.module, describe(asked))}.onnx"
            if path.exists():
                return ir.load(path)
            model = trace(asked)
            begun = path.with_suffix(f".{os.getpid()}")
            ir.save(model, begun)
            begun.replace(path)
            return model

        return once

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "trace", remembered(onnx_export.trace, _of_part))
        yield lambda: len(list(folder.iterdir()))


def _of_part(part: Any) -> Any:
    shapes = {name: (tuple(x.shape), str(x.dtype)) for name, x in part.inputs(2, 1.0, 0).items()}
    return part.name, shapes, part.outputs, part.dynamic, part.free, sorted(map(str, part.config.items()))


def _digest(module: torch.nn.Module, described: Any) -> str:
    """Of weights, and of all else that a trace can depend on: classes, and numbers and functions that they hold."""
    found = hashlib.sha256(repr(described).encode())
    for name, value in module.state_dict().items():
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.contiguous().numpy().tobytes())
    for name, one in module.named_modules():
        held = {k: v for k, v in vars(one).items() if isinstance(v, (bool, int, float, str, tuple, list))}
        functions = {k: v.__qualname__ for k, v in vars(one).items() if hasattr(v, "__qualname__")}
        found.update(repr((name, type(one).__qualname__, sorted(held.items()), sorted(functions.items()))).encode())
    return found.hexdigest()
