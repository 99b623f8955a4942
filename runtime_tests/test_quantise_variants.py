"""Calibration data and a bundle's quantised variants, against diffusers and the edge's own run of the same steps."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.latent_consistency_models.pipeline_latent_consistency_text2img import (
    LatentConsistencyModelPipeline,
)
from tiny import diffusers_latents, make_sdxl_folder

from obclip.core.errors import InputError, ModelMissingError, VerificationError
from obclip.core.guidance import guidance_embedding
from obclip.core.manifest import Variant
from obclip.core.pairs import Pair, load_pair
from obclip.core.wire import Request
from obclip.edge import Bundle
from obclip.edge.complete import Guidance, denoise
from obclip.export.graphs import export_device_graphs
from obclip.export.quantise import variants
from obclip.export.quantise.cloud_half import handed_over
from obclip.export.quantise.conditions import encode
from obclip.export.quantise.graph import layers, load_graph
from obclip.export.quantise.measured import Measured
from obclip.export.quantise.prompts import EMOJI, PEOPLE
from obclip.export.quantise.sensitivity import Damage
from obclip.export.quantise.trajectories import trajectories
from obclip.export.quantise.unets import DeviceUnet, WholeUnet
from obclip.export.quantise.variants import Setting, prepare, quantise_decoder, quantise_unet, some_passes
from obclip.export.quantise.verdict import Pictures, Verdict, of_unet
from obclip.export.tokenizer import export_tokenizer

pytestmark = pytest.mark.usefixtures("traces")

PROMPTS = ("noto style emoji of a woman", "blob style emoji of a boy")


@pytest.fixture(scope="module")
def pair() -> Pair:
    return replace(load_pair("emoji"), solver="ddim", steps=6, handoff=2)


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path, small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with device graphs, which variants are written into."""
    folder = tmp_path_factory.mktemp("quantised") / "bundle"
    shutil.copytree(bundle_folder, folder)
    return folder


@pytest.fixture(scope="module")
def graphs(bundle: Path, small_folder: Path) -> tuple[Variant, ...]:
    unet = UNet2DConditionModel.from_pretrained(small_folder / "unet").eval()
    return export_device_graphs(unet, 16, 16, 32, bundle / "unet", ("cpu",), 1)


@pytest.fixture(scope="module")
def setting(pair: Pair, bundle: Path, large_folder: Path) -> Setting:
    return prepare(pair, bundle, PROMPTS, 1.0, large=large_folder, floor_db=25.0)


def test_a_trajectory_begins_where_diffusers_large_model_ends(setting: Setting, pair: Pair, large_folder: Path):
    found = setting.calibrate[0]
    request = Request(
        pair=pair.digest, candidates=(PROMPTS[0],), negative_prompt="", seed=0, height=64, width=64, steps=6, handoff=2,
        guidance=pair.guidance, solver="ddim",
    )  # fmt: skip
    wanted = diffusers_latents(StableDiffusionPipeline.from_pretrained(large_folder), request, PROMPTS[0])
    assert found.start == 2
    np.testing.assert_allclose(found.x, wanted, atol=2e-3 * np.abs(wanted).max())  # rounded to float16, as on the wire


def test_and_goes_on_as_the_edge_does(setting: Setting, pair: Pair, bundle: Path):
    """The edge's sessions on the same files, stepped here: every pass's latents and outputs, and the last latents."""
    found = setting.calibrate[0]
    opened = Bundle.open(bundle, verify=False)
    text = [opened.encode(PROMPTS[0]), opened.encode("")]
    np.testing.assert_allclose(found.branches[0]["encoder_hidden_states"], text[0]["encoder_hidden_states"], atol=1e-5)
    schedule, x = opened.schedule("ddim", 6), found.x
    passes = iter(found.passes)
    for step in range(2, 6):
        outputs = []
        for branch in (0, 1):
            t = np.float32(schedule.timesteps[step])
            feed = {"sample": x[None], "timestep": t, **text[branch]}
            session = ort.InferenceSession(bundle / "unet" / "model.onnx", providers=["CPUExecutionProvider"])
            outputs.append(session.run(["out_sample"], {k: np.asarray(v) for k, v in feed.items()})[0][0])
            p = next(passes)
            assert (p.step, p.branch) == (step, branch)
            np.testing.assert_allclose(p.x, x, atol=1e-4)
            np.testing.assert_allclose(p.output, outputs[-1], atol=1e-4)
        x, _ = schedule.step(step, x, outputs[1] + np.float32(pair.guidance) * (outputs[0] - outputs[1]))
    assert next(passes, None) is None
    np.testing.assert_allclose(found.last, x, atol=1e-4)


def test_a_device_with_steps_of_its_own_is_calibrated_on_these(pair: Pair, bundle: Path, large_folder: Path):
    """Latents after step 2 of the cloud's 4; then the edge's own run of the device's steps 5 to 7 of 8."""
    other = replace(pair, solver="lcm", steps=4, timestep_shift=3, device_solver="dpm++2m", device_steps=8)
    setting = prepare(other, bundle, PROMPTS, 1.0, large=large_folder)
    opened, found = Bundle.open(bundle, verify=False), setting.calibrate[0]
    own = opened.schedule("dpm++2m", 8)
    assert setting.schedule.digest == own.digest
    assert [p.step for p in found.passes] == [5, 5, 6, 6, 7, 7]
    ((x, _),) = handed_over(other, large_folder, opened.schedule("lcm", 4), PROMPTS[:1], [0], 2)
    np.testing.assert_array_equal(found.x, x)
    guidance = Guidance(opened.encode(PROMPTS[0]), opened.encode(""), pair.guidance)
    *_, (_, last, _) = denoise(opened, own, guidance, x, 5, 0)
    np.testing.assert_allclose(found.last, last, atol=1e-4)
    (alone,) = trajectories(other, bundle, PROMPTS[:1], [0])
    assert [p.step for p in alone.passes] == [step for step in range(8) for _ in range(2)]


@pytest.mark.parametrize("zeros", [True, False])
def test_no_text_is_what_the_device_makes_of_it(zeros: bool, tmp_path: Path):
    """SDXL's, where the pipeline has zeros for it; others are read as they are."""
    source, folder = make_sdxl_folder(tmp_path / "xl", zero_empty=zeros), tmp_path / "bundle"
    for name in ("text_encoder", "text_encoder_2", "unet"):
        (folder / name).mkdir(parents=True)
        (folder / name / "model.onnx").touch()
    for name in ("tokenizer", "tokenizer_2"):
        export_tokenizer(source / name, folder / name)
    for file in ("unet/config.json", "model_index.json"):
        shutil.copyfile(source / file, folder / file)

    def ones(part: str, ids: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        layers = {f"hidden_states.{i}": np.ones((1, 32, 32), np.float32) for i in range(4)}
        return [layers | {"text_embeds": np.ones((1, 24), np.float32)} for _ in ids]

    found = encode(folder, ["a woman", ""], (64, 64), 5.0, ones)
    for name in ("encoder_hidden_states", "text_embeds"):
        assert found["a woman"][name].all()
        assert found[""][name].any() != zeros
    assert found[""]["time_ids"].any()


def test_without_a_large_model_it_begins_at_noise(pair: Pair, bundle: Path):
    (found,) = trajectories(pair, bundle, PROMPTS[:1], [3], steps=2)
    assert found.start == 0
    assert len(found.passes) == 4
    with pytest.raises(ModelMissingError, match="diffusers pipeline"):
        trajectories(pair, bundle, PROMPTS[:1], [3], large=bundle / "unet")
    with pytest.raises(InputError, match="at least two"):
        prepare(pair, bundle, PROMPTS[:1], 1.0)


def test_guidance_embedding_is_diffusers():
    wanted = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, torch.tensor([6.5]), 256)  # type: ignore[arg-type]
    np.testing.assert_allclose(guidance_embedding(7.5, 256), wanted.numpy(), atol=2e-3)  # float32 angles up to 6500


def test_device_graphs_are_the_whole_unet(setting: Setting, bundle: Path, graphs: tuple[Variant, ...]):
    schedule, found = setting.schedule, setting.calibrate[0]
    device = DeviceUnet(bundle / "unet", bundle / "unet" / "cpu_fp32_full.onnx", schedule)
    for p in found.passes:
        output = device.output(p.x, p.step, found.branches[p.branch])
        assert np.linalg.norm(output - p.output) < 2e-3 * np.linalg.norm(p.output)  # weights stored as float16


def test_the_float_model_loses_nothing(setting: Setting, pair: Pair, bundle: Path):
    unet = WholeUnet(bundle / "unet" / "model.onnx", setting.schedule)
    pictures = Pictures(bundle / "vae_decoder" / "model.onnx", 1.0)
    verdict = of_unet(unet, setting.judge, setting.schedule, pair.guidance, pictures)
    assert verdict.lowest_db > 80
    assert verdict.conditioning == pytest.approx(1, abs=1e-4)

    class Deaf:
        feed = unet.feed

        def output(self, x, step, conditions):
            return unet.output(x, step, setting.judge[0].branches[1])

    deaf = of_unet(Deaf(), setting.judge, setting.schedule, pair.guidance, pictures)
    assert deaf.conditioning == 0
    assert not deaf.meets(0.0)


def test_a_shallow_graph_that_says_nothing_is_refused(
    setting: Setting, graphs: tuple[Variant, ...], monkeypatch: pytest.MonkeyPatch
):
    whole = variants.quantise

    def silent(source: Path, out: Path, *rest: object, **options: object) -> object:
        if "shallow" in out.name:
            model = load_graph(source)
            last = model.graph.initializers[layers(model)[-1].weight]
            last.const_value = ir.tensor(np.zeros(last.const_value.shape.numpy(), np.float32), name=last.name)
            source = out.with_name("silent.onnx")
            ir.save(model, source)
        return whole(source, out, *rest, **options)

    monkeypatch.setattr(variants, "quantise", silent)
    with pytest.raises(VerificationError, match="cpu_w8_shallow"):
        quantise_unet(setting, graphs, "w8", "cpu")


def test_a_shallow_graph_is_judged_in_turns_with_the_full_one(
    setting: Setting, bundle: Path, graphs: tuple[Variant, ...]
):
    full, shallow = quantise_unet(setting, graphs, "w8", "cpu")
    files = bundle / graphs[2].file, bundle / graphs[3].file
    pictures = Pictures(bundle / "vae_decoder" / "model.onnx", 1.0)
    judge = variants._in_turns(setting, *files, "cpu", pictures)
    exact = judge(*files)
    assert exact.lowest_db > 80
    assert exact.pass_db > 80
    assert exact.conditioning == pytest.approx(1, abs=1e-4)
    both = judge(bundle / full.file, bundle / shallow.file)
    assert both.psnr_db == pytest.approx(shallow.verification["psnr_db"], abs=0.01)
    assert both.psnr_db != pytest.approx(judge(files[0], bundle / shallow.file).psnr_db, abs=0.01)


def test_more_layers_stay_float_where_only_the_shallow_graph_is_below_the_floor(
    setting: Setting, graphs: tuple[Variant, ...], monkeypatch: pytest.MonkeyPatch
):
    """The full one is said to be good at once, the two in turns when three layers of the full one are left float."""
    left: list[int] = []
    good = Verdict(40.0, 40.0, 40.0)

    def tried(graph: object, excluded: tuple[str, ...]) -> Verdict:
        left.append(len(excluded))
        return good if len(excluded) >= 3 else Verdict(39.0, 39.0, 39.0, 1.06)

    table = [Damage((f"layer{i:02}",), 1.0, 0.01) for i in range(100)]
    monkeypatch.setattr(variants, "activation_ranges", lambda *rest: {})
    monkeypatch.setattr(variants, "_sensitivity", lambda *rest: (table, [d.layers[0] for d in table]))
    monkeypatch.setattr(variants, "apply", lambda *rest: None)
    source = setting.bundle / graphs[2].file
    _, choice = variants._mixed(
        replace(setting, floor_db=39.5), source, [], [], "cpu", lambda graph: good, lambda text: None, tried
    )
    assert len(left) > 1
    assert len(choice.excluded) >= 3


@pytest.mark.parametrize(("precision", "target"), [("int8", "cpu"), ("w8", "cpu"), ("fp16", "cpu")])
def test_variants_of_device_graphs(
    setting: Setting, bundle: Path, graphs: tuple[Variant, ...], precision: str, target: str
):
    full, shallow = quantise_unet(setting, graphs, precision, target)
    assert (full.role, shallow.role) == ("full", "shallow")
    for variant in (full, shallow):
        assert (variant.component, variant.precision, variant.target) == ("unet", precision, target)
        session = ort.InferenceSession(bundle / variant.file, providers=["CPUExecutionProvider"])
        assert {v.name for v in session.get_inputs()} == set(variant.inputs)
        assert variant.verification["depth"] == 1
    assert set(full.inputs) == set(graphs[2].inputs)
    assert set(full.outputs) == set(graphs[2].outputs)
    assert full.verification["psnr_db"] >= 25
    assert abs(full.verification["conditioning"] - 1) <= 0.05
    if precision == "int8":
        assert full.verification["quantised_share"] >= 0.5
        assert len(full.verification["sensitivity"]) > 5


def test_graphs_of_the_same_layers_are_measured_once(
    setting: Setting, bundle: Path, graphs: tuple[Variant, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    asked: list[str] = []

    def counted(source: Path, ranges: object, feeds: object, target: str) -> list[Damage]:
        asked.append(source.name)
        return [Damage((layer.name,), 1.0, 0.1) for layer in layers(load_graph(source))]

    monkeypatch.setattr(variants, "damage", counted)
    full, shallow = bundle / graphs[2].file, bundle / graphs[3].file
    model = load_graph(full)
    for node in model.graph:
        node.name = f"other_{node.name}"
    renamed = full.with_name("renamed.onnx")
    ir.save(model, renamed)
    for path in (full, renamed, shallow, full):
        fresh = replace(setting, measured=Measured(tmp_path / "kept"))  # as an export that goes on
        table, names = variants._sensitivity(fresh, path, {}, [], "cpu")
        assert names == [layer.name for layer in layers(load_graph(path))]
        assert [d.layers for d in table] == [(name,) for name in names]
    renamed.unlink()
    assert asked == [full.name, shallow.name]


def test_variants_without_device_graphs_and_of_the_decoder(setting: Setting, bundle: Path):
    (whole,) = quantise_unet(setting, (), "int8", "cpu")
    assert (whole.role, whole.file) == ("whole", "unet/cpu_int8_whole.onnx")
    assert whole.inputs["sample"] == ["batch_size", 4, "height", "width"]
    decoder = quantise_decoder(setting, "int8", "cpu")
    assert decoder.verification["psnr_db"] >= 25
    with pytest.raises(VerificationError, match="wanted 90"):
        quantise_decoder(replace(setting, floor_db=90.0), "w8", "openvino")
    with pytest.raises(InputError, match="choose one of"):
        quantise_unet(setting, (), "int4", "cpu")


def test_few_passes_keep_the_step_before_each(setting: Setting):
    found = setting.calibrate[0]
    steps = [p.step for p in some_passes(found, 1)]
    assert steps == [2, 2, 3, 3]
    assert some_passes(found, 9) == found.passes


def test_prompts_are_many_and_different(bundle: Path):
    for prompts in (EMOJI, PEOPLE):
        assert len(set(prompts)) == len(prompts) == 40
    shapes = {feed["encoder_hidden_states"].shape for feed in encode(bundle, PEOPLE[:3], (64, 64), 2.0).values()}
    assert shapes == {(1, 32, 32)}  # cut to what the model reads


def test_a_verdict_needs_both_picture_and_hearing():
    assert Verdict(31, 28, 40, 1.04).meets(30)
    assert not Verdict(29, 28, 40, 1.0).meets(30)
    assert not Verdict(31, 28, 40, 0.94).meets(30)
