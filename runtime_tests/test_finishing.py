"""Finishing a picture again from what the cloud sent, previews on the way, and a finish that is interrupted."""

from __future__ import annotations

import gc
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from obclip.core.errors import InputError
from obclip.core.received import Received, differences
from obclip.edge import Bundle, Client, generate
from obclip.edge.generate import resume
from obclip.edge.image import read_metadata
from obclip.edge.modes import REVEALS
from obclip.edge.preview import preview, preview_to
from obclip.edge.providers.onnx_runtime import OnnxRuntimeSession

PROMPT = "noto style emoji of a woman cook"


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path) -> Bundle:
    return Bundle.open(bundle_folder)


@pytest.fixture(scope="module")
def saved(bundle: Bundle, cloud_url: str, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("latents") / "a.safetensors"
    with Client(cloud_url) as client:
        result = generate(PROMPT, bundle=bundle, client=client, seed=3, steps=8, handoff=3, save_latents=path)
    return path, result


def test_what_was_kept_gives_the_same_picture_again(bundle: Bundle, saved):
    path, result = saved
    again = resume(PROMPT, Received.load(path), bundle=bundle)
    np.testing.assert_array_equal(again.image, result.image)
    assert again.job.request == result.job.request
    assert "cloud" not in again.timings_s


def test_what_the_cloud_drew_whole_is_finished_again_too(bundle: Bundle, cloud_url: str, tmp_path: Path):
    path = tmp_path / "a.safetensors"
    with Client(cloud_url) as client:
        result = generate(
            PROMPT, bundle=bundle, client=client, seed=3, steps=6, save_latents=path, mode="server"
        )  # fmt: skip
    again = resume(PROMPT, Received.load(path), bundle=bundle, mode="server")
    np.testing.assert_array_equal(again.image, result.image)
    with pytest.raises(InputError, match="differs"):
        resume(PROMPT, Received.load(path), bundle=bundle, mode="hybrid", handoff=2)


def test_no_unet_is_left_in_memory_when_a_large_bundle_decodes(
    bundle_folder: Path, saved, monkeypatch: pytest.MonkeyPatch
):
    """Counted by the garbage collector, whoever holds them; a picture is finished, and then the next one."""
    path, result = saved
    lean, alive = Bundle.open(bundle_folder, lean=True), []
    mine = set(map(id, sessions()))
    decode = lean.decode

    def counted(latents: np.ndarray) -> np.ndarray:
        alive.append([s.input_names for s in sessions() if id(s) not in mine])
        return decode(latents)

    monkeypatch.setattr(lean, "decode", counted)
    for _ in range(2):
        again = resume(PROMPT, Received.load(path), bundle=lean)
        assert np.abs(again.image.astype(int) - result.image).max() <= 2
    assert alive == [[], []]


def sessions() -> list[OnnxRuntimeSession]:
    return [found for found in gc.get_objects() if type(found) is OnnxRuntimeSession]


def test_another_candidate_of_the_same_set_can_be_finished_from_the_same_file(bundle: Bundle, saved):
    path, result = saved
    other = resume(PROMPT.replace("woman", "man"), Received.load(path), bundle=bundle)
    assert other.job.request == result.job.request
    assert not np.array_equal(other.image, result.image)


def test_the_file_does_not_tell_which_candidate_was_meant(bundle: Bundle, saved, cloud_url: str, tmp_path: Path):
    path, _ = saved
    with Client(cloud_url) as client:
        generate(
            PROMPT.replace("woman", "man"), bundle=bundle, client=client, seed=3, steps=8, handoff=3,
            save_latents=tmp_path / "b",
        )  # fmt: skip
    one, other = Received.load(path), Received.load(tmp_path / "b")
    assert one.request.encode() == other.request.encode()
    assert one.response.encode() == other.response.encode()


def test_latents_of_another_request_are_refused_and_it_says_what_differs(bundle: Bundle, saved):
    received = Received.load(saved[0])
    with pytest.raises(InputError, match="candidates"):
        resume("noto style emoji of an old man", received, bundle=bundle)
    with pytest.raises(InputError, match=r"seed \(4, not 3\)"):
        resume(PROMPT, received, bundle=bundle, seed=4)
    with pytest.raises(InputError, match="negative_prompt"):
        resume(PROMPT, received, bundle=bundle, negative_prompt="an old man")
    with pytest.raises(InputError, match="another prompt"):
        resume("a house", received, bundle=bundle)
    with pytest.raises(InputError, match="mode device"):
        resume(PROMPT, received, bundle=bundle, mode="device")
    assert differences(received.request, replace(received.request, steps=9, guidance=1.0)) == [
        "steps (8, not 9)",
        f"guidance ({received.request.guidance!r}, not 1.0)",
    ]


@pytest.mark.parametrize(("first", "both"), [(["--allow-public"], []), ([], ["--mode", "hybrid"])])
def test_finishing_again_neither_asks_nor_warns_about_sending(
    run, bundle_folder: Path, cloud_url: str, tmp_path: Path, first: list[str], both: list[str]
):
    words = ["generate", "a house", "--bundle", bundle_folder, "--out", tmp_path / "a.png", "--json"]
    asked = ["--cloud", cloud_url, "--steps", "6", "--save-latents", tmp_path / "l", *first]
    code, said, warned = run(*words, *both, *asked)
    assert (code, json.loads(said)["reveals"]) == (0, REVEALS["hybrid"])
    assert REVEALS["hybrid"] in warned
    code, _, warned = run(*words, *both, "--from-latents", tmp_path / "l")
    assert (code, warned) == (0, "")


def test_what_is_finished_again_is_only_read_and_notes_no_marks(
    run, saved, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, _ = saved

    def noted(*_: object) -> None:
        raise AssertionError("nothing leaves, so there is nothing to note")

    def writable(asked: Path) -> None:
        assert asked != path, "the folder of what is read may be read-only"

    monkeypatch.setattr("obclip.edge.cli.pictures.remember_marks", noted)
    monkeypatch.setattr("obclip.edge.cli.pictures.check_writable", writable)
    words = ["generate", PROMPT, "--bundle", bundle_folder, "--out", tmp_path / "a.png"]
    code, _, error = run(*words, "--from-latents", path)
    assert (code, error) == (0, "")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("--out same.png --save-latents ./same.png", "--out and --save-latents are one file"),
        ("--out same.png --preview same.png", "--out and --preview are one file"),
        ("--out a.png --preview same.png --save-latents same.png", "--preview and --save-latents are one file"),
        ("--out same.png --from-latents same.png", "--out and --from-latents are one file"),
        ("--out a.jpg", "ends in .png"),
        ("--out a.png --preview b.webp", "ends in .png"),
        ("--out a", "ends in .png"),
    ],
)
def test_files_that_would_be_lost_or_misnamed_are_refused_before_anything_is_sent(
    run, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, part: str
):
    monkeypatch.chdir(tmp_path)
    code, _, error = run("generate", PROMPT, "--bundle", bundle_folder, "--cloud", "http://127.0.0.1:9", *words.split())
    assert (code, part in error) == (2, True), error
    assert list(tmp_path.iterdir()) == []


def test_inspect_shows_what_kept_latents_answer_and_none_of_the_prompts(run, saved, tmp_path: Path):
    path, _ = saved
    code, said, _ = run("inspect", path, "--json")
    shown = json.loads(said)
    assert (code, shown["pair"], shown["seed"], shown["candidates"]) == (0, "emoji", 3, 2)
    assert (shown["step"], shown["handoff"], shown["steps"]) == (3, 3, 8)
    code, said, _ = run("inspect", path)
    assert (code, "seed: 3\n" in said, "cook" in said) == (0, True, False)
    (tmp_path / "cut").write_bytes(path.read_bytes()[:-100])
    code, _, error = run("inspect", tmp_path / "cut")
    assert (code, "holds no latents" in error) == (2, True)


@pytest.mark.parametrize("damage", ["absent", "text", "cut", "no request", "not finite", "one row less"])
def test_a_file_that_holds_no_good_latents_is_refused(saved, tmp_path: Path, damage: str):
    path, bad = saved[0], tmp_path / "bad"
    body = path.read_bytes()
    tensors = load_file(path)
    request = Received.load(path).request.encode().decode()
    meta = {"protocol": "1", "step": "3", "schedule": "0" * 64, "model": "0" * 64, "request": request}
    if damage == "text":
        bad.write_text("latents")
    elif damage == "cut":
        bad.write_bytes(body[:-100])
    elif damage == "no request":
        save_file(tensors, bad)
    elif damage == "not finite":
        save_file({"latents": tensors["latents"] * np.float16(np.inf)}, bad, meta)
    elif damage == "one row less":
        save_file({"latents": tensors["latents"][:-1].copy()}, bad, meta)
    with pytest.raises(InputError, match="bad"):
        Received.load(bad)


def test_previews_are_close_to_what_the_decoder_draws():
    """On the embedded pair, whose map was fitted when it was exported, on latents of its own pictures."""
    bundle = Bundle.open("emoji")
    assert bundle.manifest.preview is not None
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((4, 4, 4)).repeat(4, axis=1).repeat(4, axis=2).astype(np.float32)
    drawn, shown = (p.astype(np.float64).reshape(16, 4, 16, 4, 3).mean(axis=(1, 3)) for p in (
        bundle.decode(latents), preview(bundle.manifest, latents)
    ))  # fmt: skip
    spread = ((drawn - drawn.mean(axis=(0, 1))) ** 2).mean()
    assert ((drawn - shown) ** 2).mean() < 0.5 * spread


def test_a_preview_is_written_at_the_steps_asked_for(bundle: Bundle, saved, tmp_path: Path):
    seen, path = [], tmp_path / "p.png"
    write = preview_to(path, bundle.manifest, 2, {"seed": 3})

    def watch(done: int, clean: np.ndarray) -> None:
        path.unlink(missing_ok=True)
        write(done, clean)
        if path.exists():
            seen.append(read_metadata(path)["step"])
            with Image.open(path) as image:
                assert image.size == (bundle.manifest.width, bundle.manifest.height)

    resume(PROMPT, Received.load(saved[0]), bundle=bundle, watch=watch)
    assert seen == [4, 6, 8]
    assert read_metadata(path) == {"step": 8, "preview": True, "seed": 3}


def test_a_preview_says_the_pair_and_the_seed_that_was_drawn(run, saved, bundle_folder: Path, tmp_path: Path):
    shown = tmp_path / "p.png"
    words = ["generate", PROMPT, "--bundle", bundle_folder, "--out", tmp_path / "a.png", "--preview", shown, "--json"]
    code, said, _ = run(*words, "--mode", "device", "--steps", "2")
    assert (code, read_metadata(shown)) == (
        0, {"pair": "emoji", "seed": json.loads(said)["seed"], "step": 2, "preview": True}
    )  # fmt: skip
    assert run(*words, "--from-latents", saved[0])[0] == 0
    assert read_metadata(shown)["seed"] == 3


def test_a_preview_of_no_steps_is_said_to_be_none(run, bundle_folder: Path, cloud_url: str, tmp_path: Path):
    words = ["generate", PROMPT, "--bundle", bundle_folder, "--out", tmp_path / "a.png", "--cloud", cloud_url]
    code, _, warned = run(*words, "--steps", "4", "--handoff", "4", "--preview", tmp_path / "p.png")
    assert (code, "no preview" in warned) == (0, True)
    assert not (tmp_path / "p.png").exists()


def test_previews_that_cannot_be_made_are_refused(bundle: Bundle, tmp_path: Path):
    with pytest.raises(InputError, match="1 or more"):
        preview_to(tmp_path / "p.png", bundle.manifest, 0)
    with pytest.raises(InputError, match="export it again"):
        preview_to(tmp_path / "p.png", replace(bundle.manifest, preview=None), 1)


def test_a_provider_that_leaves_nodes_to_another_is_named(saved, bundle_folder: Path, monkeypatch):
    """ONNX Runtime says itself which provider got a node; here it is made to say that one got away."""
    bundle = Bundle.open(bundle_folder)
    told = []
    monkeypatch.setattr(
        OnnxRuntimeSession, "nodes_per_provider", lambda self: {"CPUExecutionProvider": 3, "OtherProvider": 1}
    )
    resume(PROMPT, Received.load(saved[0]), bundle=bundle, warn=told.append)
    assert any("OtherProvider 1" in note for note in told)


HELD_AT_A_PREVIEW = """
import signal
from obclip.edge import preview
from obclip.edge.cli import main

def save_and_wait(*written):
    save_png(*written)
    signal.sigtimedwait([], 60)

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs the tests behind an "&"
save_png, preview.save_png = preview.save_png, save_and_wait
main()
"""


def test_an_interrupted_finish_leaves_nothing_but_the_preview(
    saved, bundle_folder: Path, tmp_path: Path, cloud_url: str
):
    out, shown, kept = tmp_path / "a.png", tmp_path / "p.png", tmp_path / "l"
    words = f"--cloud {cloud_url} --steps 10 --handoff 1 --seed 1 --bundle".split()
    paths = [str(bundle_folder), "--out", str(out), "--preview", str(shown), "--save-latents", str(kept)]
    command = [sys.executable, "-c", HELD_AT_A_PREVIEW, "generate", PROMPT, *words, *paths]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 60
    while not shown.exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.005)  # polling a condition, bounded above
    process.send_signal(signal.SIGINT)
    said, error = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, ""), error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["l", "p.png"]
    with Image.open(shown) as image:
        image.load()
    assert Received.load(kept).request.handoff == 1
