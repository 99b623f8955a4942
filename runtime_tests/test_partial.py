"""What an export that was stopped has on record: taken over where it is whole, made again where it is not."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from test_quantise import SIDE, numbers, small_model

from obclip.core.errors import RunError
from obclip.core.manifest import Component
from obclip.export import Calibration, precisions
from obclip.export import partial as partial_module
from obclip.export.external import SharedData
from obclip.export.partial import Partial, Record
from obclip.export.quantise import quantise
from obclip.export.quantise.measured import Measured
from obclip.export.quantise.sensitivity import Damage
from obclip.export.quantise.variants import Setting
from obclip.export.shapes import Shapes


def test_what_was_exported_outlives_a_stop_within_a_further_precision(tmp_path: Path):
    """Its tensors are in the data file behind those on record, one of its graphs is written: all of that is undone."""

    def begin(out: Path) -> Record:
        with Partial(out, "key") as partial:
            folder = partial.begin("unet")
            model = onnx.load(small_model(tmp_path / "inline.onnx"))
            path = folder / "model.onnx"
            onnx.save(model, path, save_as_external_data=True, location="model.onnx_data", size_threshold=512)
            return partial.finish("unet", Component("unet", "unet/model.onnx", "fp32", 20, {}, {}), ())

    def add_int8(partial: Partial, stop: bool = False) -> None:
        folder = partial.folder / "unet"
        data = SharedData(folder / "model.onnx_data")
        quantise(folder / "model.onnx", folder / "cpu_int8_full.onnx", "int8", feeds, data=data)
        if stop:
            (folder / "tmp").mkdir()
            (folder / "tmp" / "graph.onnx").write_bytes(b"unfinished")
            raise KeyboardInterrupt
        partial.finish("unet", record.component, ())
        partial.publish()

    feeds = [{"sample": numbers((1, 4, SIDE, SIDE), 20 + i)} for i in range(6)]
    record = begin(tmp_path / "whole")
    with Partial(tmp_path / "whole", "key") as partial:
        add_int8(partial)
    begin(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt), Partial(tmp_path / "out", "key") as partial:
        add_int8(partial, stop=True)
    data = tmp_path / ".out.partial" / "unet" / "model.onnx_data"
    assert data.stat().st_size > next(f.bytes for f in record.files if f.path == "unet/model.onnx_data")
    with Partial(tmp_path / "out", "key") as partial:
        assert partial.find("unet") == record
        assert sorted(p.name for p in data.parent.iterdir()) == ["model.onnx", "model.onnx_data"]
        add_int8(partial)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("harm", ["altered", "cut", "longer graph"])
def test_a_part_that_is_damaged_is_made_again(harm: str, tmp_path: Path):
    with Partial(tmp_path / "out", "key") as partial:
        folder = partial.begin("unet")
        graph, data = folder / "model.onnx", folder / "model.onnx_data"
        graph.write_bytes(b"a graph")
        data.write_bytes(b"weights")
        partial.finish("unet", Component("unet", "unet/model.onnx", "fp32", 20, {}, {}), ())
        assert partial.find("unet") is not None
        path, value = {
            "altered": (data, b"wEights and more"), "cut": (data, b"weig"), "longer graph": (graph, b"a graph more"),
        }[harm]  # fmt: skip
        path.write_bytes(value)
        assert partial.find("unet") is None


def exported(partial: Partial) -> None:
    (partial.begin("unet") / "model.onnx").write_bytes(b"a graph")
    partial.finish("unet", Component("unet", "unet/model.onnx", "fp32", 20, {}, {}), ())


def test_an_export_that_goes_on_knows_what_was_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    known: list[dict] = []

    def stopped(setting: Any, *_: object) -> None:
        known.append(dict(setting.measured))
        setting.measured["layers"] = ["a", "b"], [Damage(("a", "b"), 0.1, 1.0)]
        raise KeyboardInterrupt

    def prepared(*_: object, measured: Path, **__: object) -> Any:
        nothing: Any = None
        return Setting(nothing, nothing, nothing, (), (), 1.0, measured=Measured(measured))

    monkeypatch.setattr(precisions, "prepare", prepared)
    monkeypatch.setattr(precisions, "quantise_unet", stopped)
    wanted, shapes = precisions.Wanted(("int8",), ("cpu",), 0), Shapes(4, 8, 8, 77, 32, 8, 1.0)
    for key in ("key", "key", "another"):
        with pytest.raises(KeyboardInterrupt), Partial(tmp_path / "out", key) as partial:
            exported(partial)
            record = partial.find("unet")
            precisions.add_precisions(partial, [record], wanted, Calibration(), shapes, lambda *_: None)
    assert known == [{}, {"layers": (["a", "b"], [Damage(("a", "b"), 0.1, 1.0)])}, {}]
    (tmp_path / ".out.partial" / ".export" / "sensitivity").write_text('{"layers": [1]}')
    assert Measured(tmp_path / ".out.partial" / ".export" / "sensitivity") == {}


def full_disk(*_: object) -> None:
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def unwritable(*_: object) -> None:
    try:
        full_disk()
    except OSError as error:
        raise RunError("cannot write it") from error


@pytest.mark.parametrize("failing", ["publish_folder", "atomic_write_bytes", "check_replaceable"])
def test_what_is_done_outlives_a_last_step_that_fails(failing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A mount point in the bundle's place, a disk that fills with the record, something put there meanwhile."""
    out = tmp_path / "out"
    with pytest.raises((OSError, RunError)), Partial(out, "key") as partial:
        exported(partial)
        if failing == "check_replaceable":
            out.mkdir()
            (out / "mine").write_text("1")
        else:
            monkeypatch.setattr(partial_module, failing, full_disk if failing == "publish_folder" else unwritable)
            if failing == "atomic_write_bytes":
                partial.finish("vae", Component("vae", "vae/model.onnx", "fp32", 20, {}, {}), ())
        partial.publish()
    monkeypatch.undo()
    if failing == "check_replaceable":
        assert (out / "mine").read_text() == "1"
        shutil.rmtree(out)
    with Partial(out, "key") as partial:
        assert partial.records() == ["unet"]
        assert partial.find("unet") is not None
        partial.publish()
    assert contents(out) == {"unet/model.onnx": b"a graph"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
