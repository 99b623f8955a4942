"""Weights straight from safetensors into a module, without a second copy: mapped if float32, else widened one by one.

The file format: 8 bytes of header length, a JSON header, then the tensors (github.com/huggingface/safetensors, Format).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights

from obclip.core.errors import ModelMissingError
from obclip.core.weights import DIFFUSERS, weight_files, weights_in
from obclip.export.configs import read_config

_DTYPES = {
    "F64": (np.float64, torch.float64), "F32": (np.float32, torch.float32), "F16": (np.float16, torch.float16),
    "BF16": (np.uint16, torch.bfloat16), "I64": (np.int64, torch.int64), "I32": (np.int32, torch.int32),
}  # fmt: skip
# Stable Diffusion 1.x's VAE was saved before diffusers renamed its attention
_OLD_NAMES = ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0."))


def load_model(kind: Any, folder: Path) -> Any:
    """A diffusers model (`kind`, a ModelMixin class) in float32, for inference.

    A float32 checkpoint stays mapped from disk, so its pages can be given back; others cost their float32 size.
    ModelMissingError: missing, damaged or mismatched weights or configuration.
    """
    files = weight_files(folder, weights_in(folder, DIFFUSERS))
    try:
        with init_empty_weights(include_buffers=False):
            model = kind.from_config(read_config(kind, folder))
        wanted = set(model.state_dict())
        state = {_current(name, wanted): value for file in files for name, value in read_tensors(file)}
        missing = sorted(wanted - set(state))
        if missing:
            raise ModelMissingError(
                f"{folder} lacks {len(missing)} weights, {missing[0]} among them: download it again"
            )
        model.load_state_dict({name: state[name] for name in wanted}, strict=True, assign=True)
    except (ValueError, KeyError, RuntimeError, TypeError, NotImplementedError) as error:
        raise ModelMissingError(f"{folder} cannot be loaded as {kind.__name__}: {error}") from error
    return model.eval().requires_grad_(False)


def read_tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of a safetensors file; floating ones as float32. ModelMissingError if it is damaged."""
    header, start = read_header(path)
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise ModelMissingError(f"{path}: {name} is {entry['dtype']}; save the model as float32 or float16")
        numpy_type, torch_type = _DTYPES[entry["dtype"]]
        first, last = entry["data_offsets"]
        shape = tuple(entry["shape"])
        if first == last:
            yield name, torch.zeros(shape)
            continue
        # Mode "c": pages are the file's until written to, which nobody does
        array = np.memmap(path, numpy_type, mode="c", offset=start + first, shape=shape or (1,))
        tensor = torch.from_numpy(array).view(torch_type).reshape(shape)
        yield name, tensor.float() if tensor.is_floating_point() else tensor


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The entries of a safetensors file and where its data begins. ModelMissingError if it is truncated or altered."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= size - 8:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if 8 + length + end > size:
            raise ValueError(f"{size} bytes, wanted {8 + length + end}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelMissingError(f"{path} has damaged weights ({error}); download it again") from error
    return header, 8 + length


def _current(name: str, wanted: set[str]) -> str:
    if name not in wanted:
        for old, new in _OLD_NAMES:
            name = name.replace(old, new)
    return name
