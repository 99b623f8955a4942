"""Bundle manifests and files that are whole or absent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from obclip.core.errors import BundleError, InputError, RunError
from obclip.core.files import atomic_folder, atomic_write_bytes, check_writable
from obclip.core.manifest import NAME, Component, Manifest, Variant, list_files
from obclip.edge import Bundle
from obclip.edge.bundle import find_bundle


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
    (bundle / variant.file).write_bytes(b"graph")
    replace(one, variants=(variant,), files=list_files(bundle)).write(bundle)
    assert Manifest.read(bundle).variants == (variant,)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["height"], "64", "height is '64', a whole number was wanted"),
        (["height"], 64.0, "height is 64.0, a whole number"),
        (["height"], True, "height is True"),
        (["width"], 0, "width is 0, 1 or more"),
        (["width"], 63, "no multiple of latent_downscale"),
        (["latent_scale"], 0, "latent_scale"),
        (["latent_scale"], float("nan"), "latent_scale"),
        (["schema"], True, "schema is True"),
        (["files"], [], "unet/model.onnx', which is not among the manifest's files"),
        (["files", 0, "path"], "../../etc/passwd", "not inside the bundle"),
        (["files", 0, "path"], "C:\\x", "not inside the bundle"),
        (["files", 0, "bytes"], -1, r"files\[0\].bytes is -1"),
        (["components", 0, "file"], "../../etc/passwd", r"components\[0\].file is '../../etc/passwd'"),
        (["components", 0, "file"], "unet/other.onnx", "not among"),
        (["components", 0, "opset"], None, r"components\[0\].opset is None"),
        (["components", 0, "verification", "psnr_db"], "high", "psnr_db is 'high', a number"),
        (["components", 0, "inputs", "sample"], [1.5], r"inputs.sample\[0\] is 1.5"),
        (["preview"], {"map": [[1.0]] * 3, "explains": 0.5}, "preview.map"),
        (["preview"], {"map": [[1.0] * 5] * 3}, "preview.explains is missing"),
        (["completion"], {"psnr_db": 90.0}, "completion.* is missing"),
        (["schedule_config", "prediction_type"], 3, "prediction_type is 3"),
    ],
)
def test_a_value_that_cannot_be_is_named(bundle: Path, path: list[Any], value: Any, said: str):
    values = json.loads((bundle / NAME).read_text())
    put(values, path, value)
    (bundle / NAME).write_text(json.dumps(values))
    with pytest.raises(BundleError, match=f"(?s){said}.*export the bundle"):
        Manifest.read(bundle)


def test_weights_that_no_digest_vouches_for_are_refused(bundle: Path):
    (bundle / "unet" / "model.onnx_data").write_bytes(b"anybody's")
    with pytest.raises(BundleError, match=r"model\.onnx_data', which is not among"):
        Manifest.read(bundle)


def test_a_pass_has_fixed_shapes(bundle: Path):
    one = Manifest.read(bundle)
    variant = Variant("unet", "full", "fp32", "cpu", "unet/model.onnx", {"sample": ["n", 4, 8, 8]}, {})
    replace(one, variants=(variant,)).write(bundle)
    with pytest.raises(BundleError, match=r"unet/model\.onnx have no fixed shapes"):
        Manifest.read(bundle)


def test_a_manifest_of_the_first_schema_is_read(bundle: Path):
    values = json.loads((bundle / NAME).read_text()) | {"schema": 1}
    del values["variants"]
    (bundle / NAME).write_text(json.dumps(values))
    assert Manifest.read(bundle).variants == ()


def put(values: Any, path: list[Any], value: Any) -> None:
    for key in path[:-1]:
        values = values[key]
    values[path[-1]] = value


def places(values: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value below, and where it is."""
    inner = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in inner:
        yield (*at, key), value
        yield from places(value, (*at, key))


def kind(value: Any) -> type:
    return float if type(value) is int else type(value)


EMOJI = json.loads((find_bundle("emoji") / NAME).read_text())
OTHERS: list[Any] = [None, True, 3, 0.5, -1, "64", "", "\0", [], ["a"], [[1]], {}, {"a": 1}, {"psnr_db": "x"}]
NULLABLE = ("revision", "conditioning", "preview", "completion", "pad_token_id_2")


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded bundle by links, so that its manifest can be another."""
    folder, source = tmp_path_factory.mktemp("linked"), find_bundle("emoji")
    for file in list_files(source):
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        (folder / file.path).symlink_to(source / file.path)
    return folder


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_one_value_is_it_is_a_bundle_error(linked: Path, run, data: st.DataObject):
    place, was = data.draw(st.sampled_from(list(places(EMOJI))), label="place")
    value = data.draw(st.sampled_from([v for v in OTHERS if kind(v) is not kind(was)]), label="value")
    values = json.loads(json.dumps(EMOJI))
    put(values, list(place), value)
    (linked / NAME).write_text(json.dumps(values))
    axis = len(place) == 5 and place[2] in ("inputs", "outputs") and isinstance(value, int | str)
    may_pass = place[0] == "schedule_config" or (len(place) == 1 and place[0] in NULLABLE) or axis
    if may_pass:
        with suppress(BundleError):
            Bundle.open(linked)
    else:
        with pytest.raises(BundleError, match="export the bundle"):
            Bundle.open(linked)
    code, _, error = run("inspect", linked)
    assert (code in (0, 1), "Traceback" in error) == (True, False)
    assert may_pass or (code, "export the bundle" in error) == (1, True)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index=st.integers(0, len(EMOJI["files"]) - 1))
def test_whatever_file_is_left_out_it_is_a_bundle_error_or_none_that_runs(linked: Path, run, index: int):
    files = [f for i, f in enumerate(EMOJI["files"]) if i != index]
    (linked / NAME).write_text(json.dumps(EMOJI | {"files": files}))
    gone = EMOJI["files"][index]["path"]
    if gone.endswith((".onnx", "_data", "tokenizer.json")):
        with pytest.raises(BundleError, match="export the bundle"):
            Bundle.open(linked)
    else:
        Bundle.open(linked)
    assert run("inspect", linked)[0] == int(gone.endswith((".onnx", "_data", "tokenizer.json")))
