"""Bundle manifests and files that are whole or absent."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from obclip.core.errors import BundleError, InputError, RunError
from obclip.core.files import atomic_folder, atomic_write_bytes, check_writable
from obclip.core.manifest import NAME, Component, Manifest, Variant, list_files


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "model.onnx").write_bytes(b"weights" * 100)
    component = Component(
        "unet", "unet/model.onnx", "fp32", 20, {"sample": ["b", 4, 16, 16]}, {"out": [1]}, {"psnr": 90}
    )
    Manifest(
        source="x", revision=None, family="sd", model_digest="0" * 64, height=64, width=64, latent_channels=4,
        latent_downscale=4, latent_scale=1.0, max_tokens=32, pad_token_id=1, prediction_type="epsilon",
        schedule_config={}, conditioning=1.0, components=(component,), files=list_files(folder),
    ).write(folder)  # fmt: skip
    return folder


def test_round_trip(bundle: Path):
    manifest = Manifest.read(bundle)
    manifest.verify_files(bundle)
    assert manifest.component("unet").inputs == {"sample": ["b", 4, 16, 16]}
    assert [f.path for f in manifest.files] == ["unet/model.onnx"]


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda p: p.unlink(), "missing"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "truncated"),
        (lambda p: p.write_bytes(b"Weights" + p.read_bytes()[7:]), "altered"),
    ],
)
def test_damaged_files_are_named(bundle: Path, damage, word: str):
    damage(bundle / "unet" / "model.onnx")
    with pytest.raises(BundleError, match=f"model.onnx.*{word}"):
        Manifest.read(bundle).verify_files(bundle)


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"schema": 2', '"schema": 99'),
        lambda text: "[]",
        lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "files"}),
        lambda text: json.dumps({**json.loads(text), "surprise": 1}),
    ],
)
def test_damaged_manifests_are_refused(bundle: Path, edit):
    (bundle / NAME).write_text(edit((bundle / NAME).read_text()))
    with pytest.raises(BundleError, match="export"):
        Manifest.read(bundle)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path):
    with pytest.raises(BundleError, match="export"):
        Manifest.read(tmp_path)


def test_unknown_component(bundle: Path):
    with pytest.raises(BundleError, match="vae_decoder"):
        Manifest.read(bundle).component("vae_decoder")


def test_atomic_folder_appears_whole(tmp_path: Path):
    with atomic_folder(tmp_path / "out") as building:
        (building / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_atomic_folder_leaves_nothing_after_an_error(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "out") as building:
        (building / "a").write_text("1")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_atomic_folder_keeps_the_old_one_until_the_new_is_whole(tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("1")
    with pytest.raises(InputError, match="--force"), atomic_folder(out):
        pass
    with pytest.raises(ZeroDivisionError), atomic_folder(out, force=True, mark="old"):
        raise ZeroDivisionError
    assert (out / "old").exists()
    with atomic_folder(out, force=True, mark="old") as building:
        (building / "new").write_text("2")
    assert [p.name for p in out.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_force_replaces_only_what_the_command_itself_writes(tmp_path: Path):
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    for precious in (folder / "precious", file):
        precious.write_text("1")
    for out in (folder, file):
        with pytest.raises(InputError, match="another place"), atomic_folder(out, force=True, mark="obclip.json"):
            pass
    assert (folder / "precious").exists()
    assert file.exists()


def test_a_full_disk_is_a_run_error(tmp_path: Path):
    with pytest.raises(RunError, match="nothing of it is kept"), atomic_folder(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_unwritable_places_are_named(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    for action in (
        lambda: atomic_write_bytes(tmp_path / "file" / "x", b"1"),
        lambda: check_writable(tmp_path / "file" / "x"),
        lambda: atomic_folder(tmp_path / "file" / "x").__enter__(),
    ):
        with pytest.raises(RunError, match="file"):
            action()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x"
    atomic_write_bytes(path, b"old")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(RunError, match="No space"):
        atomic_write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_variants_are_read_back_and_a_manifest_without_them_has_none(bundle: Path):
    one = Manifest.read(bundle)
    assert one.variants == ()
    variant = Variant(
        "unet", "shallow", "int8", "cpu", "unet/cpu_int8_shallow.onnx", {"sample": [1, 4, 8, 8]},
        {"out_sample": [1, 4, 8, 8]}, {"psnr_db": 31.5},
    )  # fmt: skip
    replace(one, variants=(variant,)).write(bundle)
    assert Manifest.read(bundle).variants == (variant,)
