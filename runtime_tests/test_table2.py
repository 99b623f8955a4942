"""The tables' harness: prompts, what an observer learns, costs as published, metrics, and whole runs on tiny models."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import make_sd_folder
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from obclip.cloud.engine import execute
from obclip.cloud.model import load_model
from obclip.cloud.plan import plain_plan
from obclip.cloud.plans import load_planner
from obclip.core.errors import InputError
from obclip.core.pairs import load_pair
from obclip.edge import Bundle
from obclip.edge.steps import Saving
from obclip.export import export_bundle
from runtime_tests.benchmarks import server_time
from runtime_tests.benchmarks.server_fidelity import request_for
from runtime_tests.benchmarks.table2 import __main__ as harness
from runtime_tests.benchmarks.table2 import composed, he_diffusion
from runtime_tests.benchmarks.table2.composed import composed_cloud_seconds
from runtime_tests.benchmarks.table2.costs import cloud_plan
from runtime_tests.benchmarks.table2.devices import BundleDevice, TorchDevice
from runtime_tests.benchmarks.table2.methods import DEVICE, HE, HYBRID, OBLIVIOUS, SANITIZED, SERVER, Method, methods
from runtime_tests.benchmarks.table2.metrics import Scores, summary
from runtime_tests.benchmarks.table2.observer import Sanitizers, learns
from runtime_tests.benchmarks.table2.prompts import choose, emoji_sets, template_sets
from runtime_tests.benchmarks.table2.report import as_csv, table1, table2

pytestmark = pytest.mark.usefixtures("traces")

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
PAIR = """solver = "ddim"
steps = 4
handoff = 2
guidance = 3.0
height = 64
width = 64
latent_channels = 4
latent_downscale = 4
policy = "default"
[cloud]
source = "{cloud}"
[device]
source = "{device}"
"""


@pytest.mark.parametrize("n", [2, 6, 30])
def test_templates_make_closed_sets_that_differ_in_what_they_should(n: int):
    sets = template_sets(n, 10)
    assert len({s.prompts for s in sets}) == 10
    for one in sets:
        assert len(one.prompts) == n
        assert one.prompts == tuple(sorted(set(one.prompts)))
        assert set(one.differ) == {2: {"gender"}, 6: {"gender", "age"}, 30: {"gender", "age", "ethnicity"}}[n]


def test_captions_come_from_a_file_and_too_few_are_refused(tmp_path: Path):
    path = tmp_path / "captions.txt"
    path.write_text("a man on a horse\na dog\nan old woman with a hat\na woman in a kitchen\n")
    assert [s.prompts[0] for s in choose("captions", 2, 2, 0, path)] == ["a man on a horse", "a man in a kitchen"]
    with pytest.raises(InputError, match="2 captions with 2 candidates, 3 were wanted"):
        choose("captions", 2, 3, 0, path)
    with pytest.raises(InputError, match="--captions"):
        choose("captions", 2, 3, 0)


@pytest.mark.parametrize("n", [2, 6])
def test_what_is_sent_decides_what_is_learned(n: int):
    sanitizers = Sanitizers.of(emoji_sets(n, 3, 1), "emoji", ())
    clear = learns(Method("x", SERVER), sanitizers)
    assert (clear["attack_gender"], clear["attack_prompt"], clear["effective_n"]) == (1.0, 1.0, 1.0)
    assert learns(Method("x", HYBRID, 5), sanitizers) == learns(Method("x", HE), sanitizers) == clear
    closed = learns(Method("x", OBLIVIOUS, 5), sanitizers)
    assert closed["attack_prompt"] == closed["chance"]
    assert closed["effective_n"] == pytest.approx(1 / closed["chance"], rel=0.01)
    assert learns(Method("x", DEVICE), sanitizers) == closed
    assert closed["chance"] == pytest.approx(1 / n, abs=1e-4)
    weak, strong = (learns(Method(f"SANTEXT+, {e}", SANITIZED, epsilon=e), sanitizers) for e in (16.0, 1.0))
    assert closed["attack_prompt"] < strong["attack_prompt"] < weak["attack_prompt"] <= 1


# T MACs of the paper's Tables 2, 3 and 5: server alone, device alone, Hybrid SD at k = 10. Ours are up to 1 % lower:
# the cloud projects a text's keys and values once a request, not once a step
@pytest.mark.parametrize(
    ("pair", "server", "device", "hybrid", "rest"),
    [
        ("sd14", 18.53, 10.90, 7.41, 6.54),
        ("sd14-tiny", 18.53, 10.25, 7.41, 6.15),
        ("realistic-vision", 18.53, 11.20, 7.41, 6.72),
        ("sdxl", 159.35, 58.85, 63.74, 35.31),
    ],
)
def test_published_costs_are_reproduced(pair: str, server: float, device: float, hybrid: float, rest: float):
    cloud, small, layered = harness.shape_profiles(load_pair(pair))
    model = type("Shape", (), {"layered": layered, "guidance_distilled": False})
    setup = harness.Setup(load_pair(pair), model, None, None, template_sets(6, 1))

    def cost(method: Method) -> list[float]:
        found = harness.macs(setup, method, setup.sets[0].prompts, cloud, small)
        return [found["macs_cloud_published"] / 1e12, found["macs_device_published"] / 1e12]

    assert cost(Method("server", SERVER)) == pytest.approx([server, 0], rel=0.01)
    assert cost(Method("device", DEVICE)) == pytest.approx([0, device], rel=0.01)
    assert cost(Method("hybrid", HYBRID, 10)) == pytest.approx([hybrid, rest], rel=0.01)
    assert cost(Method("ours", OBLIVIOUS, 10)) == pytest.approx([6 * hybrid, rest], rel=0.01)
    assert cost(Method("vanilla", OBLIVIOUS)) == pytest.approx([6 * server, 0], rel=0.01)


def _scores(right: np.ndarray, features: np.ndarray) -> Scores:
    nothing = np.full(len(right), np.nan)
    return Scores(right, nothing, nothing, features, np.ones((len(right), 1)))


class _Nobody:
    name = "nobody"

    def frechet(self, features: np.ndarray) -> None:
        return None


def test_summaries_hold_their_means_and_the_same_pictures_are_no_distance_apart():
    sets, rng = emoji_sets(6, 8, 1), np.random.default_rng(0)
    images = [rng.integers(0, 256, (6, 8, 8, 3)).astype(np.uint8) for _ in sets]
    right, features = rng.integers(0, 3, 48) / 2, rng.standard_normal((48, 5))
    own = _scores(right, features)
    found = summary(_Nobody(), sets, own, own, images, images)
    assert found["distance"] == [0, 0, 0]
    assert found["psnr_db"] == [99, 99, 99]
    mean, low, high = found["attributes"]
    assert mean == pytest.approx(right.mean(), abs=1e-4)
    assert low < mean < high
    # candidates are sorted, and every set holds the same combinations in another order
    places = {}
    for s, some in zip(sets, right.reshape(8, 6), strict=True):
        for row, value in zip(s.shows, some, strict=True):
            places.setdefault((row["gender"], row["age"]), []).append(value)
    assert found["worst"][0] == pytest.approx(min(np.mean(v) for v in places.values()), abs=1e-4)
    other = _scores(right, features + 1)
    apart = np.linalg.norm(np.diff(features.reshape(8, 6, 5), axis=1), axis=-1).mean()
    far = summary(_Nobody(), sets, other, own, images, [255 - i for i in images])
    assert far["distance"][0] == pytest.approx(5**0.5 / apart, abs=1e-3)
    assert far["psnr_db"][0] < 20


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A cloud and a device of Stable Diffusion's classes that share text encoder and VAE, and a CLIP that judges."""
    work = tmp_path_factory.mktemp("table2")
    cloud, device = make_sd_folder(work / "cloud", vae="kl", seed=0), make_sd_folder(work / "device", vae="kl", seed=1)
    (work / "tiny.toml").write_text(PAIR.format(cloud=cloud, device=device))
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(cloud / "tokenizer")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 32,
                     "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
                     "pad_token_id": tokenizer.pad_token_id},
        vision_config={**sizes, "image_size": 32, "patch_size": 16}, projection_dim=8,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(work / "clip")
    sides = {"shortest_edge": 32}
    processor = CLIPImageProcessor(size=sides, crop_size={"height": 32, "width": 32})
    CLIPProcessor(processor, tokenizer).save_pretrained(work / "clip")
    return {"pair": work / "tiny.toml", "clip": work / "clip", "cloud": cloud, "device": device, "work": work}


def test_both_devices_finish_alike(tiny: dict[str, Path]):
    """ONNX Runtime one by one beside PyTorch in a batch; prompts in no order."""
    pair = load_pair(str(tiny["pair"]))
    export_bundle(tiny["device"], tiny["work"] / "bundle")
    by_onnx, by_torch = BundleDevice(Bundle.open(tiny["work"] / "bundle"), pair), TorchDevice(pair)
    prompts = ["a woman with a red hat", "a man cook", "a boy"]
    latents = np.random.default_rng(0).standard_normal((3, 4, 16, 16)).astype(np.float32)
    a, b = (d.complete(prompts, latents, 2, 5) for d in (by_onnx, by_torch))
    np.testing.assert_allclose(a, b, atol=2e-3)
    assert np.abs(by_onnx.decode(a).astype(int) - by_torch.decode(b)).max() <= 2
    a, b = (d.complete(prompts[:1], None, 0, 5) for d in (by_onnx, by_torch))
    np.testing.assert_allclose(a, b, atol=2e-3)
    with pytest.raises(InputError, match="--bundle"):
        by_torch.complete(prompts, latents, 2, 5, Saving(2))


def test_encrypted_updates_draw_what_plain_ones_draw(tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    """Without TenSEAL: the update's algebra, with arithmetic in the clear in place of ciphertexts."""
    asked: list[float] = []

    class InTheClear:
        def __init__(self, shape: tuple[int, ...]) -> None: ...

        def update(self, a: float, x: np.ndarray, plain: np.ndarray) -> np.ndarray:
            asked.append(a)
            return (a * x + plain).astype(np.float32)

        def close(self) -> None: ...

    monkeypatch.setattr(he_diffusion, "Encryption", InTheClear)
    for solver in ("ddim", "dpm++2m"):
        pair = replace(load_pair(str(tiny["pair"])), solver=solver, steps=6)
        model = load_model(pair)
        request = request_for(pair, ["a woman"], 6, 3)
        wanted = execute(plain_plan(request, 64), request, model, pair).latents
        found = he_diffusion.encrypted_latents(model, pair, "a woman", 3)
        np.testing.assert_allclose(found.astype(np.float32), wanted.astype(np.float32), atol=2e-3)
    assert len(asked) == 12


def test_composed_seconds_count_every_pass_once(monkeypatch: pytest.MonkeyPatch):
    """A thousand seconds a pass: of the cloud's plan as many as it has, of the device's as many as it runs."""
    pair, ran = load_pair("emoji"), []
    model = load_model(pair)

    def a_thousand_seconds(model, state, step, one, runs):
        ran.append(one)
        x, inputs, kept = state.inputs(step, one, 0, len(one.rows))
        return [1000.0], model.layered(x, inputs, one.part, kept, one.keep, one.pivots)

    monkeypatch.setattr(server_time, "_timed", a_thousand_seconds)
    planner = load_planner("emoji", pair.steps, model.layered.depth, 2)
    nobody: Any = None
    setup = harness.Setup(pair, model, planner, nobody, emoji_sets(6, 1, 1), rows=2)
    prompts, made = setup.sets[0].prompts, {}
    for method in (Method("hybrid", HYBRID, 5), Method("ours", OBLIVIOUS, 5, "ours"), Method("all", OBLIVIOUS, 5)):
        plan = cloud_plan(setup, method, prompts)
        assert plan is not None
        count = sum(len(step.passes) for step in plan.steps)
        assert max(len(one.rows) for step in plan.steps for one in step.passes) <= 2
        assert count <= composed_cloud_seconds(setup, method, prompts, 1, made) / 1000 < count + 1
    assert len(ran) == len(made) < 12  # kinds that two plans share are run once
    assert composed_cloud_seconds(setup, Method("device", DEVICE), prompts, 1, made) is None
    assert composed_cloud_seconds(setup, Method("shared", OBLIVIOUS, 5, "cache + reuse"), prompts, 1, made) is None

    monkeypatch.setattr(composed, "time_pass", lambda path, variant, *rest: {"full": 3.0, "shallow": 1.0}[variant.role])
    device = composed.DevicePasses(Bundle.open("emoji").folder, "cpu", 1)
    assert device.of(setup, Method("device", DEVICE))["device_s"] == 25 * 2 * 3
    assert device.of(setup, Method("ours", OBLIVIOUS, 10, "ours", True))["device_s"] == 13 * 3 + 11  # device.md's table
    assert device.of(setup, Method("server", SERVER)) == {"device_s": 0.0, "decode_s": device.decode_s}


def run(module: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"runtime_tests.benchmarks.{module}", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_script_for_real_weights_on_tiny_models_and_again_from_what_it_kept(tiny: dict[str, Path], tmp_path: Path):
    """Templates are too long for the tiny tokenizer, as a prompt may be: that is said, and the captions are run."""
    captions = tiny["work"] / "captions.txt"
    captions.write_text("a man with a hat\na woman cook\n")
    weights = tmp_path / "weights" / "tiny"
    weights.mkdir(parents=True)
    for side in ("cloud", "device"):
        (weights / side).symlink_to(tiny[side])
    words = ["--pairs", tiny["pair"], "--weights", tmp_path / "weights", "--clip", tiny["clip"], "--n", 2, "--sets", 2]
    words += ["--sweep", 2, "--captions", captions, "--out", tmp_path, "--runs"]
    ended = run("real_weights", *words, 1)
    assert ended.returncode == 3
    assert "a prompt takes" in ended.stderr
    assert "left out: tiny" in ended.stderr
    out = tmp_path / "tiny" / "captions"
    result = json.loads((out / "table2_tiny.json").read_text())
    rows = {r["key"]: r for r in result["rows"]}
    assert {m.key for m in methods([2], [4.0, 8.0, 16.0], with_crypto=False)} <= set(rows)
    assert all(r.get("attributes") for r in rows.values() if r["kind"] != "mpc")
    server, ours = rows["server only"], rows["ours, k=2"]
    assert (server["distance"][0], server["times_server"]) == (0, 1)
    assert rows["vanilla oblivious"]["times_server"] == pytest.approx(2, rel=0.01)
    assert rows["ObCLIP, k=2"]["attributes"] == rows["Hybrid SD, k=2"]["attributes"]
    assert (ours["attack_prompt"], rows["Hybrid SD, k=2"]["attack_prompt"]) == (0.5, 1.0)
    scored = [r["clip_score"] for r in rows.values() if "clip_score" in r]
    assert all(low <= value <= high for value, low, high in scored)
    assert ours["cloud_s"] > 0
    assert ours["device_s"] > 0
    assert rows["device only"]["bytes_up"] == 0
    assert [r["k"] for r in result["sweep"] if r["method"] == "ours"] == [1, 2, 3, 0, 4]
    lines = list(csv.DictReader((out / "table2_tiny.csv").open()))
    assert {line["key"] for line in lines} == set(rows)
    for name in (
        "table2_tiny_quality.svg",
        "table2_tiny_latency.png",
        "table2_tiny_sweep.png",
        "table2_tiny_sheet.png",
    ):
        assert (out / name).stat().st_size > 1000
    kept = {p: p.stat().st_mtime_ns for p in (out / "work").iterdir()}
    words = ["--pair", tiny["pair"], "--cloud", weights / "cloud", "--device", weights / "device", "--n", 2, "--k", 2]
    words += ["--sets", 2, "--prompts", "captions", "--captions", captions, "--clip", tiny["clip"], "--runs", 0]
    assert run("table2", *words, "--sweep", 2, "--out", out, "--work", out / "work").returncode == 0
    assert {p: p.stat().st_mtime_ns for p in (out / "work").iterdir()} == kept
    again = {r["key"]: r for r in json.loads((out / "table2_tiny.json").read_text())["rows"]}
    assert again["ours, k=2"]["attributes"] == ours["attributes"]


def test_the_devices_seconds_are_added_to_an_earlier_runs_of_the_cloud(tmp_path: Path):
    earlier = RESULTS / "table2_realistic-vision.json"
    words = ["--macs-only", "--n", 2, "--k", 10, "--runs", 1, "--cloud-from", earlier, "--out", tmp_path]
    device = ["--bundle", Bundle.open("emoji").folder, "--provider", "cpu"]
    done = run("table2", "--pair", "realistic-vision", *words, *device)
    assert done.returncode == 0, done.stderr
    found, before = (json.loads(path.read_text()) for path in (tmp_path / "table2_realistic-vision.json", earlier))
    seconds = {(r["n"], r["key"]): r.get("cloud_s") for r in before["rows"]}
    assert [r["cloud_s"] for r in found["rows"]] == [seconds[r["n"], r["key"]] for r in found["rows"]]
    assert found["settings"]["cloud_s"]["of an earlier run on"]["cpu"] == before["machine"]["cpu"]
    assert found["settings"]["dtype"] == before["settings"]["dtype"]
    hybrid = next(r for r in found["rows"] if r["key"] == "Hybrid SD, k=10")
    assert hybrid["device_s"] > 0
    other = run("table2", "--pair", "sdxl", *words)
    assert other.returncode != 0
    assert "is of realistic-vision, this of sdxl" in other.stderr


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"steps": 24}, "other steps"), ({"seed": 9, "guidance": 1.0}, "other guidance, seed"), (None, "no seconds")],
)
def test_seconds_of_another_setting_are_not_added_to(tmp_path: Path, settings: dict[str, Any] | None, said: str):
    """None: the earlier run timed nothing, and so names no dtype."""
    earlier = json.loads((RESULTS / "table2_realistic-vision.json").read_text())
    earlier["settings"] |= settings or {}
    if settings is None:
        del earlier["settings"]["dtype"]
    path = tmp_path / "earlier.json"
    path.write_text(json.dumps(earlier))
    asked = Namespace(cloud_from=path, seconds=None)
    ours = json.loads((RESULTS / "table2_realistic-vision.json").read_text())["settings"]
    with pytest.raises(SystemExit, match=said):
        harness.earlier_seconds(asked, load_pair("realistic-vision"), {"settings": ours})


def test_weights_that_are_missing_are_said(tmp_path: Path):
    ended = run("real_weights", "--weights", tmp_path, "--pairs", "sd14", "sdxl", "--out", tmp_path / "out")
    assert ended.returncode == 3
    assert "sd14: no weights in" in ended.stderr
    assert ended.stderr.strip().endswith("left out: sd14, sdxl")


def test_tables_have_a_line_for_every_row():
    rows = [
        {
            "key": "server only",
            "kind": "server",
            "n": 2,
            "reads": "all",
            "attributes": [0.9, 0.8, 0.95],
            "cloud_s": 2.0,
        },
        {"key": "ours, k=5", "kind": "oblivious", "n": 2, "reads": "2", "cloud_s": 1.0, "bytes_up": 391},
        {"key": "ours, k=5", "kind": "oblivious", "n": 6, "reads": "6"},
    ]
    assert table2(rows, 2).count("\n") == 3
    assert "0.900 (0.800–0.950)" in table2(rows, 2)
    assert "391 B" in table2(rows, 2)
    assert "| 0.5 |" in table1(rows, 2)
    assert b"attributes,attributes_low,attributes_high" in as_csv(rows).splitlines()[0]
