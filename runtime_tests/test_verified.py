"""Digests of a large bundle's files are read once, and again when a file may have changed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from obclip.core import manifest as manifests
from obclip.core.errors import BundleError
from obclip.core.manifest import Manifest, list_files
from obclip.edge import verified
from obclip.edge.verified import verify_once

Read = list[str]


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Manifest]:
    monkeypatch.setenv("OBCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(verified, "LARGE_BYTES", 0)
    monkeypatch.setattr(verified, "_SETTLED_S", -1.0)
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name in ("a.onnx", "b.onnx"):
        (folder / name).write_bytes(name.encode() * 1000)
    manifest = Manifest(
        source="x", revision=None, family="sd", model_digest="0" * 64, height=64, width=64, latent_channels=4,
        latent_downscale=4, latent_scale=1.0, max_tokens=32, pad_token_id=1, prediction_type="epsilon",
        schedule_config={}, conditioning=1.0, components=(), files=list_files(folder),
    )  # fmt: skip
    return folder, manifest


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    names: Read = []
    real = manifests.sha256_file

    def noting(path: Path) -> str:
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(manifests, "sha256_file", noting)
    return names


def test_files_are_read_once(bundle, read: Read):
    verify_once(*bundle)
    assert read == ["a.onnx", "b.onnx"]
    verify_once(*bundle)
    assert read == ["a.onnx", "b.onnx"]


def _other_bytes_and_the_old_times(path: Path) -> None:
    before = path.stat()
    path.write_bytes(b"B" + path.read_bytes()[1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _another_file_in_its_place(path: Path) -> None:
    before, other = path.stat(), path.with_name("other")
    other.write_bytes(b"B" + path.read_bytes()[1:])
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [_other_bytes_and_the_old_times, _another_file_in_its_place])
def test_a_change_is_found_whatever_the_date_says(bundle, read: Read, change):
    folder, manifest = bundle
    verify_once(folder, manifest)
    read.clear()
    change(folder / "b.onnx")
    for _ in range(2):  # what was found wrong is not noted
        with pytest.raises(BundleError, match=r"b\.onnx.*altered"):
            verify_once(folder, manifest)
    assert read == ["b.onnx", "b.onnx"]


def test_a_missing_file_is_named(bundle):
    folder, manifest = bundle
    verify_once(folder, manifest)
    (folder / "a.onnx").unlink()
    with pytest.raises(BundleError, match=r"a\.onnx is missing"):
        verify_once(folder, manifest)


def test_another_manifest_is_another_question(bundle, read: Read):
    folder, manifest = bundle
    verify_once(folder, manifest)
    (folder / "b.onnx").write_bytes(b"C" * 6000)
    other = Manifest(**{**vars(manifest), "files": list_files(folder)})
    read.clear()
    verify_once(folder, other)
    assert read == ["b.onnx"]


def test_files_just_written_are_not_taken_for_settled(bundle, read: Read, monkeypatch: pytest.MonkeyPatch):
    folder, manifest = bundle
    monkeypatch.setattr(verified, "_SETTLED_S", 3600.0)
    verify_once(folder, manifest)
    verify_once(folder, manifest)
    assert read == ["a.onnx", "b.onnx"] * 2
    real = time.time
    monkeypatch.setattr(verified.time, "time", lambda: real() + 7200)
    verify_once(folder, manifest)
    verify_once(folder, manifest)
    assert read == ["a.onnx", "b.onnx"] * 3


@pytest.mark.parametrize("note", ["", "[]", '{"a.onnx": 3}', "\x00"])
def test_a_note_that_is_not_ours_counts_for_nothing(bundle, read: Read, note: str, tmp_path: Path):
    verify_once(*bundle)
    (kept,) = (tmp_path / "cache" / "verified").iterdir()
    kept.write_text(note)
    read.clear()
    verify_once(*bundle)
    assert read == ["a.onnx", "b.onnx"]


def test_a_small_bundle_is_always_read(bundle, read: Read, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(verified, "LARGE_BYTES", 10**6)
    verify_once(*bundle)
    verify_once(*bundle)
    assert read == ["a.onnx", "b.onnx"] * 2
    assert not (tmp_path / "cache").exists()


def test_who_has_to_wait_is_told_once(bundle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verified, "_WORTH_A_WORD_BYTES", 0)
    told: list[str] = []
    verify_once(*bundle, told.append)
    verify_once(*bundle, told.append)
    assert told == ["checking 0.0 GB of the bundle, once"]


def test_reading_all_reads_what_was_found_right_before_and_says_so(bundle, read: Read, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verified, "_WORTH_A_WORD_BYTES", 0)
    told: list[str] = []
    verify_once(*bundle)
    verified.verify_all(*bundle, told.append)
    assert read == ["a.onnx", "b.onnx"] * 2
    assert told == ["checking 0.0 GB of the bundle"]
