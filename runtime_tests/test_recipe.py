"""The training recipe, run as a user runs it, on drawings the test makes and shapes small enough for seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data import FOLDER, needs_emoji
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from PIL import Image

from obclip.core.pairs import load_pair, resolve_source
from obclip.export.recipe.captions import caption_variants, say_adult
from obclip.export.recipe.data import load_drawings
from obclip.export.recipe.tokenizer import build_tokenizer
from obclip.export.recipe.vae import round_trip

CONFIG = """
seed = 1
px = 64
[vae]
channels = 8
batch = 4
steps = {vae}
lr = 1e-3
latent_noise = 0.05
moments = 0.02
[text]
vocab = 600
tokens = 32
width = 32
layers = 1
heads = 2
[unet]
channels = [32, 32, 32]
attention = [false, true, false]
layers = 2
heads = 2
batch = 4
steps = 3
lr = 1e-3
decay = 0.3
ema = 0.9
no_caption = 0.1
[small]
channels = [32, 32]
attention = [false, true]
layers = 1
batch = 4
steps = 3
lr = 1e-3
decay = 0.3
ema = 0.9
no_caption = 0.1
feature = 0.5
[sampling]
rare = ["older", "child"]
rare_share = 0.3
"""


@pytest.fixture(scope="module")
def drawings_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawings")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(18):
        age = ("adult", "older", "child")[i % 3]
        noun = {"adult": "woman", "older": "older woman", "child": "girl"}[age]
        article = "an" if age == "older" else "a"
        caption = f"noto style emoji of {article} {noun} with dark skin tone"
        rows.append(
            {"style": "noto", "age": age, "split": "train" if i < 12 else "test_iid", "tile": i}
            | {"caption": caption, "captions": [f"{article} {noun} with dark skin, noto style"]}
        )
    (folder / "person.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    sheet = rng.integers(0, 255, (128, 36 * 128, 3), dtype=np.uint8)
    Image.fromarray(sheet).save(folder / "person128_noto.webp", lossless=True)
    return folder


def run_recipe(data: Path, out: Path, config: Path, *stages: str, init: Path | None = None) -> None:
    command = [sys.executable, "-m", "obclip.export.recipe", "--device", "cpu", "--data", str(data), "--out", str(out)]
    command += ["--config", str(config), *(["--stages", *stages] if stages else [])]
    command += ["--init", str(init)] if init else []
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_recipe_resumes_and_writes_two_pipelines_that_share_a_latent_space(drawings_folder: Path, tmp_path: Path):
    out, config = tmp_path / "run", tmp_path / "config.toml"
    config.write_text(CONFIG.format(vae=2))
    run_recipe(drawings_folder, out, config, "vae")
    config.write_text(CONFIG.format(vae=4))
    run_recipe(drawings_folder, out, config)

    assert torch.load(out / "vae.pt", weights_only=True)["step"] == 4
    load = {"torch_dtype": torch.float32}
    large, small = (StableDiffusionPipeline.from_pretrained(out / name, **load) for name in ("large", "device"))
    assert small.unet.num_parameters() < large.unet.num_parameters()
    for part in ("vae", "text_encoder"):
        a, b = getattr(large, part).state_dict(), getattr(small, part).state_dict()
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)
    image = small("noto style emoji of a girl", num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 64, 64, 3)
    assert np.isfinite(image).all()

    again = tmp_path / "again"
    config.write_text(CONFIG.format(vae=4).replace("seed = ", "seed = 1"))
    run_recipe(drawings_folder, again, config, "small", "save", init=out / "large")
    distilled = StableDiffusionPipeline.from_pretrained(again / "device", **load).unet.state_dict()
    assert any(not torch.equal(v, distilled[k]) for k, v in small.unet.state_dict().items())
    kept = StableDiffusionPipeline.from_pretrained(again / "large", **load).unet.state_dict()
    assert all(torch.equal(v, kept[k]) for k, v in large.unet.state_dict().items())


def test_drawings_are_area_averages_of_their_tiles(drawings_folder: Path):
    images = load_drawings(drawings_folder, 64).images
    sheet = np.asarray(Image.open(drawings_folder / "person128_noto.webp").convert("RGB")).astype(float)
    expected = sheet[10:12, 3 * 128 + 20 : 3 * 128 + 22].mean(axis=(0, 1))
    assert np.abs(images[3, 5, 10] - expected).max() <= 0.5


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("noto style emoji of a woman cook", "noto style emoji of an adult woman cook"),
        ("a person in bed", "an adult person in bed"),
        ("blob style emoji of Santa Claus", "blob style emoji of Santa Claus"),
    ],
)
def test_say_adult(caption: str, expected: str):
    assert say_adult(caption) == expected


def test_synonyms_appear_beside_the_words_of_the_policy():
    row = {
        "age": "older",
        "caption": "noto style emoji of an older man",
        "captions": ["a noto portrait of an elderly male"],
    }
    variants = caption_variants(row)
    assert "a noto portrait of an older man" in variants
    assert "a noto portrait of an elderly male" in variants


def test_tokenizer_reads_any_text(tmp_path: Path):
    tokenizer = build_tokenizer(["noto style emoji of a woman"] * 3, 600, 64, tmp_path)
    text = "naïve 漢字 🙂 woman's 42!"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).replace(" ", "") == text.replace(
        " ", ""
    )
    assert tokenizer.tokenize("woman") == ["woman</w>"]


def test_the_shipped_weights_fit_in_fifty_megabytes():
    pair = load_pair("emoji")
    folders = (resolve_source(pair.cloud, "cloud"), resolve_source(pair.device, "edge"))
    total = sum(p.stat().st_size for f in folders for p in f.rglob("*") if p.suffix in (".safetensors", ".onnx"))
    assert 10_000_000 < total <= 50_000_000


@needs_emoji
def test_the_shipped_vae_keeps_held_out_drawings():
    folder = resolve_source(load_pair("emoji").cloud, "cloud") / "vae"
    vae = AutoencoderTiny.from_pretrained(folder, torch_dtype=torch.float32).eval()
    held = load_drawings(FOLDER / "emoji", 64).split("test_iid", "test_triple").images[::8]
    psnr, _ = round_trip(vae, torch.from_numpy(held), torch.device("cpu"))
    assert 27 < psnr < 60
