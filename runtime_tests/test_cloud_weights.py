"""Which of a model's files are loaded, hashed and downloaded: one format and one variant of each part."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from tiny import make_sdxl_folder
from transformers import CLIPTextModel

from obclip.cloud.model import load_model
from obclip.core.errors import InputError, ModelMissingError, RunError
from obclip.core.pairs import ModelRef, load_pair
from obclip.core.weights import DIFFUSERS, TRANSFORMERS, Weights, choose_weights
from obclip.export import weights as exported

PAIR = load_pair("emoji")
ONE, INDEX = f"{DIFFUSERS}.safetensors", f"{DIFFUSERS}.safetensors.index.json"
HALF, HALF_INDEX = f"{DIFFUSERS}.fp16.safetensors", f"{DIFFUSERS}.safetensors.index.fp16.json"


@pytest.fixture
def folder(large_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(large_folder, tmp_path / "model"))


@pytest.fixture(scope="module")
def xl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sdxl_folder(tmp_path_factory.mktemp("weights") / "xl")


@pytest.fixture(scope="module")
def lcm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sdxl_folder(tmp_path_factory.mktemp("weights") / "lcm", distilled=True)


def digest(*files: Path) -> str:
    each = (hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    return hashlib.sha256("".join(each).encode()).hexdigest()


def doubled(source: Path, out: Path) -> None:
    """A variant that shows in the numbers."""
    save_file({name: 2 * value for name, value in load_file(source).items()}, out, {"format": "pt"})


# --- which


@pytest.mark.parametrize(
    ("names", "stem", "chosen"),
    [
        ([ONE, HALF, f"{DIFFUSERS}.non_ema.safetensors", f"{DIFFUSERS}.bin"], DIFFUSERS, Weights(ONE)),
        ([HALF, f"{DIFFUSERS}.non_ema.safetensors"], DIFFUSERS, Weights(HALF, "fp16")),
        ([f"{DIFFUSERS}-00001-of-00002.safetensors", INDEX, HALF], DIFFUSERS, Weights(INDEX)),
        ([HALF_INDEX, f"{DIFFUSERS}.fp16-00001-of-00002.safetensors"], DIFFUSERS, Weights(HALF_INDEX, "fp16")),
        ([ONE, INDEX], DIFFUSERS, Weights(INDEX)),  # as diffusers does
        (
            ["model.safetensors", "model.safetensors.index.json"],
            TRANSFORMERS,
            Weights("model.safetensors"),
        ),  # as transformers
        (["pytorch_lora_weights.safetensors", "model.onnx", f"{DIFFUSERS}.bin"], DIFFUSERS, None),
        ([], TRANSFORMERS, None),
    ],
)
def test_one_format_and_variant_is_chosen(names: list[str], stem: str, chosen: Weights | None):
    assert choose_weights(names, stem) == choose_weights(reversed(names), stem) == chosen


def test_the_digest_of_a_folder_with_one_file_a_part_is_that_of_all_its_weights(folder: Path, xl_folder: Path):
    for one in (folder, xl_folder):
        parts = [*sorted(one.glob("text_encoder*")), one / "unet"]
        assert load_model(PAIR, "cpu", source=one).digest == digest(
            *(f for p in parts for f in p.glob("*.safetensors"))
        )


def test_what_lies_beside_the_weights_is_neither_loaded_nor_hashed(folder: Path):
    before = load_model(PAIR, "cpu", source=folder)
    for part, stem in (("unet", DIFFUSERS), ("text_encoder", TRANSFORMERS)):
        doubled(folder / part / f"{stem}.safetensors", folder / part / f"{stem}.fp16.safetensors")
        (folder / part / "more.safetensors").write_bytes(b"no weights")
        torch.save({}, folder / part / f"{stem}.bin")
    after = load_model(PAIR, "cpu", source=folder)
    assert after.digest == before.digest
    assert after.unet.conv_in.weight.equal(before.unet.conv_in.weight)


def test_a_variant_is_loaded_where_there_is_nothing_else(folder: Path):
    before = load_model(PAIR, "cpu", source=folder)
    for part, stem in (("unet", DIFFUSERS), ("text_encoder", TRANSFORMERS)):
        whole = folder / part / f"{stem}.safetensors"
        doubled(whole, folder / part / f"{stem}.fp16.safetensors")
        whole.unlink()
    after = load_model(PAIR, "cpu", source=folder)
    assert after.unet.conv_in.weight.equal(2 * before.unet.conv_in.weight)
    assert after.digest == digest(folder / "text_encoder" / "model.fp16.safetensors", folder / "unet" / HALF)


def test_shards_are_loaded_and_hashed_and_one_that_is_missing_is_named(folder: Path):
    before = load_model(PAIR, "cpu", source=folder)
    for part, kind in (("unet", UNet2DConditionModel), ("text_encoder", CLIPTextModel)):
        whole = kind.from_pretrained(folder / part)
        shutil.rmtree(folder / part)
        whole.save_pretrained(folder / part, max_shard_size="40KB")
    shards = [*sorted((folder / "text_encoder").glob("*-of-*")), *sorted((folder / "unet").glob("*-of-*"))]
    after = load_model(PAIR, "cpu", source=folder)
    assert after.unet.conv_in.weight.equal(before.unet.conv_in.weight)
    assert len(shards) > 3
    assert after.digest == digest(*shards)
    shards[-1].unlink()
    with pytest.raises(ModelMissingError, match=f"{shards[-1].name} is missing"):
        load_model(PAIR, "cpu", source=folder)


def test_a_bundle_is_made_of_the_weights_that_its_server_loads(folder: Path):
    """Here of the shards that an index names, not of the one file beside them."""
    whole = UNet2DConditionModel.from_pretrained(folder / "unet")
    doubled(folder / "unet" / ONE, folder / "unet" / "twice.safetensors")
    whole.save_pretrained(folder / "unet", max_shard_size="40KB")
    (folder / "unet" / "twice.safetensors").rename(folder / "unet" / ONE)
    mine = exported.load_model(UNet2DConditionModel, folder / "unet")
    assert mine.conv_in.weight.equal(load_model(PAIR, "cpu", source=folder).unet.conv_in.weight)
    assert mine.conv_in.weight.equal(whole.conv_in.weight)


def test_weights_that_would_have_to_be_unpickled_are_refused(folder: Path):
    torch.save(load_file(folder / "unet" / ONE), folder / "unet" / f"{DIFFUSERS}.bin")
    (folder / "unet" / ONE).unlink()
    with pytest.raises(ModelMissingError, match=r"unet has no \.safetensors weights"):
        load_model(PAIR, "cpu", source=folder)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_one(path: Path) -> None:
    save_file({k: v for i, (k, v) in enumerate(sorted(load_file(path).items())) if i != 3}, path, {"format": "pt"})


def emptied(path: Path) -> None:
    path.write_text("{}")


DAMAGE = {
    "a text encoder cut off": ("text_encoder/model.safetensors", cut, "incomplete metadata"),
    "a text encoder that lacks a weight": ("text_encoder/model.safetensors", without_one, "lacks 1 weights"),
    "a UNet cut off": (f"unet/{ONE}", cut, "Unable to load"),
    "a UNet that lacks a weight": (f"unet/{ONE}", without_one, "lacks 1 weights"),
    "the configuration of another text encoder": ("text_encoder/config.json", emptied, "."),
    "a tokenizer without a longest prompt": ("tokenizer/tokenizer_config.json", emptied, "no model_max_length"),
    "a tokenizer without words": ("tokenizer/vocab.json", emptied, "."),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_model_is_refused_and_no_weight_is_made_up(folder: Path, name: str):
    file, harm, said = DAMAGE[name]
    harm(folder / file)
    with pytest.raises(ModelMissingError, match=rf"(?s)cannot be loaded \(.*{said}.*; if it is damaged"):
        load_model(PAIR, "cpu", source=folder)


def test_a_gpu_that_is_not_there_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=r"device is 'cuda:1'; this machine has 1 CUDA GPU"):
        load_model(PAIR, "cuda:1", source=folder)


def test_a_device_without_room_for_the_model_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(UNet2DConditionModel, "to", full)
    with pytest.raises(RunError, match="cpu has no memory left for the model; free some"):
        load_model(PAIR, "cpu", source=folder)


# --- from the hub


class Hub:
    """Repositories by name, each a folder; what is downloaded goes to folders of their own."""

    def __init__(self, repositories: dict[str, Path], cache: Path) -> None:
        self.repositories, self.cache, self.online = repositories, cache, True

    def names(self, source: str, **_: Any) -> list[str]:
        if not self.online:
            raise OfflineModeIsEnabled("offline")
        root = self.repositories[source]
        return [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]

    def snapshot(
        self, source: str, allow_patterns: list[str] | None = None, local_files_only: bool = False, **_: Any
    ) -> str:
        out = self.cache / source
        if local_files_only and not out.is_dir():
            raise LocalEntryNotFoundError("nothing here")
        for name in [] if local_files_only else filter_repo_objects(self.names(source), allow_patterns=allow_patterns):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.repositories[source] / name, out / name)
        return str(out)

    def downloaded(self, source: str) -> set[str]:
        root = self.cache / source
        return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Hub]:
    def of(repositories: dict[str, Path]) -> Hub:
        found = Hub(repositories, tmp_path / "cache")
        monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda api, source, **o: found.names(source, **o))
        monkeypatch.setattr("huggingface_hub.snapshot_download", found.snapshot)
        return found

    return of


def clutter(folder: Path, part: str, stem: str) -> None:
    """What repositories have beside the weights."""
    for name in (f"{stem}.fp16.safetensors", f"{stem}.bin", f"{stem}.onnx", "flax_model.msgpack"):
        (folder / part / name).write_bytes(b"gigabytes")


TOKENIZER = {"merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json"}
XL = {
    "model_index.json", "scheduler/scheduler_config.json",
    *(f"{part}/{name}" for part in ("tokenizer", "tokenizer_2") for name in TOKENIZER),
    *(f"{part}/{name}" for part in ("text_encoder", "text_encoder_2") for name in ("config.json", "model.safetensors")),
}  # fmt: skip


def test_only_what_is_loaded_is_downloaded(folder: Path, hub: Callable[..., Hub]):
    (folder / "safety_checker").mkdir()
    for part, stem in (
        ("unet", DIFFUSERS),
        ("text_encoder", TRANSFORMERS),
        ("vae", DIFFUSERS),
        ("safety_checker", TRANSFORMERS),
    ):
        clutter(folder, part, stem)
    there = hub({"ours/pipeline": folder})
    loaded = load_model(replace(PAIR, cloud=ModelRef("ours/pipeline")), "cpu")
    assert there.downloaded("ours/pipeline") == {
        "model_index.json", "scheduler/scheduler_config.json", *(f"tokenizer/{name}" for name in TOKENIZER),
        "text_encoder/config.json", "text_encoder/model.safetensors", "unet/config.json", f"unet/{ONE}",
    }  # fmt: skip
    assert loaded.digest == digest(folder / "text_encoder" / "model.safetensors", folder / "unet" / ONE)


@pytest.mark.parametrize("within", [".", "unet"], ids=["at the top", "in unet"])
def test_a_pair_whose_unet_is_kept_apart_comes_from_the_hub(
    xl_folder: Path, lcm_folder: Path, tmp_path: Path, hub: Callable[..., Hub], within: str
):
    apart = tmp_path / "apart" / within
    shutil.copytree(lcm_folder / "unet", apart)
    clutter(apart, ".", DIFFUSERS)
    pair = load_pair("lcm-sdxl")
    there = hub({pair.cloud.source: xl_folder, str(pair.cloud.unet): tmp_path / "apart"})
    loaded = load_model(pair, "cpu")
    assert loaded.guidance_distilled
    assert there.downloaded(pair.cloud.source) == XL
    wanted = {(Path(within) / name).as_posix() for name in ("config.json", ONE)}
    assert there.downloaded(str(pair.cloud.unet)) == wanted
    texts = [xl_folder / part / "model.safetensors" for part in ("text_encoder", "text_encoder_2")]
    assert loaded.digest == digest(*texts, lcm_folder / "unet" / ONE)


def test_of_shards_those_that_the_index_names_are_downloaded(folder: Path, hub: Callable[..., Hub]):
    whole = UNet2DConditionModel.from_pretrained(folder / "unet")
    shutil.rmtree(folder / "unet")
    whole.save_pretrained(folder / "unet", max_shard_size="40KB")
    named = {f"unet/{p.name}" for p in (folder / "unet").iterdir()}
    (folder / "unet" / f"{DIFFUSERS}.fp16-00001-of-00001.safetensors").write_bytes(b"gigabytes")
    there = hub({"ours/pipeline": folder})
    load_model(replace(PAIR, cloud=ModelRef("ours/pipeline")), "cpu")
    assert {name for name in there.downloaded("ours/pipeline") if name.startswith("unet/")} == named
    assert len(named) > 3


def test_without_a_network_what_was_downloaded_before_serves(folder: Path, hub: Callable[..., Hub]):
    there, pair = hub({"ours/pipeline": folder}), replace(PAIR, cloud=ModelRef("ours/pipeline"))
    first = load_model(pair, "cpu")
    there.online = False
    assert load_model(pair, "cpu").digest == first.digest
    with pytest.raises(
        ModelMissingError, match=r"ours/other is neither .* \(OfflineModeIsEnabled\); download it where"
    ):
        load_model(replace(PAIR, cloud=ModelRef("ours/other")), "cpu")
