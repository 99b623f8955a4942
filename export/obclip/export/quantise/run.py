"""One graph at another precision: from an ONNX file to an ONNX file and a report."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from obclip.core.errors import InputError
from obclip.export.external import EXTERNAL_ABOVE_BYTES, SharedData
from obclip.export.quantise import qdq, weights_only
from obclip.export.quantise.graph import Feed, every, layers, load_graph
from obclip.export.quantise.half import half_model
from obclip.export.quantise.ranges import Range, activation_ranges
from obclip.export.quantise.report import QuantisationReport
from obclip.export.quantise.store import new_bytes, save_beside
from obclip.export.quantise.verdict import Verdict, of_graph
from obclip.export.targets.qnn import qnn_graph, quantise_w8a16

PRECISIONS = ("fp16", "int8", "w8", "w8a16")
VERDICT_FEEDS = 4


def quantise(
    source: Path,
    out: Path,
    precision: str,
    calibration: Iterable[Feed],
    *,
    target: str = "cpu",
    exclude: Collection[str] = (),
    ranges: Mapping[str, Range] | None = None,
    judge: Callable[[Path], Verdict] | None = None,
    data: SharedData | None = None,
    external_above_bytes: int = EXTERNAL_ABOVE_BYTES,
) -> QuantisationReport:
    """Write `source` (float32) to `out` at `precision`, and say what that costs.

    precision: "fp16" (arithmetic too; norms, inputs and outputs float32), "int8" (static), "w8" (weights alone) or
    "w8a16" (for QNN). calibration: real inputs (`trajectories`). target: "cpu", "openvino" or "any". exclude: names of
    layers to leave float. ranges: of activations, where they are known already. judge: measures what was written as a
    part of the whole (`verdict.of_unet`); by default its own outputs are compared on a few of the inputs. data: the
    component's file of weights, which new ones are appended to; `out` must lie beside it.

    InputError: an unknown precision, a name that is no layer, no calibration data. OSError: disk full.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; choose one of {', '.join(PRECISIONS)}")
    started, feeds = time.perf_counter(), list(calibration)
    if not feeds:
        raise InputError("there is no calibration data: give some of the model's real inputs (trajectories makes them)")
    names = [layer.name for layer in layers(load_graph(source))]
    if unknown := set(exclude) - set(names):
        raise InputError(f"{source.name} has no layer {min(unknown)!r}; its layers are {', '.join(names[:5])}, ...")
    chosen = [name for name in names if name not in exclude]
    if precision == "w8a16":
        chosen, added = names, _w8a16(source, out, feeds)
    else:
        if precision == "int8" and ranges is None:
            ranges = activation_ranges(source, qdq.tensors_to_range(load_graph(source), target), feeds)
        model = apply(source, precision, chosen, target, ranges)
        added = new_bytes(model, out)
        save_beside(model, out, data, external_above_bytes)
    verdict = judge(out) if judge is not None else of_graph(out, source, every(feeds, VERDICT_FEEDS), target)
    left = tuple(name for name in names if name not in chosen)
    if precision == "w8" and target == "cpu":
        kinds = {layer.name: layer.kind for layer in layers(load_graph(source))}
        left = tuple(name for name in names if name not in chosen or kinds[name] == "Conv")
    seconds = time.perf_counter() - started
    size = out.stat().st_size + added
    return QuantisationReport(out, precision, target, len(names) - len(left), left, verdict, size, seconds)


def apply(
    source: Path, precision: str, chosen: Sequence[str], target: str, ranges: Mapping[str, Range] | None
) -> ir.Model:
    """The model at `source` with the layers `chosen` at `precision`; fp16 takes all of it."""
    if precision == "fp16":
        return half_model(source)
    model = load_graph(source)
    if precision == "int8":
        assert ranges is not None
        qdq.insert(model, ranges, chosen, target)
    elif target == "cpu":
        weights_only.block_products(model, chosen)
    else:
        weights_only.dequantise_weights(model, chosen)
    return model


def _w8a16(source: Path, out: Path, feeds: Sequence[Feed]) -> int:
    """By the QNN provider's own rules, on the shapes of the calibration data; returns the bytes beside the graph."""
    proto = onnx.load(source)
    sizes: dict[str, int] = {}
    for value in proto.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, feeds[0][value.name].shape, strict=True):
            if dim.dim_param:
                sizes[dim.dim_param] = size
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        graph = Path(folder) / "graph.onnx"
        fixed = qnn_graph(proto, sizes)
        del proto
        large = fixed.ByteSize() > EXTERNAL_ABOVE_BYTES
        onnx.save(fixed, graph, save_as_external_data=large, location="graph.onnx_data" if large else None)
        del fixed
        declared = {v.name for v in onnx.load(graph, load_external_data=False).graph.input}
        quantise_w8a16(graph, out, [{n: v for n, v in feed.items() if n in declared} for feed in feeds])
    beside = out.with_name(out.name + "_data")
    return beside.stat().st_size if beside.exists() else 0
