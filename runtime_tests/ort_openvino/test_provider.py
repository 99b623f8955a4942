"""OpenVINO through ONNX Runtime's own provider: `onnxruntime-openvino`, which takes the place of `onnxruntime`.

`make compat` runs these, in an environment of their own.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import onnxruntime as ort
import pytest

from obclip.core.errors import BundleError
from obclip.edge import Bundle, generate
from obclip.edge.doctor import examine
from obclip.edge.providers import find
from obclip.edge.providers.onnx_runtime import OnnxRuntimeProvider

if "OpenVINOExecutionProvider" not in ort.get_available_providers():
    pytest.skip("onnxruntime-openvino has an environment of its own: `make compat`", allow_module_level=True)

PROMPT = "noto style emoji of a woman cook with dark skin tone"
FULL = "OpenVINOExecutionProvider"


def test_it_is_onnx_runtimes_provider_that_is_found():
    assert importlib.util.find_spec("openvino") is None, "with OpenVINO's own runtime beside it that one is taken"
    provider = find("openvino")
    assert isinstance(provider, OnnxRuntimeProvider)
    assert provider.full_name == FULL
    assert not examine().problems


@pytest.mark.parametrize("strict", [False, True])
def test_the_embedded_pair_is_drawn_alike(strict: bool):
    on_cpu = generate(PROMPT, bundle=Bundle.open("emoji", provider="cpu"), seed=3, mode="device")
    bundle = Bundle.open("emoji", provider="openvino", strict=strict)
    there = generate(PROMPT, bundle=bundle, seed=3, mode="device")
    mse = float(((there.image.astype(float) - on_cpu.image) ** 2).mean())
    assert 10 * np.log10(255**2 / max(mse, 1e-9)) > 40
    nodes = bundle.session("unet").nodes_per_provider()
    assert nodes.get(FULL, 0) > 0
    if strict:
        assert set(nodes) == {FULL}


def test_a_model_that_is_none_is_named(tmp_path):
    from obclip.edge.providers.base import Opening

    (tmp_path / "broken.onnx").write_bytes(b"\x08\x07not a graph")
    with pytest.raises(BundleError, match=r"broken\.onnx cannot be loaded"):
        find("openvino").open(tmp_path / "broken.onnx", Opening())
