"""What an export is asked for and cannot do is said before it has done anything; what it fetches from the hub."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest

import obclip.export.bundle as bundle_module
import obclip.export.precisions as precisions_module
from obclip.core.errors import InputError, ModelMissingError, ObclipError, RunError
from obclip.core.manifest import Variant
from obclip.core.schedule_config import ScheduleConfig
from obclip.export import Calibration, export_bundle
from obclip.export.partial import Record
from obclip.export.quantise.variants import Setting
from obclip.export.shapes import shapes_of
from obclip.export.sources import Source, open_source

WRONG: dict[str, tuple[type[ObclipError], dict[str, Any]]] = {
    "a target that is a provider": (InputError, {"targets": ("cpu", "qnn")}),
    "a target without a name": (InputError, {"targets": ("cpu", "")}),
    "a precision without a name": (InputError, {"precisions": ("",)}),
    "no shallow pass": (InputError, {"targets": ("cpu",), "depth": 0}),
    "nothing to merge": (InputError, {"targets": ("cpu",), "merge": 0}),
    "no decoder there": (ModelMissingError, {"tiny_decoder": Path("nowhere")}),
    "no large model there": (ModelMissingError, {"calibration": Calibration(large=Path("nowhere"))}),
    "nobody to judge": (InputError, {"calibration": Calibration(prompts=1)}),
    "a floor for nobody": (
        InputError,
        {"targets": ("cpu",), "precisions": ("int8",), "calibration": Calibration(floor_db={"openvino": 33.0})},
    ),
    "a precision that the targets do not run": (InputError, {"targets": ("cpu",), "precisions": ("w8a16",)}),
}

NAMES = """
model_index.json sd_xl_base_1.0.safetensors sd_xl_offset_example-lora_1.0.safetensors
unet/diffusion_pytorch_model.safetensors unet/diffusion_pytorch_model.fp16.safetensors unet/model.onnx
text_encoder/model.fp16.safetensors text_encoder/model.safetensors text_encoder/pytorch_model.bin
text_encoder_2/model-00001-of-00002.safetensors text_encoder_2/model-00002-of-00002.safetensors
text_encoder_2/model.safetensors.index.json safety_checker/model.safetensors vae_1_0/model.safetensors
vae/diffusion_pytorch_model.fp16.safetensors
"""
NAMED = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]  # by the index


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options_are_found_before_anything_is_done(small_folder: Path, tmp_path: Path, name: str):
    error, options = WRONG[name]
    told: list[str] = []
    with pytest.raises(error):
        export_bundle(small_folder, tmp_path / "b", progress=lambda part, *_: told.append(part), **options)
    assert told == []
    assert not any(tmp_path.iterdir())


def test_each_target_is_held_to_its_own_floor(small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    held: list[tuple[str, float]] = []

    def variants(setting: Setting, record: Record, precision: str, target: str, report: object) -> tuple[Variant, ...]:
        held.append((target, setting.floor_db))
        return ()

    monkeypatch.setattr(precisions_module, "_variants", variants)
    floors = Calibration(prompts=2, floor_db={"cpu": 36.0})
    export_bundle(
        small_folder, tmp_path / "b", targets=("openvino", "cpu"), precisions=("int8",), calibration=floors,
        verify=False,
    )  # fmt: skip
    assert held == [("openvino", 30.0)] * 2 + [("cpu", 36.0)] * 2
    assert Calibration(floor_db=33.0).floor_of("cpu") == 33.0


def test_a_shallow_pass_deeper_than_the_unet_is_refused(small_folder: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"depth is 40; a shallow pass of this UNet runs 1 to \d+ up layers"):
        export_bundle(small_folder, tmp_path / "b", targets=("cpu",), depth=40)
    assert not any(tmp_path.iterdir())


def test_only_weights_that_are_read_are_fetched(small_folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Of a repository as the hub has them: one file for other programs at its root, a safety checker, variants."""
    fetched: list[str] = []

    def snapshot(_: str, *, allow_patterns: list[str], **__: object) -> str:
        fetched.extend(n for n in allow_patterns if n.endswith(".safetensors"))
        return str(small_folder)

    index = small_folder / "text_encoder_2" / "model.safetensors.index.json"
    monkeypatch.setattr("obclip.core.hub.shards", lambda path: NAMED if path == index else [])
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: NAMES.split())
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    open_source("somebody/model")
    assert sorted(fetched) == [
        "text_encoder/model.safetensors", *(f"text_encoder_2/{name}" for name in NAMED),
        "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors",
    ]  # fmt: skip


def test_a_bundle_is_no_source(bundle_folder: Path, tmp_path: Path):
    with pytest.raises(InputError, match="small is a bundle already"):
        export_bundle(bundle_folder, tmp_path / "b")


def sized(small_folder: Path, folder: Path, sample_size: Any) -> Source:
    shutil.copytree(small_folder, folder)
    path = folder / "unet" / "config.json"
    values = json.loads(path.read_text()) | {"sample_size": sample_size}
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return open_source(folder)


@pytest.mark.parametrize(
    ("sample_size", "given", "wanted"),
    [
        (None, (128, 64), (32, 16)),
        ([16, 24], (None, None), (16, 24)),
        ([16, 24], (None, 64), (16, 16)),
        (16, (128, None), (32, 16)),
    ],
)
def test_sizes_are_those_given_or_the_models(
    small_folder: Path, tmp_path: Path, sample_size: Any, given: tuple[int | None, int | None], wanted: tuple[int, int]
):
    shapes = shapes_of(sized(small_folder, tmp_path / "model", sample_size), 77, *given)
    assert (shapes.height, shapes.width) == wanted


@pytest.mark.parametrize(("sample_size", "height"), [(None, 128), ([16], None), ("16", None), (0, None)])
def test_a_model_without_a_size_needs_both(small_folder: Path, tmp_path: Path, sample_size: Any, height: int | None):
    with pytest.raises(InputError, match=r"sample_size is .*; pass --height and --width"):
        shapes_of(sized(small_folder, tmp_path / "model", sample_size), 77, height, None)


def test_a_link_to_nothing_in_the_source_is_named(small_folder: Path, tmp_path: Path):
    source = tmp_path / "model"
    shutil.copytree(small_folder, source)
    (source / "unet" / "notes.json").symlink_to(tmp_path / "nothing")
    with pytest.raises(RunError, match=r"unet/notes.json: No such file or directory; see to that file"):
        export_bundle(source, tmp_path / "b")


@pytest.mark.parametrize(
    ("code", "said"), [(errno.ENOSPC, "make room"), (errno.EDQUOT, "make room"), (errno.EIO, "see to that file")]
)
def test_only_a_full_disk_wants_room(
    small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: str
):
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(bundle_module, "export_tokenizer", fail)
    with pytest.raises(RunError, match=rf"{os.strerror(code)}.*{said}"):
        export_bundle(small_folder, tmp_path / "b")


@pytest.mark.parametrize("error", [httpx.ConnectError("no network"), OSError("no network")])
def test_without_a_network_what_was_fetched_before_is_taken(
    error: Exception, small_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def offline(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", offline)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(small_folder))
    assert open_source("somebody/model").folder == small_folder
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ModelMissingError, match="pass its folder"):
        open_source("somebody/model")


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (OSError(errno.ENOSPC, "no room"), RunError, "make room and start again"),
        (httpx.ReadError("cut off"), ModelMissingError, r"broke off \(cut off\); start again"),
    ],
)
def test_half_a_download_is_not_taken_for_a_model(
    error: Exception, kind: type[ObclipError], said: str, small_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def snapshot(*_: object, local_files_only: bool = False, **__: object) -> str:
        if not local_files_only:
            raise error
        return str(small_folder)  # what came before it broke off

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: NAMES.split())
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(kind, match=said):
        open_source("somebody/model")


def test_a_bundle_and_the_cloud_take_an_old_models_schedule_as_diffusers_does(small_folder: Path, tmp_path: Path):
    source = tmp_path / "source"
    shutil.copytree(small_folder, source)
    file = source / "scheduler" / "scheduler_config.json"
    settings = json.loads(file.read_text())
    del settings["steps_offset"]
    file.write_text(json.dumps(settings))
    manifest = export_bundle(source, tmp_path / "b", components=("text_encoder",), verify=False)
    assert manifest.schedule_config["steps_offset"] == 1
    assert ScheduleConfig.from_dict(manifest.schedule_config) == ScheduleConfig.of_model(source)
    assert ScheduleConfig.of_model(tmp_path / "b") == ScheduleConfig.of_model(source)
