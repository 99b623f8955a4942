"""Providers, precisions and what a bundle remembers of them: OpenVINO's runtime beside ONNX Runtime."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from tiny import make_sd_folder

from obclip.core.cores import usable_cores
from obclip.core.errors import BundleError, InputError, RunError
from obclip.core.manifest import Manifest, Variant
from obclip.edge import Bundle, generate
from obclip.edge import choice as choice_module
from obclip.edge import graph_cache as cache_module
from obclip.edge.complete import first_latents
from obclip.edge.providers import available_providers, find
from obclip.edge.providers.base import Opening, Provider
from obclip.edge.steps import PLAIN
from obclip.export import Calibration, export_bundle
from obclip.export.verify import psnr_db

pytestmark = pytest.mark.usefixtures("traces")

PROMPT = "noto style emoji of a woman"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OBCLIP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with device graphs for both providers, int8 beside float32, and a tiny decoder."""
    place = tmp_path_factory.mktemp("both")
    source = make_sd_folder(place / "sd", vae="kl", seed=1)
    tiny = make_sd_folder(place / "tiny", seed=1) / "vae"
    export_bundle(
        source, place / "bundle", targets=("cpu", "openvino"), tiny_decoder=tiny, precisions=("int8",),
        calibration=Calibration(prompts=2, floor_db=20.0), external_above_bytes=0,
    )  # fmt: skip
    return place / "bundle"


def feed(bundle: Bundle, role: str = "full") -> dict[str, Any]:
    variant = bundle.variant("unet", role)
    assert variant is not None
    rng = np.random.default_rng(3)
    return {n: rng.standard_normal([int(s) for s in shape]).astype(np.float32) for n, shape in variant.inputs.items()}


def passed(bundle: Bundle) -> np.ndarray:
    return bundle.session("unet", "full").run(**feed(bundle))["out_sample"].astype(np.float64)


def test_openvinos_runtime_computes_what_onnx_runtime_does(both: Path):
    wanted = passed(Bundle.open(both, provider="cpu", precision="fp32"))
    found = passed(Bundle.open(both, provider="openvino", precision="fp32"))
    assert psnr_db(wanted, found) > 90


def test_openvino_in_bfloat16_is_near_float32(both: Path):
    whole = Bundle.open(both, provider="openvino", precision="fp32")
    if "bf16" not in whole.provider.arithmetics():
        pytest.skip("this processor has no bfloat16")
    half = Bundle.open(both, provider="openvino", precision="bf16")
    assert half.precision_of("unet", "full") == "bf16"
    assert 30 < psnr_db(passed(whole), passed(half)) < 90


def test_what_runs_once_a_job_is_not_compiled_by_openvino(both: Path):
    bundle = Bundle.open(both, provider="openvino", strict=True)
    bundle.encode("a woman")
    once = [("text_encoder", "whole"), ("unet", "time"), ("unet", "text")]
    for component, role in (*once, ("unet", "full"), ("vae_decoder", "tiny")):
        names = set(bundle.session(component, role).nodes_per_provider())
        assert names == {"CPUExecutionProvider" if (component, role) in once else "OpenVINO runtime, CPU"}
    assert bundle.fallbacks() == ()


@pytest.mark.parametrize("provider", ["cpu", "openvino"])
def test_int8_is_taken_where_the_bundle_has_it(both: Path, provider: str):
    whole = passed(Bundle.open(both, provider=provider, precision="fp32"))
    bundle = Bundle.open(both, provider=provider)
    assert bundle.precision_of("unet", "full") == "int8"
    variant = bundle.variant("unet", "full")
    assert variant is not None
    assert variant.file == f"unet/{provider}_int8_full.onnx"
    assert 20 < psnr_db(whole, passed(bundle)) < 90
    nodes = bundle.session("unet", "full").nodes_per_provider()
    assert set(nodes) == {bundle.provider.full_name}
    assert bundle.fallbacks() == ()


def test_a_step_of_the_whole_job_agrees_between_providers(both: Path):
    """Text encoder, time and text graphs and decoder run on each provider too."""
    pictures = []
    for provider in ("cpu", "openvino"):
        bundle = Bundle.open(both, provider=provider, precision="fp32")
        hidden = bundle.encode(PROMPT)
        time = bundle.session("unet", "time").run(timestep=np.array([500.0], np.float32))
        text = bundle.session("unet", "text").run(**hidden)
        x = first_latents(bundle.schedule("ddim", 4), 1, bundle.latent_shape)
        out = bundle.session("unet", "full").run(sample=x[None], **time, **text)["out_sample"][0]
        pictures.append(bundle.decode(out).astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


def test_manifest_holds_what_precisions_cost(both: Path):
    variants = Manifest.read(both).variants
    assert {(v.component, v.role, v.precision, v.target) for v in variants} == {
        ("unet", "time", "fp32", "any"), ("unet", "text", "fp32", "any"), ("vae_decoder", "tiny", "fp32", "any"),
        *(("unet", r, p, t) for r in ("full", "shallow") for p in ("fp32", "int8") for t in ("cpu", "openvino")),
        *(("vae_decoder", r, "int8", t) for r in ("whole", "tiny") for t in ("cpu", "openvino")),
    }  # fmt: skip
    for variant in variants:
        assert variant.verification["psnr_db"] >= 20
        if variant.precision == "int8":
            runtime = "OpenVINO" if variant.target == "openvino" else "ONNX Runtime"
            assert variant.verification["judged_by"].startswith(f"{runtime} ")
    Manifest.read(both).verify_files(both)


def test_the_tiny_decoder_reads_the_same_latents(both: Path):
    latents = np.random.default_rng(1).standard_normal((4, 16, 16)).astype(np.float32)
    bundle = Bundle.open(both, decoder="tiny", precision="fp32")
    assert bundle.decode(latents).shape == (64, 64, 3)
    assert not np.array_equal(bundle.decode(latents), Bundle.open(both, precision="fp32").decode(latents))


def test_what_is_not_there_is_said(both: Path, bundle_folder: Path):
    with pytest.raises(InputError, match=r"tpu.*choose one of cpu"):
        Bundle.open(both, provider="tpu")
    with pytest.raises(InputError, match="precision is 'int3'"):
        Bundle.open(both, precision="int3")
    with pytest.raises(InputError, match="--precisions w8 --targets cpu"):
        Bundle.open(both, precision="w8")
    with pytest.raises(InputError, match="does not compute in bfloat16"):
        Bundle.open(both, precision="bf16")
    with pytest.raises(InputError, match="--tiny-decoder"):
        Bundle.open(bundle_folder, decoder="tiny")
    for threads in (0, usable_cores() + 1):
        with pytest.raises(InputError, match=f"threads is {threads}; this process may use 1 to {usable_cores()}"):
            Bundle.open(both, provider="openvino", threads=threads)


def test_openvino_runs_a_whole_graph_that_takes_the_step_as_a_scalar():
    """As in the embedded pair's bundle, which has device graphs for the CPU alone."""
    pictures = []
    for provider in ("cpu", "openvino"):
        bundle = Bundle.open("emoji", provider=provider, precision="fp32")
        assert bundle.pass_role == ("full" if provider == "cpu" else "whole")
        pictures.append(generate(PROMPT, bundle=bundle, seed=3, mode="device", saving=PLAIN).image.astype(float))
    assert psnr_db(*pictures) > 40


@pytest.mark.parametrize("provider", ["cpu", "openvino"])
def test_a_provider_that_fails_names_another_way(both: Path, provider: str):
    bundle = Bundle.open(both, provider=provider)
    session = bundle.session("unet", "full")
    with pytest.raises(RunError, match="provider"):
        session.run(**feed(bundle) | {"sample": np.zeros((1, 4, 8, 8), np.float32)})


@pytest.mark.parametrize("provider", ["cpu", "openvino"])
def test_a_graph_that_is_none_is_named(tmp_path: Path, provider: str):
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x07not a graph")
    with pytest.raises(BundleError, match=r"broken\.onnx cannot be loaded by"):
        find(provider).open(tmp_path / "broken.onnx", Opening())


def test_auto_measures_once_and_remembers(both: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(choice_module, "_MEASURED_FROM_BYTES", 0)
    seconds = {"cpu": {"fp32": 3.0, "int8": 2.0}, "openvino": {"fp32": 2.5, "bf16": 1.5, "int8": 1.0}}
    asked: list[tuple[str, str]] = []

    def measured(path: Path, variant: Variant, provider: Provider, opening: Opening, runs: int) -> float:
        precision = variant.precision if variant.precision != "fp32" else opening.arithmetic
        asked.append((provider.name, precision))
        if (provider.name, precision) == ("openvino", "int8"):
            raise BundleError("no such kernel")
        return seconds[provider.name][precision]

    monkeypatch.setattr(choice_module, "time_pass", measured)
    bundle = Bundle.open(both, provider="auto")
    has_bf16 = "bf16" in find("openvino").arithmetics()
    best = ("openvino", "bf16") if has_bf16 else ("cpu", "int8")
    assert (bundle.options.provider, bundle.options.precision) == best
    count = len(asked)
    assert {("cpu", "int8"), ("cpu", "fp32"), ("openvino", "int8"), ("openvino", "fp32")} <= set(asked)
    again = Bundle.open(both, provider="auto")
    assert (again.options.provider, again.options.precision) == best
    assert len(asked) == count  # what failed is not tried again at every start
    (kept,) = (tmp_path / "cache" / "choices").iterdir()
    entry = json.loads(kept.read_text())
    assert ("openvino/int8" in entry["pass_s"], list(entry["failed_at"])) == (False, ["openvino/int8"])


def test_auto_really_measures(both: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(choice_module, "_MEASURED_FROM_BYTES", 0)
    bundle = Bundle.open(both, provider="auto")
    (kept,) = (tmp_path / "cache" / "choices").iterdir()
    times = json.loads(kept.read_text())["pass_s"]
    assert times[f"{bundle.options.provider}/{bundle.options.precision}"] == min(times.values())
    assert all(0 < t < 5 for t in times.values())


@pytest.mark.parametrize("provider", ["cpu", "openvino"])
def test_large_graphs_are_kept_as_the_provider_made_them(
    both: Path, provider: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(cache_module, "LARGE_BYTES", 0)
    folder = tmp_path / "bundle"
    shutil.copytree(both, folder)
    plain = passed(Bundle.open(folder, provider=provider, cache=False))
    assert not (folder / ".cache").exists()
    first = passed(Bundle.open(folder, provider=provider))
    kept = {p: p.stat().st_mtime_ns for p in (folder / ".cache").rglob("*") if p.is_file()}
    assert kept
    second = passed(Bundle.open(folder, provider=provider))
    np.testing.assert_allclose(first, plain, atol=1e-5)
    np.testing.assert_allclose(second, plain, atol=1e-5)
    assert {p: p.stat().st_mtime_ns for p in (folder / ".cache").rglob("*") if p.is_file()} == kept
    Bundle.open(folder)  # what is kept is no part of the bundle
    manifest = Manifest.read(folder)
    other = replace(manifest, files=tuple(replace(f, sha256="0" * 64) for f in manifest.files))
    places = [
        cache_module.cache_folder(folder, m, "unet/cpu_int8_full.onnx", find(provider), Opening(threads=t))
        for m in (manifest, other)
        for t in (None, 1)
    ]
    assert len(set(places)) == 4


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """y = x W, with weights large enough to be kept in a file of their own."""
    weights = onnx.numpy_helper.from_array(np.eye(32, dtype=np.float32), "w")
    sides = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 32]) for name in "xy"]
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])]
    made = onnx.helper.make_graph(nodes, "g", sides[:1], sides[1:], [weights])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(made, opset_imports=opset, ir_version=8), tmp_path / "graph.onnx")
    return tmp_path / "graph.onnx"


@pytest.mark.parametrize("damage", ["data gone", "graph gone", "graph cut"])
def test_a_kept_graph_that_is_damaged_is_made_again(graph: Path, damage: str, tmp_path: Path):
    opening, x = Opening(cache=tmp_path / "kept" / "graph"), np.ones((1, 32), np.float32)
    find("cpu").open(graph, opening)
    whole = sorted(p.name for p in opening.cache.iterdir())
    assert whole == ["model.onnx", "model.onnx_data"]
    if damage == "graph cut":
        (opening.cache / "model.onnx").write_bytes(b"\x08\x07")
    else:
        (opening.cache / whole[damage == "data gone"]).unlink()
    for _ in range(2):
        np.testing.assert_array_equal(find("cpu").open(graph, opening).run(x=x)["y"], x)
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["graph"]
    assert sorted(p.name for p in opening.cache.iterdir()) == whole


@pytest.mark.parametrize(
    ("provider", "why"),
    [("cpu", "no folder can be made"), ("openvino", "no folder can be made"), ("cpu", "it cannot be saved")],
)
def test_a_graph_that_cannot_be_kept_is_opened_all_the_same(
    graph: Path, provider: str, why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """ONNX Runtime says InvalidArgument where it cannot write the optimised graph."""
    (tmp_path / "file").write_text("")
    cache = tmp_path / ("file" if why == "no folder can be made" else "kept") / "graph"
    if why == "it cannot be saved":
        monkeypatch.setattr(tempfile, "mkdtemp", lambda **_: str(tmp_path / "nowhere"))
    x = np.ones((1, 32), np.float32)
    np.testing.assert_array_equal(find(provider).open(graph, Opening(cache=cache)).run(x=x)["y"], x)


def test_a_graph_that_could_not_be_kept_is_opened_once_until_it_is_tried_again(
    graph: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    opened: list[str] = []
    real, room = ort.InferenceSession, tempfile.mkdtemp
    monkeypatch.setattr(ort, "InferenceSession", lambda *a, **o: opened.append(a[0]) or real(*a, **o))
    counts = []
    for days, full in ((0, True), (0, True), (8, True), (8, False), (0, False)):
        monkeypatch.setattr(tempfile, "mkdtemp", (lambda **_: str(tmp_path / "nowhere")) if full else room)
        for note in tmp_path.glob("kept/*.not-kept"):
            os.utime(note, (time.time() - days * 86_400,) * 2)
        find("cpu").open(graph, Opening(cache=tmp_path / "kept" / "graph"))
        counts.append(len(opened))
    assert counts == [2, 3, 5, 6, 7]
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["graph"]  # once it is kept nothing says that it was not


def test_what_makes_room_is_never_found_half_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "model.onnx").write_bytes(b"0" * 10)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed there
    cache_module.trim(tmp_path, 0)
    assert not (tmp_path / "old").exists()


def test_a_bundle_that_cannot_be_written_to_is_cached_elsewhere(
    both: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(cache_module, "LARGE_BYTES", 0)
    (tmp_path / "bundle").write_text("no folder can be made in a file")
    place = cache_module.cache_folder(
        tmp_path / "bundle", Manifest.read(both), "unet/cpu_int8_full.onnx", find("cpu"), Opening()
    )
    assert place is not None
    assert place.parent.parent == tmp_path / "cache" / "graphs"


def test_what_was_not_used_for_longest_makes_room(both: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    manifest = Manifest.read(both)
    own = sum(f.bytes for f in manifest.files)
    for age, name in enumerate(["newest", "older", "oldest"]):
        folder = tmp_path / ".cache" / name
        folder.mkdir(parents=True)
        (folder / "graph").write_bytes(b"0" * own)
        os.utime(folder, (1000 - age, 1000 - age))
    monkeypatch.setattr(cache_module, "LARGE_BYTES", 0)
    settings = ("unet/cpu_int8_full.onnx", find("cpu"), Opening())
    place = cache_module.cache_folder(tmp_path, manifest, *settings)
    assert place is not None
    assert {p.name for p in (tmp_path / ".cache").iterdir()} == {"newest", "older"}
    place.mkdir()
    os.utime(place, (1, 1))
    assert cache_module.cache_folder(tmp_path, manifest, *settings) == place
    assert cache_module.trim(tmp_path / ".cache", 2 * own - 1) == [tmp_path / ".cache" / "older"]
    assert place.exists()  # used just now


def test_strict_refuses_what_would_run_elsewhere(both: Path):
    """The CPU's own session is whole by definition; another provider's is refused by ONNX Runtime itself."""
    assert Bundle.open(both, strict=True).session("unet", "full").nodes_per_provider().keys() == {
        "CPUExecutionProvider"
    }


def test_importing_the_device_loads_no_openvino():
    code = "import sys, obclip.edge.cli; sys.exit(any(m.split('.')[0] == 'openvino' for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_cpu_is_first_and_always_there():
    assert next(iter(available_providers())) == "cpu"
    assert "azure" not in available_providers()
