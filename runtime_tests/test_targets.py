"""Graphs for accelerators: rewrites compute the same, and providers' lists take them whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from obclip.core.errors import InputError
from obclip.edge.bundle import find_bundle
from obclip.export.targets.qnn import qnn_graph, quantise_w8a16
from obclip.export.targets.report import placement
from obclip.export.targets.rewrite import fix_shapes, flat_norms, flat_products, unique_names
from runtime_tests.qnn.large import cut, rewritten, tensors

DIMS = {"batch_size": 1, "height": 16, "width": 16, "latent_height": 16, "latent_width": 16}


def inputs_of(model: onnx.ModelProto, seed: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    made = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return made | {name: np.asarray(40 * (seed + 1), np.float32) for name in made if name == "timestep"}


def run(model: onnx.ModelProto | Path, inputs: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"]).run(None, inputs)[0]


def error(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.fixture(scope="module", params=["unet", "vae_decoder"])
def exported(request: pytest.FixtureRequest) -> onnx.ModelProto:
    return onnx.load(find_bundle("emoji") / request.param / "model.onnx")


@pytest.mark.parametrize("rewrite", [flat_norms, flat_products, unique_names])
def test_a_rewrite_computes_the_same(exported: onnx.ModelProto, rewrite):
    fixed = fix_shapes(exported, DIMS)
    inputs = inputs_of(fixed, 1)
    wanted = run(exported, inputs)
    assert error(run(fixed, inputs), wanted) < 1e-5
    new = rewrite(fixed)
    onnx.checker.check_model(new)
    assert error(run(new, inputs), wanted) < 1e-5


@settings(max_examples=25)
@given(
    groups=st.sampled_from([1, 2, 4]), per_group=st.integers(1, 3), height=st.integers(1, 9), width=st.integers(1, 9),
    tail=st.lists(st.sampled_from(["silu", "scale", "half", "residual"]), max_size=4), seed=st.integers(0, 99),
)  # fmt: skip
def test_whatever_follows_a_norm_is_kept(groups, per_group, height, width, tail, seed):
    model = norm_model(groups, groups * per_group, height, width, tail, seed)
    inputs = inputs_of(model, seed)
    new = flat_norms(model)
    onnx.checker.check_model(new)
    np.testing.assert_allclose(run(new, inputs), run(model, inputs), rtol=1e-5, atol=1e-6)


def norm_model(groups: int, channels: int, height: int, width: int, tail: list[str], seed: int) -> onnx.ModelProto:
    """A group norm as torch exports it, elementwise operators (one may add the norm's input), and a convolution."""
    rng = np.random.default_rng(seed)
    shape = [1, channels, height, width]
    constants = {
        "in3": np.array([1, groups, -1]), "in4": np.array(shape), "one": np.ones(groups, np.float32),
        "zero": np.zeros(groups, np.float32), "half": np.array(0.5, np.float32),
        "scale": rng.standard_normal((channels, 1, 1)).astype(np.float32),
        "kernel": rng.standard_normal((2, channels, 1, 1)).astype(np.float32),
    }  # fmt: skip
    make = helper.make_node
    nodes = [
        make("Reshape", ["x", "in3"], ["r"]),
        make("InstanceNormalization", ["r", "one", "zero"], ["n"]),
        make("Reshape", ["n", "in4"], ["v0"]),
    ]
    for i, kind in enumerate(tail):
        a, b = f"v{i}", f"v{i + 1}"
        if kind == "silu":
            nodes += [make("Sigmoid", [a], [f"s{i}"]), make("Mul", [a, f"s{i}"], [b])]
        else:
            operator, other = {"scale": ("Mul", "scale"), "half": ("Mul", "half"), "residual": ("Add", "x")}[kind]
            nodes.append(make(operator, [a, other], [b]))
    nodes.append(make("Conv", [f"v{len(tail)}", "kernel"], ["y"]))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, s) for name, s in (("x", shape), ("y", None))]
    values[1].type.tensor_type.shape.CopyFrom(
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, height, width]).type.tensor_type.shape
    )
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "norm", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_no_elementwise_operator_behind_a_norm_sees_four_axes():
    fixed = fix_shapes(onnx.load(find_bundle("emoji") / "unet" / "model.onnx"), DIMS)
    graph = flat_norms(fixed).graph
    shapes = {v.name: len(v.type.tensor_type.shape.dim) for v in graph.value_info}
    sigmoids = [
        n for n in graph.node if n.op_type == "Sigmoid" and shapes[n.input[0]] > 2
    ]  # not those of the time path
    assert len(sigmoids) == 2 * 6 + 1  # two in each residual block, one before the last convolution
    assert {shapes[n.input[0]] for n in sigmoids} == {3}


def test_free_axes_are_named(exported: onnx.ModelProto):
    with pytest.raises(InputError, match="batch_size"):
        fix_shapes(exported, {k: v for k, v in DIMS.items() if k != "batch_size"})


@pytest.mark.parametrize("provider", ["coreml", "qnn", "webgpu"])
def test_a_provider_takes_the_graph_in_one_piece(exported: onnx.ModelProto, provider: str):
    found = placement(fix_shapes(exported, DIMS), provider)
    assert found.placed == found.nodes > 50
    assert (found.partitions, found.on_cpu) == (1, {})


def test_a_graph_with_free_shapes_is_in_pieces(exported: onnx.ModelProto):
    assert placement(exported, "coreml").placed < placement(fix_shapes(exported, DIMS), "coreml").placed


def test_xnnpack_gets_more_of_flat_products():
    fixed = fix_shapes(onnx.load(find_bundle("emoji") / "unet" / "model.onnx"), DIMS)
    before, after = placement(fixed, "xnnpack"), placement(flat_products(fixed), "xnnpack")
    assert before.placed == 27 + 20 + 6  # convolutions, Gemm, softmax
    assert after.placed - before.placed == before.on_cpu["MatMul"] - after.on_cpu["MatMul"] == 18


def test_unknown_provider():
    with pytest.raises(InputError, match="coreml, qnn, webgpu, xnnpack"):
        placement(onnx.ModelProto(), "npu")


def test_quantised_for_htp(exported: onnx.ModelProto, tmp_path: Path):
    graph = qnn_graph(exported, DIMS)
    onnx.save(graph, tmp_path / "graph.onnx")
    quantise_w8a16(tmp_path / "graph.onnx", tmp_path / "w8a16.onnx", [inputs_of(graph, i) for i in range(1, 5)])
    quantised = onnx.load(tmp_path / "w8a16.onnx")
    kinds = {t.data_type for t in quantised.graph.initializer if t.dims and int(np.prod(t.dims)) > 500}
    assert kinds <= {TensorProto.UINT8, TensorProto.INT32}
    inputs = inputs_of(graph, 1)
    assert error(run(tmp_path / "w8a16.onnx", inputs), run(exported, inputs)) < 0.05


@pytest.mark.parametrize("pieces", [1, 3, 6])
def test_pieces_one_after_another_are_the_whole(bundle_folder: Path, tmp_path: Path, pieces: int):
    """runtime_tests.qnn.large cuts a UNet for HTP's compiler: every piece runs on what earlier ones have left."""
    source = tmp_path / "unet.onnx"
    model = rewritten(bundle_folder, source)
    rng = np.random.default_rng(0)
    feed = {
        i.name: rng.standard_normal([d.dim_value for d in i.type.tensor_type.shape.dim]).astype(np.float32)
        for i in model.graph.input
    }
    wanted = ort.InferenceSession(source).run(["out_sample"], feed)[0]
    known = dict(feed)
    for number, (inputs, outputs) in enumerate(cut(model, pieces)):
        path = tmp_path / f"{number}.onnx"
        onnx.utils.extract_model(source, path, inputs, outputs)
        known |= dict(zip(outputs, ort.InferenceSession(path).run(outputs, {n: known[n] for n in inputs}), strict=True))
    np.testing.assert_allclose(known["out_sample"], wanted, atol=1e-5)
    assert number + 1 == pieces
    probed = tensors(source, ["out_sample"], feed)["out_sample"]
    np.testing.assert_allclose(probed, wanted, atol=1e-5)
