"""Quantised graphs against ONNX Runtime's own quantiser, against float32, and against what providers run in int8."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from obclip.core.errors import InputError, VerificationError
from obclip.edge.providers.base import Opening
from obclip.edge.providers.openvino_runtime import OpenVinoProvider
from obclip.export.external import SharedData
from obclip.export.quantise import quantise
from obclip.export.quantise.graph import groups, layers, load_graph
from obclip.export.quantise.qdq import channel_scales, quantise_weight, tensors_to_range
from obclip.export.quantise.ranges import activation_ranges, macs
from obclip.export.quantise.runtimes import open_graph
from obclip.export.quantise.sensitivity import choose, damage
from obclip.export.quantise.verdict import Verdict, of_graph, psnr
from obclip.export.quantise.weights_only import BLOCK, pack_blocks

Feed = dict[str, NDArray[Any]]
SIDE, CHANNELS = 8, 16


def numbers(shape: tuple[int, ...], seed: int, scale: float = 1.0) -> NDArray[np.float32]:
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def small_model(path: Path, stored: str = "float32") -> Path:
    """Convolution, ReLU, convolution, tokens, two products with an attention between them, and back to an image."""
    c = CHANNELS
    weights = {
        "first.w": numbers((c, 4, 3, 3), 1, 0.2), "first.b": numbers((c,), 2),
        "second.w": numbers((c, c, 3, 3), 3, 0.1), "second.b": numbers((c,), 4, 0.1),
        "query.w": numbers((c, c), 5, 0.2), "out.w": numbers((c, c), 6, 0.2),
        "out.b": numbers((c,), 7, 0.1), "last.w": numbers((4, c, 1, 1), 8, 0.2), "last.b": numbers((4,), 9, 0.1),
    }  # fmt: skip
    pixels = SIDE * SIDE
    shapes = {"tokens": (1, c, pixels), "image": (1, c, SIDE, SIDE)}
    nodes, initial = [], [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in shapes.items()]
    for name, value in weights.items():
        if stored == "float16" and name.endswith(".w"):
            initial.append(numpy_helper.from_array(value.astype(np.float16), f"{name}.half"))
            nodes.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT, name=f"{name}.cast"))
        else:
            initial.append(numpy_helper.from_array(value, name))
    pads = {"pads": [1, 1, 1, 1]}
    nodes += [
        helper.make_node("Conv", ["sample", "first.w", "first.b"], ["a"], name="first", **pads),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "second.w", "second.b"], ["b"], name="second", **pads),
        helper.make_node("Reshape", ["b", "tokens"], ["flat"], name="to_tokens"),
        helper.make_node("Transpose", ["flat"], ["x"], perm=[0, 2, 1], name="turn"),
        helper.make_node("MatMul", ["x", "query.w"], ["q"], name="query"),
        helper.make_node("Transpose", ["q"], ["k"], perm=[0, 2, 1], name="keys"),
        helper.make_node("MatMul", ["q", "k"], ["scores"], name="scores"),
        helper.make_node("Softmax", ["scores"], ["p"], name="softmax"),
        helper.make_node("MatMul", ["p", "q"], ["mixed"], name="mix"),
        helper.make_node("MatMul", ["mixed", "out.w"], ["o"], name="out"),
        helper.make_node("Add", ["o", "out.b"], ["ob"], name="out_bias"),
        helper.make_node("Transpose", ["ob"], ["back"], perm=[0, 2, 1], name="turn_back"),
        helper.make_node("Reshape", ["back", "image"], ["c"], name="to_image"),
        helper.make_node("Conv", ["c", "last.w", "last.b"], ["out_sample"], name="last"),
    ]  # fmt: skip
    io = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4, SIDE, SIDE]) for n in ("sample", "out_sample")]
    graph = helper.make_graph(nodes, "small", io[:1], io[1:], initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


LAYERS = ["first", "second", "query", "out", "last"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return small_model(tmp_path / "model.onnx")


@pytest.fixture
def feeds() -> list[Feed]:
    return [{"sample": numbers((1, 4, SIDE, SIDE), 20 + i)} for i in range(6)]


def run(path: Path, feed: Feed) -> NDArray[np.float32]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, feed)[0]


def runs_as(path: Path, folder: Path) -> Counter[str]:
    """Operators that ONNX Runtime's CPU provider really runs."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx", load_external_data=False).graph.node)


@given(weight=arrays(np.float32, (6, 5), elements=st.floats(-100, 100, width=32)))
def test_weights_come_back_within_half_a_step_of_their_channel(weight: NDArray[np.float32]):
    for axis in (0, 1):
        scales = channel_scales(weight, axis)
        shape = (-1, 1) if axis == 0 else (1, -1)
        back = quantise_weight(weight, scales, axis).astype(np.float64) * scales.reshape(shape)
        assert (np.abs(back - weight) <= 0.5001 * scales.reshape(shape) + 1e-6).all()


class Reader(CalibrationDataReader):
    def __init__(self, feeds: list[Feed]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self.feeds, None)


def test_int8_is_what_onnx_runtimes_quantiser_makes(source: Path, feeds: list[Feed], tmp_path: Path):
    """The same layers, ranges from the same data; only biases of products differ, which that one leaves float."""
    theirs = tmp_path / "theirs.onnx"
    quantize_static(
        source, theirs, Reader(feeds), per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        nodes_to_quantize=LAYERS, op_types_to_quantize=["Conv", "MatMul"],
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
    )  # fmt: skip
    report = quantise(source, tmp_path / "mine.onnx", "int8", feeds)
    yours, mine = (
        {i.name: numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer} for path in (theirs, report.out)
    )
    for layer in LAYERS:
        np.testing.assert_array_equal(mine[f"{layer}.w.int8"], yours[f"{layer}.w_quantized"])
        np.testing.assert_allclose(mine[f"{layer}.w.scale"], yours[f"{layer}.w_scale"], rtol=1e-6)
    for tensor in ("sample", "r", "b", "x", "mixed", "c", "out_sample"):
        np.testing.assert_allclose(mine[f"{tensor}.scale"], yours[f"{tensor}_scale"], rtol=1e-5)
        assert abs(int(mine[f"{tensor}.zero"]) - int(yours[f"{tensor}_zero_point"])) <= 1
    wanted = run(source, feeds[0])
    assert abs(psnr(wanted, run(theirs, feeds[0])) - psnr(wanted, run(report.out, feeds[0]))) < 2


def test_on_the_cpu_every_layer_runs_in_int8_and_attention_in_float(source: Path, feeds: list[Feed], tmp_path: Path):
    report = quantise(source, tmp_path / "int8.onnx", "int8", feeds)
    kinds = runs_as(report.out, tmp_path)
    assert kinds["QLinearConv"] == 3
    assert kinds["QGemm"] + kinds["MatMulIntegerToFloat"] == 2
    assert kinds["MatMul"] + kinds["FusedMatMul"] == 2
    assert not {"Conv", "FusedConv", "Gemm", "Relu"} & set(kinds)
    assert report.quantised == len(LAYERS)


def test_openvino_gets_float_outputs(source: Path, feeds: list[Feed], tmp_path: Path):
    report = quantise(source, tmp_path / "int8.onnx", "int8", feeds, target="openvino")
    graph = onnx.load(report.out).graph
    small = {n.input[0] for n in graph.node if n.op_type == "QuantizeLinear"}
    assert small == {"sample", "r", "x", "mixed", "c"}  # what layers take, and nothing that they give
    assert report.verdict.psnr_db >= quantise(source, tmp_path / "cpu.onnx", "int8", feeds).verdict.psnr_db


def test_openvinos_graphs_are_judged_by_openvino(
    source: Path, feeds: list[Feed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """By what the edge's own session gives; by ONNX Runtime where OpenVINO is not installed."""
    pytest.importorskip("openvino")
    report = quantise(source, tmp_path / "int8.onnx", "int8", feeds[:4], target="openvino")
    edge = OpenVinoProvider().open(report.out, Opening())
    values = [psnr(run(source, feed), edge.run(**feed)["out_sample"]) for feed in feeds[:4]]
    assert report.verdict.psnr_db == pytest.approx(np.mean(values), abs=1e-3)
    assert report.to_dict()["judged_by"].startswith("OpenVINO 20")
    assert quantise(source, tmp_path / "cpu.onnx", "int8", feeds).to_dict()["judged_by"].startswith("ONNX Runtime ")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    other = quantise(source, tmp_path / "other.onnx", "int8", feeds[:4], target="openvino")
    assert other.to_dict()["judged_by"] == f"ONNX Runtime {ort.__version__}"
    values = [psnr(run(source, feed), run(other.out, feed)) for feed in feeds[:4]]
    assert other.verdict.psnr_db == pytest.approx(np.mean(values), abs=1e-3)


def test_openvino_opens_a_model_in_memory_on_weights_in_a_file(source: Path, feeds: list[Feed], tmp_path: Path):
    pytest.importorskip("openvino")
    path = tmp_path / "shared.onnx"
    onnx.save(onnx.load(source), path, save_as_external_data=True, location="model.onnx_data", size_threshold=512)
    before = set(tmp_path.iterdir())
    found = of_graph((load_graph(path), tmp_path), source, feeds, "openvino")
    assert found.lowest_db > 100
    assert set(tmp_path.iterdir()) == before
    (tmp_path / "broken.onnx").write_bytes(b"\x08not a model")
    with pytest.raises(VerificationError, match=r"OpenVINO takes no broken.onnx .*leave its target out"):
        open_graph(tmp_path / "broken.onnx", "openvino")


def test_ranges_are_those_of_the_tensors(source: Path, feeds: list[Feed]):
    names = tensors_to_range(load_graph(source), "cpu")
    model = onnx.load(source)
    inner = [name for name in names if name not in ("sample", "out_sample")]
    for name in inner:
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    seen = [dict(zip(inner, session.run(inner, feed), strict=True)) | feed for feed in feeds]
    found = activation_ranges(source, names, feeds)
    for name in [*inner, "sample"]:
        values = np.concatenate([s[name].ravel() for s in seen])
        assert found[name].low == pytest.approx(min(values.min(), 0), rel=1e-5, abs=1e-6)
        assert found[name].high == pytest.approx(max(values.max(), 0), rel=1e-5, abs=1e-6)
    clipped = activation_ranges(source, names, feeds, clip=True)
    assert all(found[n].low <= clipped[n].low <= 0 <= clipped[n].high <= found[n].high for n in names)


def test_work_is_counted_from_the_sizes_that_run(source: Path, feeds: list[Feed]):
    pixels = SIDE * SIDE
    assert macs(source, feeds[0]) == {
        "first": pixels * CHANNELS * 4 * 9, "second": pixels * CHANNELS**2 * 9, "query": pixels * CHANNELS**2,
        "out": pixels * CHANNELS**2, "last": pixels * CHANNELS * 4,
    }  # fmt: skip


def test_layers_that_are_left_out_stay_as_they_were(source: Path, feeds: list[Feed], tmp_path: Path):
    report = quantise(source, tmp_path / "mixed.onnx", "int8", feeds, exclude=["first", "out"])
    assert report.float_layers == ("first", "out")
    weights = {i.name for i in onnx.load(report.out).graph.initializer}
    assert {"first.w", "out.w"} <= weights
    assert not {"second.w", "query.w", "last.w"} & weights
    everything = quantise(source, tmp_path / "none.onnx", "int8", feeds, exclude=LAYERS)
    np.testing.assert_allclose(run(everything.out, feeds[0]), run(source, feeds[0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["int8", "w8", "fp16"])
def test_weights_stored_as_float16_are_weights(precision: str, source: Path, feeds: list[Feed], tmp_path: Path):
    """As good as from float32: how good int8 is differs, for processors without VNNI saturate its products."""
    half = small_model(tmp_path / "half.onnx", "float16")
    assert [layer.name for layer in layers(load_graph(half))] == LAYERS
    whole = quantise(source, tmp_path / "whole.onnx", precision, feeds).verdict.psnr_db
    assert whole > 20
    assert quantise(half, tmp_path / "out.onnx", precision, feeds).verdict.psnr_db > whole - 1


def test_new_weights_join_the_data_file_once(source: Path, feeds: list[Feed], tmp_path: Path):
    model = onnx.load(source)
    path = tmp_path / "shared.onnx"
    onnx.save(model, path, save_as_external_data=True, location="model.onnx_data", size_threshold=512)
    before = (tmp_path / "model.onnx_data").stat().st_size
    data = SharedData(tmp_path / "model.onnx_data")
    first = quantise(path, tmp_path / "one.onnx", "int8", feeds, data=data, exclude=["first"])
    after = data.path.stat().st_size
    assert before < after
    second = quantise(path, tmp_path / "two.onnx", "int8", feeds, data=data, exclude=["first"])
    assert data.path.stat().st_size == after
    np.testing.assert_array_equal(run(first.out, feeds[0]), run(second.out, feeds[0]))
    inline = quantise(source, tmp_path / "inline.onnx", "int8", feeds, exclude=["first"])
    np.testing.assert_array_equal(run(first.out, feeds[0]), run(inline.out, feeds[0]))


def test_large_weights_get_a_file_of_their_own(source: Path, feeds: list[Feed], tmp_path: Path):
    inline = quantise(source, tmp_path / "inline.onnx", "int8", feeds)
    beside = quantise(source, tmp_path / "beside.onnx", "int8", feeds, external_above_bytes=0)
    assert (tmp_path / "beside.onnx_data").is_file()
    np.testing.assert_array_equal(run(beside.out, feeds[0]), run(inline.out, feeds[0]))


def test_weights_in_another_folder_are_refused(source: Path, feeds: list[Feed], tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    data = SharedData(tmp_path / "elsewhere" / "model.onnx_data")
    with pytest.raises(InputError, match="different folders"):
        quantise(source, tmp_path / "out.onnx", "int8", feeds, data=data)


def test_blocks_of_products_come_back(source: Path, feeds: list[Feed], tmp_path: Path):
    weight = numbers((300, 7), 11)
    packed, scales = pack_blocks(weight)
    back = (packed.astype(np.float32) - 128) * scales.reshape(7, -1, 1)
    back = back.reshape(7, -1)[:, :300].T
    steps = np.repeat(scales.reshape(7, -1), BLOCK, axis=1)[:, :300].T
    assert packed.shape == (7, 3, BLOCK)
    assert (np.abs(back - weight) <= 0.5001 * steps).all()
    report = quantise(source, tmp_path / "w8.onnx", "w8", feeds)
    assert runs_as(report.out, tmp_path)["MatMulNBits"] == 2
    assert report.float_layers == ("first", "second", "last")
    assert report.verdict.psnr_db > 35


def test_weight_only_for_other_providers_keeps_float_activations(source: Path, feeds: list[Feed], tmp_path: Path):
    report = quantise(source, tmp_path / "w8.onnx", "w8", feeds, target="openvino")
    kinds = Counter(node.op_type for node in onnx.load(report.out).graph.node)
    assert kinds["DequantizeLinear"] == len(LAYERS)
    assert kinds["QuantizeLinear"] == 0
    assert report.verdict.psnr_db > 35


def test_fp16_computes_in_float16_between_float32_inputs_and_outputs(source: Path, feeds: list[Feed], tmp_path: Path):
    report = quantise(source, tmp_path / "fp16.onnx", "fp16", feeds, target="any")
    graph = onnx.load(report.out).graph
    assert {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)} == {TensorProto.FLOAT}
    weights = [i for i in graph.initializer if i.name.endswith((".w", ".b"))]
    assert len(weights) == 9
    assert {i.data_type for i in weights} == {TensorProto.FLOAT16}
    assert sum(n.op_type == "Cast" for n in graph.node) == 2
    assert report.verdict.psnr_db > 45


def test_requests_that_cannot_be_met(source: Path, feeds: list[Feed], tmp_path: Path):
    out = tmp_path / "out.onnx"
    with pytest.raises(InputError, match="choose one of fp16, int8, w8, w8a16"):
        quantise(source, out, "int4", feeds)
    with pytest.raises(InputError, match="no calibration data"):
        quantise(source, out, "int8", [])
    with pytest.raises(InputError, match="no layer 'third'"):
        quantise(source, out, "int8", feeds, exclude=["third"])
    with pytest.raises(InputError, match="lacks sample"):
        quantise(source, out, "int8", [{"latents": feeds[0]["sample"]}])
    with pytest.raises(InputError, match="not finite"):
        quantise(source, out, "int8", [{"sample": np.full((1, 4, SIDE, SIDE), np.inf, np.float32)}])
    (tmp_path / "broken.onnx").write_bytes(b"\x08not a model")
    with pytest.raises(InputError, match="export it again"):
        quantise(tmp_path / "broken.onnx", out, "int8", feeds)
    assert not out.exists()


@pytest.mark.parametrize("at_most", [10, 3, 2])  # with fewer groups than layers, the worst is looked into
def test_a_layer_with_an_outlier_is_found_and_left_out(source: Path, feeds: list[Feed], tmp_path: Path, at_most: int):
    """One channel of tokens 200 times larger: its tensor's scale no longer resolves the others."""
    model = onnx.load(source)
    names = {i.name: i for i in model.graph.initializer}
    bias = numpy_helper.to_array(names["second.b"]).copy()
    bias[3] = 300
    names["second.b"].CopyFrom(numpy_helper.from_array(bias, "second.b"))
    weight = numpy_helper.to_array(names["query.w"]).copy()
    weight[3] = 0
    names["query.w"].CopyFrom(numpy_helper.from_array(weight, "query.w"))
    onnx.save(model, source)
    ranges = activation_ranges(source, tensors_to_range(model := load_graph(source), "openvino"), feeds)
    assert len(layers(model)) == len(LAYERS)
    table = damage(source, ranges, feeds, "openvino", at_most)
    assert sorted(name for d in table for name in d.layers) == sorted(layer.name for layer in layers(model))
    assert table[0].layers == ("query",)
    assert sum(d.share for d in table) == pytest.approx(1)

    def judge(excluded: tuple[str, ...]) -> Verdict:
        return quantise(
            source, tmp_path / "try.onnx", "int8", feeds, target="openvino", exclude=excluded, ranges=ranges
        ).verdict

    assert judge(()).psnr_db < judge(("query",)).psnr_db - 6
    choice = choose(table, judge, floor_db=judge(("query",)).psnr_db - 3)
    assert choice.excluded == ("query",)


def test_neighbours_with_one_input_stay_in_one_group(source: Path):
    found = layers(load_graph(source))
    twice = [found[0], found[0], found[1], *found]
    for at_most in (1, 2, 3, 20):
        parts = groups(twice, at_most)
        assert [layer for part in parts for layer in part] == twice
        assert len(parts) <= at_most
        assert parts[0][:2] == (found[0], found[0])
