"""Qualcomm's HTP: weights of 8 bits and activations of 16, as quantise-dequantise pairs on fixed shapes.

Needs onnx and onnxruntime; the accelerator, or its emulator on x86, comes with onnxruntime-qnn. `obclip.edge` runs the
result with `--provider qnn`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

from obclip.export.targets.rewrite import fix_shapes, flat_norms, unique_names

Inputs = Mapping[str, NDArray[Any]]
_OPSET = 21  # where ONNX's own quantisation takes 16 bits; the operators of our graphs are those of opset 20


def qnn_graph(model: onnx.ModelProto, dims: Mapping[str, int]) -> onnx.ModelProto:
    """The same computation on fixed shapes (`dims`: free axis -> size), in operators that HTP gets right."""
    graph = unique_names(flat_norms(fix_shapes(model, dims)))
    for opset in graph.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = _OPSET
    return graph


def quantise_w8a16(source: Path, out: Path, calibration: Iterable[Inputs]) -> None:
    """`source`, a `qnn_graph` on disk, with uint8 weights and uint16 activations, whose ranges are those met in
    `calibration`; `out` gets its weights beside it where the source has them so."""
    config = get_qnn_qdq_config(
        source, _Reader(calibration), activation_type=QuantType.QUInt16, weight_type=QuantType.QUInt8
    )
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it advises on a preprocessing that has been done
    try:
        quantize(source, out, config)
    finally:
        logger.setLevel(level)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, data: Iterable[Inputs]) -> None:
        self._data: Iterator[Inputs] = iter(data)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        found = next(self._data, None)
        return None if found is None else {name: np.asarray(value) for name, value in found.items()}
