"""The cryptographic rows: counts of ciphertext operations, fits of two parties' time, their errors on pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from obclip.cloud.model import load_model
from obclip.core.pairs import load_pair
from runtime_tests.benchmarks.crypto.__main__ import ONE_HEAD, known, laid_over, to_measure, unets
from runtime_tests.benchmarks.crypto.compose import Fit, he_bound_s, he_operations, measured_as, two_parties, work
from runtime_tests.benchmarks.crypto.pictures import errors_of, noisy
from runtime_tests.benchmarks.layers import Layer

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"


def test_layers_errors_are_on_every_layer_and_within_what_was_measured():
    """Against one UNet pass in the clear: none without errors, more with larger ones, none left behind."""
    model = load_model(load_pair("emoji"))
    measured = errors_of(json.loads((RESULTS / "crypto.json").read_text())["semi2k"]["layers"])
    unet, random = model.layered.unet, torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, *load_pair("emoji").latent_shape[1:], generator=random)
    text = torch.randn(2, model.text.max_tokens, unet.config.cross_attention_dim, generator=random)

    def off(scale: float) -> float:
        with torch.inference_mode(), noisy(model, {key: scale * e for key, e in measured.items()}) as met:
            found = unet(x, torch.tensor(501.0), text, return_dict=False)[0]
        assert len(met) == 75  # of the table's shapes of this UNet, all
        return float((found - wanted).abs().max() / wanted.abs().max())

    with torch.inference_mode():
        wanted = unet(x, torch.tensor(501.0), text, return_dict=False)[0]
        assert off(0.0) == 0
        assert 1e-5 < off(1.0) < off(30.0)
        assert torch.equal(unet(x, torch.tensor(501.0), text, return_dict=False)[0], wanted)
        with pytest.raises(KeyError), noisy(model, {}):
            unet(x, torch.tensor(501.0), text)
        last = "conv", (unet.conv_out.in_channels, 4, 3, *x.shape[-2:])
        with noisy(model, dict.fromkeys(measured, 0.0) | {last: 0.25}):
            found = unet(x, torch.tensor(501.0), text, return_dict=False)[0]
        of_largest = (found - wanted).abs().amax((1, 2, 3)) / wanted.abs().amax((1, 2, 3))
        assert ((of_largest > 0.24) & (of_largest <= 0.25 * 1.001)).all()  # of 1024 draws, in each row of the batch


def test_multiplications_of_packed_layers_by_enumeration():
    """A convolution written out: a product of a channel's ciphertext a weight, a shift for every tap but one."""
    c_in, c_out, kernel, h, w, slots = 3, 5, 3, 16, 20, 256
    blocks = -(-h * w // slots)
    products = sum(1 for _ in range(c_out) for _ in range(c_in) for _ in range(kernel**2) for _ in range(blocks))
    shifts = sum(1 for _ in range(c_in) for tap in range(kernel**2) if tap for _ in range(blocks))
    assert he_operations(Layer("conv", (c_in, c_out, kernel, h, w), 1), slots) == (products, shifts)
    assert he_operations(Layer("silu", (100,), 1), slots) == (0, 0)
    operations = {"slots": slots, "multiply_plain_s": 0.5, "add_s": 0.25, "rotate_s": 2.0}
    found = he_bound_s([Layer("conv", (c_in, c_out, kernel, h, w), 2)], operations, 10)
    assert found["seconds"] == pytest.approx(2 * c_in * c_out * 9 * h * w / slots * 0.75 * 10)
    assert found["channel_packed_s"] == pytest.approx(2 * (products * 0.75 + shifts * 2) * 10)
    assert found["seconds"] <= found["channel_packed_s"]


def test_wide_convolutions_are_fitted_apart_from_products():
    """Time made of a constant for each channel to unfold, which a 1 x 1 has none of; foretold for shapes left out."""

    def row(c_in: int, kernel: int) -> dict[str, Any]:
        seconds = 0.05 + (0.002 * c_in if kernel > 1 else 0)
        return {"kind": "conv", "shape": (c_in, 8, kernel, 4, 4), "seconds": seconds, "bytes": 10.0, "messages": kernel}

    fit = Fit.of([row(c, kernel) for c in (4, 16, 40, 100, 256) for kernel in (1, 3)])
    for kernel in (1, 3):
        wanted = row(64, kernel)
        seconds, _, messages = fit.predict(Layer("conv", wanted["shape"], 1))
        assert seconds == pytest.approx(wanted["seconds"], rel=1e-3)
        assert messages == kernel


@given(
    weights=st.lists(st.floats(0.1, 10), min_size=6, max_size=6),
    shapes=st.lists(st.tuples(*[st.integers(1, 64)] * 3), min_size=12, max_size=20, unique=True),
)
def test_a_fit_finds_what_the_numbers_were_made_from(weights: list[float], shapes: list[tuple[int, int, int]]):
    true = np.array(weights) * np.array([1e-6, 1e-4, 1e-4, 1e-4, 0, 1e-2])
    rows = [
        {"kind": "linear", "shape": s, "seconds": float(work("linear", s) @ true), "bytes": 8.0 * s[0], "messages": 2}
        for s in shapes
    ]
    fit = Fit.of([*rows, {"kind": "silu", "shape": (9,), "seconds": 1.0, "bytes": 1.0, "messages": 1}])
    assert fit.error["linear"] is not None
    assert fit.error["linear"] < 0.25
    assert fit.error["silu"] is None  # nothing to foretell it from
    layers = [Layer("linear", s, 3) for s in shapes]
    whole = two_parties(layers, fit, rows, 10)
    assert whole["compute_s"] == pytest.approx(30 * sum(r["seconds"] for r in rows))
    assert (whole["messages"], whole["shapes_measured"]) == (60 * len(shapes), len(shapes))
    assert whole["WAN_s"] > whole["LAN_s"] > whole["compute_s"]


def test_heads_measured_one_by_one_count_one_after_another():
    one = {"kind": "attention", "shape": (1, 64, 64, 40), "seconds": 2.0, "bytes": 3.0, "messages": 5}
    layer = Layer("attention", (8, 64, 64, 40), 4)
    whole = two_parties([layer], Fit.of([one]), [one], 10)
    assert (whole["compute_s"], whole["bytes"], whole["messages"]) == (640.0, 960.0, 1600.0)
    assert whole["shapes_measured"] == 1
    every = one | {"shape": layer.shape, "seconds": 7.0}
    assert two_parties([layer], Fit.of([one]), [one, every], 10)["compute_s"] == 280.0
    assert measured_as(layer, layer.elements) == Layer("attention", (1, 64, 64, 40), 32)
    assert measured_as(layer, layer.elements + 1) == layer


def test_every_shape_of_both_unets_is_measured_and_of_the_slow_protocol_all_of_the_embedded_pair():
    layers = unets()
    wanted = {protocol: {(k, tuple(s)) for k, s in to_measure(layers, protocol)} for protocol in ("semi2k", "cheetah")}
    for name, some in layers.items():
        assert all((one.kind, one.shape) in wanted["semi2k"] for one in (measured_as(x, ONE_HEAD) for x in some)), name
    assert all((layer.kind, layer.shape) in wanted["cheetah"] for layer in layers["emoji"])
    assert ("attention", (8, 1024, 1024, 80)) not in wanted["cheetah"]
    assert all(np.prod(shape[:3]) < 2e7 for kind, shape in wanted["semi2k"] if kind == "attention")  # of memory


def test_what_is_measured_is_not_measured_again():
    wanted = [("silu", [8]), ("linear", [1, 2, 3]), ("conv", [4, 4, 1, 2, 2])]
    there = [{"kind": "linear", "shape": [1, 2, 3], "seconds": 1.0}, {"kind": "silu", "shape": [9], "seconds": 2.0}]
    rows, lacking = known(wanted, there)
    assert rows == {("linear", (1, 2, 3)): there[0]}
    assert lacking == [wanted[0], wanted[2]]
    made = [{"kind": "silu", "shape": [8], "seconds": 3.0}]
    assert laid_over(there, made, wanted) == [*there, *made]  # a run that broke off loses nothing
    rest = [made[0] | {"kind": kind, "shape": shape} for kind, shape in lacking]
    assert laid_over(there, rest, wanted) == [there[0], *rest]
