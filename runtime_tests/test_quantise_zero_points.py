"""OpenVINO's int8 convolutions without zero points: the same numbers, and still computed in int8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from obclip.export.quantise.graph import layers, load_graph
from obclip.export.quantise.qdq import insert, tensors_to_range
from obclip.export.quantise.ranges import Range

PLAIN = "webgpu"  # a target whose pairs keep their zero points, with float outputs as OpenVINO's


def convolution(path: Path, shape: tuple[int, ...], bias: bool, **attributes: object) -> Path:
    rng = np.random.default_rng(sum(shape))
    initial = [numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), "w")]
    if bias:
        initial.append(numpy_helper.from_array(rng.standard_normal(shape[0]).astype(np.float32), "b"))
    node = helper.make_node("Conv", ["x", "w", "b"][: 2 + bias], ["y"], name="conv", **attributes)
    spatial = ["h", "w"][: len(shape) - 2]
    channels = shape[1] * int(attributes.get("group", 1))
    io = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, *spatial]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, shape[0], *(f"{s}_out" for s in spatial)]),
    ]
    graph = helper.make_graph([node], "one", io[:1], io[1:], initial)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def quantised(source: Path, ranges: dict[str, Range], target: str) -> onnx.ModelProto:
    model = load_graph(source)
    insert(model, ranges, [layer.name for layer in layers(model)], target)
    return ir.to_proto(model)


def run(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # as it is written
    return ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0]


@settings(deadline=None, max_examples=60)
@given(
    low=st.floats(-4, 0), high=st.floats(0.1, 8), bias=st.booleans(), group=st.sampled_from([1, 2]),
    stride=st.integers(1, 2), kernel=st.sampled_from([1, 3]), dims=st.integers(1, 2), data=st.data(),
)  # fmt: skip
def test_the_numbers_are_those_of_the_pair_with_its_zero_point(
    low: float, high: float, bias: bool, group: int, stride: int, kernel: int, dims: int, data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
):  # fmt: skip
    pads = data.draw(st.lists(st.integers(0, 2), min_size=2 * dims, max_size=2 * dims))
    path = tmp_path_factory.mktemp("conv") / "model.onnx"
    kinds = {"pads": pads, "strides": [stride] * dims, "group": group}
    source = convolution(path, (6, 4, *[kernel] * dims), bias, **kinds)
    ranges = {"x": Range(low, high)}
    x = np.random.default_rng(1).uniform(low, high, (1, 4 * group, *[7, 5][:dims])).astype(np.float32)
    plain, folded = (run(quantised(source, ranges, target), x) for target in (PLAIN, "openvino"))
    assert folded.shape == plain.shape
    np.testing.assert_allclose(folded, plain, atol=2e-4 * max(high, -low))


def zero_points(model: onnx.ModelProto) -> list[int]:
    """Of what convolutions read."""
    initial = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    made = {output: n for n in model.graph.node for output in n.output}
    return [int(initial[made[n.input[0]].input[2]]) for n in model.graph.node if n.op_type == "Conv"]


def test_two_readers_of_one_tensor_share_what_is_quantised(tmp_path: Path):
    """One pads and one does not."""
    c = 4
    weights = [np.random.default_rng(i).standard_normal((c, c, k, k)).astype(np.float32) for i, k in enumerate((3, 1))]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], name="padded", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["x", "w1"], ["b"], name="plain"),
        helper.make_node("Add", ["a", "b"], ["y"], name="sum"),
    ]
    io = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 6, 6]) for n in "xy"]
    initial = [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)]
    graph = helper.make_graph(nodes, "two", io[:1], io[1:], initial)
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    ranges = {"x": Range(-1, 3)}
    plain, folded = (quantised(path, ranges, target) for target in (PLAIN, "openvino"))
    kinds = [n.op_type for n in folded.graph.node]
    assert (kinds.count("QuantizeLinear"), kinds.count("Pad")) == (1, 1)
    assert (zero_points(plain), zero_points(folded)) == ([64, 64], [0, 0])
    x = np.random.default_rng(3).uniform(-1, 3, (1, c, 6, 6)).astype(np.float32)
    np.testing.assert_allclose(run(folded, x), run(plain, x), atol=1e-4)


def test_padding_that_no_number_says_keeps_its_zero_point(tmp_path: Path):
    source = convolution(tmp_path / "model.onnx", (6, 4, 3, 3), True, auto_pad="SAME_UPPER")
    model = quantised(source, {"x": Range(-1, 3)}, "openvino")
    assert zero_points(model) == [64]
    assert "Pad" not in {n.op_type for n in model.graph.node}


def test_openvino_still_computes_in_int8(tmp_path: Path):
    """Convolutions that read uint8 without a zero point, and no float ones."""
    openvino = pytest.importorskip("openvino")
    source = convolution(tmp_path / "float.onnx", (32, 16, 3, 3), True, pads=[1, 1, 1, 1])
    assert tensors_to_range(load_graph(source), "openvino") == ["x"]
    ranges = {"x": Range(-1, 3)}
    onnx.save(quantised(source, ranges, "openvino"), tmp_path / "int8.onnx")
    core = openvino.Core()
    model = core.read_model(tmp_path / "int8.onnx")
    model.reshape([1, 16, 24, 24])
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ran = {}
    for op in compiled.get_runtime_model().get_ops():
        about = op.get_rt_info()
        if about["layerType"].astype(str) == "Convolution":
            ran[op.get_friendly_name()] = about["runtimePrecision"].astype(str)
    assert set(ran.values()) == {"u8"}
    x = np.random.default_rng(3).uniform(-1, 3, (1, 16, 24, 24)).astype(np.float32)
    found = compiled([x])[0]
    np.testing.assert_allclose(found, run(quantised(source, ranges, PLAIN), x), atol=2e-3)
