"""Tiles, phases and memory plans."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array

from obclip.core.errors import BundleError, InputError
from obclip.core.manifest import FileEntry, Manifest, Variant
from obclip.edge import Bundle, generate
from obclip.edge.machine import return_mapped_pages
from obclip.edge.memory import estimate, fit
from obclip.edge.providers import find
from obclip.edge.providers.base import Opening, Session
from obclip.edge.sessions import SessionOptions
from obclip.edge.tiling import decode_tiled, starts


def enlarge(latents: np.ndarray) -> np.ndarray:
    """A decoder that looks at one latent at a time: tiles of it must join without a trace."""
    return np.kron(latents[:3], np.ones((1, 4, 4), np.float32)).astype(np.float32)


@given(st.integers(4, 40), st.integers(4, 40), st.integers(2, 16), st.data())
def test_tiles_of_a_local_decoder_are_its_whole_picture(h: int, w: int, tile: int, data: st.DataObject):
    overlap = data.draw(st.integers(0, tile // 2))
    latents = np.random.default_rng(h * 41 + w).standard_normal((4, h, w)).astype(np.float32)
    np.testing.assert_allclose(decode_tiled(enlarge, latents, 4, tile, overlap), enlarge(latents), atol=1e-5)


@given(st.integers(1, 200), st.integers(1, 50), st.integers(0, 25))
def test_tiles_cover_everything_and_none_hangs_over(size: int, tile: int, overlap: int):
    overlap = min(overlap, tile // 2)
    found = starts(size, tile, overlap)
    covered = {i for start in found for i in range(start, min(start + tile, size))}
    assert covered == set(range(size))
    assert all(start + tile <= size for start in found) or found == [0]


def test_no_tile_is_larger_than_asked():
    seen = []

    def decode(part: np.ndarray) -> np.ndarray:
        seen.append(part.shape)
        return enlarge(part)

    decode_tiled(decode, np.zeros((4, 64, 48), np.float32), 4)
    assert set(seen) == {(4, 32, 32)}
    with pytest.raises(InputError, match="half of the tile"):
        decode_tiled(decode, np.zeros((4, 8, 8), np.float32), 4, tile=8, overlap=5)


def test_a_bundle_decodes_in_tiles(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch):
    latents = np.random.default_rng(0).standard_normal((4, 16, 16)).astype(np.float32)
    whole = Bundle.open(bundle_folder).decode(latents).astype(float)
    tiled = Bundle.open(bundle_folder, tiled=True)
    np.testing.assert_array_equal(tiled.decode(latents), whole)  # one tile holds all of it
    monkeypatch.setattr("obclip.edge.bundle.decode_tiled", lambda d, x, s: decode_tiled(d, x, s, 12, 6))
    found = tiled.decode(latents).astype(float)
    assert 0 < np.abs(found - whole).mean() < 4


def test_phases_free_what_is_done(bundle_folder: Path):
    bundle = Bundle.open(bundle_folder)
    bundle.encode("a woman")
    bundle.end_phase("text_encoder")
    assert ("text_encoder", "whole") in bundle._sessions  # small models stay
    lean = Bundle.open(bundle_folder, lean=True)
    lean.encode("a woman")
    lean.end_phase("text_encoder")
    assert lean._sessions == {}


def test_a_graph_opened_ahead_is_the_graph_and_its_error_comes_when_it_is_wanted(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    wanted = Bundle.open(bundle_folder).decode(np.ones((4, 16, 16), np.float32))
    bundle, entered, go = Bundle.open(bundle_folder), threading.Event(), threading.Event()
    real = bundle.provider.open

    def held_up(path: Path, opening: Opening) -> Session:
        entered.set()
        assert go.wait(30)
        return real(path, opening)

    monkeypatch.setattr(bundle.provider, "open", held_up)
    bundle.open_ahead("vae_decoder")
    assert entered.wait(30)  # and this thread goes on
    bundle.open_ahead("vae_decoder")
    go.set()
    np.testing.assert_array_equal(bundle.decode(np.ones((4, 16, 16), np.float32)), wanted)
    assert (list(bundle._sessions), bundle._ahead) == ([("vae_decoder", "whole")], {})

    def fail(path: Path, opening: Opening) -> Session:
        raise BundleError("it is damaged")

    monkeypatch.setattr(bundle.provider, "open", fail)
    bundle.release()
    bundle.open_ahead("unet")
    with pytest.raises(BundleError, match="damaged"):
        bundle.session("unet")
    bundle.open_ahead("unet")
    bundle.release("unet")
    assert (bundle._sessions, bundle._ahead) == ({}, {})
    with pytest.raises(BundleError, match="no graph full"):
        Bundle(bundle_folder, replace(bundle.manifest, variants=()), bundle.options).open_ahead("unet", "full")


def test_a_job_by_phases_draws_what_one_with_all_in_memory_draws(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Texts are read while the UNet opens; what runs once a job is opened lean, the passes are not."""
    picture = generate("a woman cook", bundle=Bundle.open(bundle_folder), mode="device", seed=1, steps=3).image
    monkeypatch.setattr("obclip.edge.bundle.PHASED_FROM_BYTES", 0)
    bundle, opened = Bundle.open(bundle_folder), []
    real = bundle.provider.open
    monkeypatch.setattr(bundle.provider, "open", lambda p, o: opened.append((p.parent.name, o.lean)) or real(p, o))
    found = generate("a woman cook", bundle=bundle, mode="device", seed=1, steps=3).image
    assert np.abs(found.astype(int) - picture).max() <= 1
    assert set(opened) == {("text_encoder", True), ("unet", False), ("vae_decoder", False)}
    assert (bundle._sessions, bundle._ahead) == ({}, {})


def sized(manifest: Manifest, tiny: bool = True) -> Manifest:
    """The manifest of a bundle of small-sd's size: 2.3 GB of float32, 0.6 GB of int8 beside it."""
    sizes = {
        "text_encoder/model.onnx": 492e6, "unet/model.onnx": 1e6, "unet/model.onnx_data": 2317e6 + 580e6,
        "vae_decoder/model.onnx": 198e6,
    }  # fmt: skip
    files = tuple(FileEntry(path, int(size), "0" * 64) for path, size in sizes.items())
    made = [Variant("unet", "full", "int8", "cpu", "unet/cpu_int8_full.onnx", {}, {}, {"added_bytes": 580_000_000})]
    if tiny:
        made.append(Variant("vae_decoder", "tiny", "fp32", "any", "vae_decoder/any_fp32_tiny.onnx", {}, {}, {}))
    return replace(
        manifest, files=files, variants=tuple(made), height=512, width=512, latent_downscale=8,
    )  # fmt: skip


def test_the_quickest_plan_that_fits_is_taken(bundle_folder: Path):
    manifest = sized(Manifest.read(bundle_folder))
    plain = SessionOptions()
    assert fit(manifest, plain, "cpu") is plain
    before = None
    for limit in (4_000, 1_200, 900, 600):
        options = fit(manifest, replace(plain, memory_limit=limit * 1_000_000), "cpu")
        peak = estimate(manifest, options, "cpu").peak
        assert peak <= limit * 1_000_000
        assert before is None or peak <= before
        before = peak
    assert not fit(manifest, replace(plain, memory_limit=4_000_000_000), "cpu").lean
    assert fit(manifest, replace(plain, memory_limit=600_000_000), "cpu").lean


def test_lean_leaves_nothing_out_where_openvino_packs_all_the_same(bundle_folder: Path):
    manifest = sized(Manifest.read(bundle_folder))
    both = (*manifest.variants, replace(manifest.variants[0], target="openvino"))
    lean = SessionOptions(memory_limit=700_000_000, lean=True)
    cpu, openvino = (estimate(replace(manifest, variants=both), lean, target) for target in ("cpu", "openvino"))
    assert openvino.steps - cpu.steps >= 580_000_000  # the int8 weights, at the least
    assert (openvino.text, openvino.decode) == (cpu.text, cpu.decode)  # these run on ONNX Runtime
    with pytest.raises(InputError, match="With --provider cpu it would fit"):
        fit(replace(manifest, variants=both), lean, "openvino")


def test_a_limit_that_is_too_small_says_what_would_do(bundle_folder: Path):
    manifest = sized(Manifest.read(bundle_folder))
    with pytest.raises(InputError, match=r"needs about \d+ MB at the least, the limit is 100 MB"):
        fit(manifest, SessionOptions(memory_limit=100_000_000), "cpu")
    with pytest.raises(InputError, match="the limit is 1 MB"):
        Bundle.open(bundle_folder, memory_limit=1_000_000)
    for limit in (0, -5_000_000):
        with pytest.raises(InputError, match=f"the memory limit is {limit} bytes"):
            Bundle.open(bundle_folder, memory_limit=limit)


def resident(path: Path) -> int:
    """Bytes of `path` that this process has in memory by being mapped."""
    found, of_path = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            of_path = line.endswith(f" {path.resolve()}")
        elif of_path and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells what of a file is resident")
def test_mapped_pages_go_back_and_can_still_be_read(tmp_path: Path):
    (tmp_path / "in").mkdir()
    values = np.random.default_rng(0).integers(0, 255, 1 << 22, dtype=np.uint8)
    given_back, written, beside = (tmp_path / name for name in ("in/weights", "in/written", "in-another"))
    for path in (given_back, written, beside):
        values.tofile(path)
    maps = [np.memmap(p, mode=m) for p, m in ((given_back, "r"), (written, "c"), (beside, "r"))]
    maps[1][:] = 7
    assert all(int(m.sum(dtype=np.int64)) for m in maps)  # every page was read
    assert return_mapped_pages(tmp_path / "in") == len(values)
    assert [resident(p) for p in (given_back, written, beside)] == [0, len(values), len(values)]
    assert np.array_equal(maps[0], values)
    assert (maps[1] == 7).all()


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells what of a file is resident")
@pytest.mark.parametrize("cached", [False, True])
def test_openvino_keeps_no_page_of_the_weights_it_compiled(tmp_path: Path, cached: bool):
    weights = np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1024]) for name in "xy")
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([product], "g", [x], [y], [from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="model.onnx_data")
    opening = Opening(cache=tmp_path / "kept" if cached else None)
    for _ in range(2):  # the second time from what the first one kept
        session = find("openvino").open(tmp_path / "model.onnx", opening)
        files = [tmp_path / "model.onnx_data", *tmp_path.glob("kept/*.blob")]
        assert len(files) == 1 + cached
        assert [resident(p) for p in files] == [0] * len(files)
        found = session.run(x=weights[:1])["y"]
        np.testing.assert_allclose(found, weights[:1] @ weights, rtol=1e-3, atol=1e-3)
