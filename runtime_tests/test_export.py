"""Bundles: layout, agreement with PyTorch, and exports that must fail whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from tiny import make_sd_folder
from transformers import CLIPTokenizer

import obclip.export.bundle as bundle_module
import obclip.export.completion as completion_module
import obclip.export.partial as partial_module
from obclip.core.errors import BundleError, InputError, ModelMissingError, VerificationError
from obclip.core.files import publish_folder
from obclip.core.manifest import Manifest
from obclip.core.noise import initial_noise
from obclip.edge import Bundle
from obclip.export import export_bundle
from obclip.export.components import Shapes, load_part
from obclip.export.onnx_export import export_onnx
from obclip.export.partial import Partial
from obclip.export.verify import check, psnr_db, reference

pytestmark = pytest.mark.usefixtures("traces")

LAYOUT = {
    "text_encoder": (["input_ids"], ["last_hidden_state", "pooler_output"]),
    "unet": (["sample", "timestep", "encoder_hidden_states"], ["out_sample"]),
    "vae_decoder": (["latent_sample"], ["sample"]),
    "vae_encoder": (["sample"], ["latent_sample"]),
}
COMPLETED = "a photograph of a woman cooking"
SHAPES = Shapes(channels=4, height=16, width=16, tokens=32, text_width=32, downscale=4, latent_scale=1.0)


def test_layout_is_optimums(bundle_folder: Path):
    for name, (inputs, outputs) in LAYOUT.items():
        session = ort.InferenceSession(bundle_folder / name / "model.onnx", providers=["CPUExecutionProvider"])
        assert [v.name for v in session.get_inputs()] == inputs
        assert [v.name for v in session.get_outputs()] == outputs
        assert (bundle_folder / name / "config.json").is_file()
    unet = ort.InferenceSession(bundle_folder / "unet" / "model.onnx", providers=["CPUExecutionProvider"])
    shapes = {v.name: v.shape for v in unet.get_inputs()}
    assert shapes["sample"] == ["batch_size", 4, "height", "width"]
    assert shapes["timestep"] == []
    for path in (
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "tokenizer/vocab.json",
    ):
        assert (bundle_folder / path).is_file()


def test_the_manifest_describes_and_digests_the_files(bundle_folder: Path):
    manifest = Manifest.read(bundle_folder)
    manifest.verify_files(bundle_folder)
    assert (manifest.max_tokens, manifest.latent_downscale, manifest.height) == (32, 4, 64)
    assert manifest.conditioning == pytest.approx(1, abs=0.01)
    assert all(c.verification["psnr_db"] > 45 for c in manifest.components)
    assert {f.path for f in manifest.files} >= {f"{n}/model.onnx" for n in LAYOUT}


def test_half_weights_halve_the_file_and_fold_back(bundle_folder: Path, small_folder: Path, tmp_path: Path):
    part = load_part("unet", small_folder, {}, SHAPES)
    full, half = tmp_path / "full.onnx", bundle_folder / "unet" / "model.onnx"
    export_onnx(part, full, "fp32")
    assert half.stat().st_size < 0.65 * full.stat().st_size
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(half, options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx")
    halves = {t.name for t in optimised.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16}
    assert not halves, "ONNX Runtime should have turned every stored float16 weight back at load"


def test_large_weights_go_beside_the_model(small_folder: Path, tmp_path: Path):
    part = load_part("unet", small_folder, {}, SHAPES)
    path = tmp_path / "unet" / "model.onnx"
    export_onnx(part, path, "fp32", external_above_bytes=1000)
    assert (path.parent / "model.onnx_data").stat().st_size > path.stat().st_size
    assert check(reference(part), path, "fp32")["psnr_db"] > 80


def test_a_kl_autoencoder_exports_mean_and_variance(tmp_path: Path):
    folder = make_sd_folder(tmp_path / "kl", vae="kl")
    index = json.loads((folder / "model_index.json").read_text())
    for name in ("vae_encoder", "vae_decoder"):
        part = load_part(name, folder, index, SHAPES)
        export_onnx(part, tmp_path / name / "model.onnx", "fp32")
        assert check(reference(part), tmp_path / name / "model.onnx", "fp32")["psnr_db"] > 80
    session = ort.InferenceSession(tmp_path / "vae_encoder" / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].name == "latent_parameters"
    assert session.run(None, {"sample": np.zeros((1, 3, 64, 64), np.float32)})[0].shape == (1, 8, 16, 16)


@pytest.mark.parametrize("vae", ["kl", "tiny"])
def test_a_vae_without_a_scaling_factor_is_decoded_as_diffusers_decodes_it(tmp_path: Path, vae: str):
    """As Stable Diffusion 1.x's was saved: the class's default is meant."""
    folder = make_sd_folder(tmp_path / "model", vae=vae)
    edit_config(folder / "vae", lambda values: values.pop("scaling_factor"))
    export_bundle(folder, tmp_path / "b", components=("vae_decoder",))
    bundle = Bundle.open(tmp_path / "b")
    vae_of = StableDiffusionPipeline.from_pretrained(folder).vae
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        drawn = vae_of.decode(latents / vae_of.config.scaling_factor, return_dict=False)[0][0].permute(1, 2, 0).numpy()
    wanted = ((drawn / 2 + 0.5).clip(0, 1) * 255).round()
    assert bundle.manifest.latent_scale == vae_of.config.scaling_factor
    assert np.abs(bundle.decode(latents[0].numpy()).astype(int) - wanted).max() <= 1


def test_the_device_tokenizer_is_the_models(bundle_folder: Path):
    from tokenizers import Tokenizer

    fast = Tokenizer.from_file(str(bundle_folder / "tokenizer" / "tokenizer.json"))
    slow = CLIPTokenizer.from_pretrained(bundle_folder / "tokenizer")
    for text in ("a woman's Hat", "42 cooks, noto style!", "ünïcode 🙂", " spaced   out "):
        assert fast.encode(text).ids == slow(text).input_ids


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads((folder / "config.json").read_text())
    edit(values)
    (folder / "config.json").write_text(json.dumps(values))


def damaged(path: Path, change: float) -> None:
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT16 and tensor.raw_data:
            values = onnx.numpy_helper.to_array(tensor) * np.float16(change)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)


def test_an_export_below_its_floor_leaves_nothing(small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def export_badly(part, path, *rest):
        export_onnx(part, path, *rest)
        damaged(path, 0.9)

    monkeypatch.setattr(bundle_module, "export_onnx", export_badly)
    with pytest.raises(VerificationError, match=r"text_encoder.*dB"):
        export_bundle(small_folder, tmp_path / "out", weights="fp16")
    assert list(tmp_path.iterdir()) == []


def test_a_unet_that_went_deaf_to_its_text_is_refused(small_folder: Path, bundle_folder: Path, tmp_path: Path):
    part = load_part("unet", small_folder, {}, SHAPES)
    model = onnx.load(bundle_folder / "unet" / "model.onnx")
    for node in model.graph.node:  # the text reaches the graph as zeros
        for i, name in enumerate(node.input):
            if name == "encoder_hidden_states":
                node.input[i] = "deaf"
    zero = onnx.helper.make_tensor("zero", onnx.TensorProto.FLOAT, [], [0.0])
    model.graph.initializer.append(zero)
    model.graph.node.insert(0, onnx.helper.make_node("Mul", ["encoder_hidden_states", "zero"], ["deaf"]))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(VerificationError, match="response to the text"):
        check(reference(part), tmp_path / "model.onnx", "fp16", floor_db=-100)


def test_an_existing_folder_is_kept(small_folder: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("1")
    with pytest.raises(InputError, match="--force"):
        export_bundle(small_folder, tmp_path / "out")
    assert (tmp_path / "out" / "mine").exists()


def edit_index(folder: Path) -> None:
    path = folder / "model_index.json"
    path.write_text(path.read_text().replace("StableDiffusionPipeline", "StableDiffusion3Pipeline"))


def truncate_unet(folder: Path) -> None:
    path = next((folder / "unet").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1000])


def drop_the_longest_prompt(folder: Path) -> None:
    path = folder / "tokenizer" / "tokenizer_config.json"
    values = json.loads(path.read_text())
    del values["model_max_length"]
    path.write_text(json.dumps(values))


def drop_a_text_weight(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    del weights["text_model.embeddings.token_embedding.weight"]
    save_file(weights, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "error", "word"),
    [
        (edit_index, InputError, "StableDiffusion3Pipeline"),
        (lambda f: (f / "model_index.json").unlink(), ModelMissingError, "model_index"),
        (lambda f: shutil.rmtree(f / "vae"), ModelMissingError, "vae"),
        (truncate_unet, ModelMissingError, "unet"),
        (drop_the_longest_prompt, ModelMissingError, "tokenizer_config.json has no model_max_length"),
        (drop_a_text_weight, ModelMissingError, "lacks 1 weights, text_model.embeddings.token_embedding.weight among"),
    ],
)
def test_sources_that_cannot_be_exported_are_named(small_folder: Path, tmp_path: Path, damage, error, word: str):
    source = tmp_path / "source"
    shutil.copytree(small_folder, source)
    damage(source)
    with pytest.raises(error, match=word):
        export_bundle(source, tmp_path / "out", weights="fp16")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("options", [{"weights": "int3"}, {"height": 63}])
def test_bad_options_are_refused(small_folder: Path, tmp_path: Path, options: dict):
    with pytest.raises(InputError):
        export_bundle(small_folder, tmp_path / "out", **options)


def test_only_the_components_asked_for_are_written(small_folder: Path, tmp_path: Path):
    some = ("unet", "text_encoder", "vae_decoder")
    manifest = export_bundle(small_folder, tmp_path / "b", components=some)
    assert [c.name for c in manifest.components] == ["text_encoder", "unet", "vae_decoder"]
    assert not (tmp_path / "b" / "vae_encoder").exists()
    Bundle.open(tmp_path / "b").decode(np.zeros((4, 16, 16), np.float32))
    alone = export_bundle(small_folder, tmp_path / "c", components=("unet",))
    assert (alone.preview, [c.name for c in alone.components]) == (None, ["unet"])
    with pytest.raises(BundleError, match="no vae_decoder"):
        Bundle.open(tmp_path / "c").decode(np.zeros((4, 16, 16), np.float32))


def test_the_whole_completion_is_what_diffusers_completes(
    small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Our PyTorch side of the comparison beside diffusers' own pipeline, whose steps are not ours."""
    seen: list[np.ndarray] = []
    real = completion_module.psnr_db
    monkeypatch.setattr(completion_module, "psnr_db", lambda a, b: seen.extend((a, b)) or real(a, b))
    completion = export_bundle(small_folder, tmp_path / "b").completion
    assert completion is not None
    assert (completion["steps"], completion["size"]) == ("2..5 of 6", [32, 32])
    pipeline = StableDiffusionPipeline.from_pretrained(small_folder)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    unit = torch.from_numpy(initial_noise(completion["seed"], (4, 8, 8)))[None].float()
    with torch.no_grad():
        pipeline.scheduler.set_timesteps(6)
        text, negative = pipeline.encode_prompt(COMPLETED, "cpu", 1, True)
        x = unit
        for t in pipeline.scheduler.timesteps[2:]:
            a, b = (pipeline.unet(x, t, states, return_dict=False)[0] for states in (text, negative))
            x = pipeline.scheduler.step(b + 7.5 * (a - b), t, x, return_dict=False)[0]
        wanted = pipeline.vae.decode(x / pipeline.vae.config.scaling_factor, return_dict=False)[0].numpy()
    assert psnr_db(wanted, seen[0]) > 60
    assert psnr_db(wanted, seen[1]) > 60
    assert completion["psnr_db"] == round(real(seen[0], seen[1]), 2)


def test_a_completion_below_its_floor_is_not_kept(small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(completion_module, "FLOORS_DB", {"fp32": 1000.0})
    with pytest.raises(VerificationError, match=r"whole completion: \d+.* dB"):
        export_bundle(small_folder, tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("components", [(), ("unet", "eyes"), ("unet", "vae_encoder")])
def test_components_that_cannot_be_are_refused(small_folder: Path, tmp_path: Path, components: tuple[str, ...]):
    precisions = ("int8",) if "vae_encoder" in components else ()
    with pytest.raises(InputError, match=r"components is|leave out no component"):
        export_bundle(small_folder, tmp_path / "b", components=components, precisions=precisions, targets=("cpu",))
    assert not (tmp_path / "b").exists()


def test_the_map_of_previews_is_the_least_squares_fit_of_the_decoder(bundle_folder: Path):
    """On latents that it was not fitted on, it explains about as much of the pictures as it says."""
    bundle = Bundle.open(bundle_folder)
    assert bundle.manifest.preview is not None
    weights = np.array(bundle.manifest.preview["map"])
    grid = np.random.default_rng(5).standard_normal((8, 4, 4, 4))
    latents = grid.repeat(4, axis=2).repeat(4, axis=3).astype(np.float32)
    session = bundle.session("vae_decoder")
    scale = np.float32(bundle.manifest.latent_scale)
    drawn = np.stack([session.run(latent_sample=x[None] / scale)["sample"][0] for x in latents])
    drawn = drawn.reshape(8, 3, 16, 4, 16, 4).mean(axis=(3, 5))
    said = np.einsum("oc,nchw->nohw", weights[:, :-1], latents) + weights[:, -1][None, :, None, None]
    centred = drawn - drawn.mean(axis=(0, 2, 3), keepdims=True)
    explained = 1 - ((drawn - said) ** 2).sum() / (centred**2).sum()
    assert explained == pytest.approx(bundle.manifest.preview["explains"], abs=0.2)


def test_no_other_export_begins_until_one_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And one that begins right behind it loses nothing to the first one's end."""
    out, tried = tmp_path / "b", []
    publish = partial_module.publish_folder

    def beside(building: Path, out: Path) -> None:
        with pytest.raises(InputError, match="another export"), Partial(out, "key"):
            pass
        publish(building, out)
        tried.append(Partial(out, "another").__enter__())

    monkeypatch.setattr(partial_module, "publish_folder", beside)
    with Partial(out, "key") as one:
        (one.folder / "file").write_text("")
        one.publish()
    assert [p.name for p in out.iterdir()] == ["file"]
    assert (tmp_path / ".b.partial" / ".export" / "key").read_text() == "another"
    tried[0].__exit__(None, None, None)
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("left", ["both", "old"])
def test_what_a_killed_export_left_does_not_stop_the_next(tmp_path: Path, left: str):
    """Killed with the new folder in place and the old one not yet gone, or between the two."""
    for name in (".b.partial", ".b.partial.old", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    if left == "old":
        shutil.rmtree(tmp_path / "b")
    publish_folder(tmp_path / ".b.partial", tmp_path / "b")
    assert (tmp_path / "b" / "file").read_text() == ".b.partial"
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
