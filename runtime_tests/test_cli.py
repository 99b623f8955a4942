"""The command line: what it prints, what it returns, and what it leaves behind when something is wrong."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
from processes import stub_cloud
from test_edge_client import OFFER, WRONG, response

from obclip.core.manifest import Manifest
from obclip.core.pairs import load_pair
from obclip.core.problems import Problem
from obclip.core.schedule import build_schedule
from obclip.core.schedule_config import ScheduleConfig
from obclip.edge import Bundle
from obclip.edge.doctor import clashing

TOML = (
    (resources.files("obclip.core.pairs") / "emoji.toml")
    .read_text("utf8")
    .replace('[device]\nsource = "embedded:emoji"', '[device]\nsource = "some/device"')
)

pytestmark = pytest.mark.usefixtures("traces")


@pytest.fixture(scope="module")
def answers(bundle_folder: Path) -> dict[str, bytes]:
    """What a cloud that fits the bundle would say, and latents for `a woman` at 6 steps."""
    config = Bundle.open(bundle_folder).manifest.schedule_config
    schedule = build_schedule(ScheduleConfig.from_dict(config), "dpm++2m", 6)
    good = response(schedule=schedule)
    return {"offer": replace(OFFER, schedule_config=config).encode(), "good": good}


def generate(run, bundle: Path, url: str, out: Path, *more: str) -> tuple[int, str, str]:
    return run(
        "generate", "a woman", "--cloud", url, "--bundle", bundle, "--out", out, "--steps", "6", "--handoff", "2", *more
    )


def test_generate_prints_where_the_picture_is(run, bundle_folder: Path, answers: dict, tmp_path: Path):
    out = tmp_path / "new" / "a.png"
    paths = {"/v1/capabilities": (200, answers["offer"]), "/v1/denoise": (200, answers["good"])}
    with stub_cloud(paths) as url:
        code, said, _ = generate(run, bundle_folder, url, out, "--seed", "7")
        assert (code, f"seed: 7\nimage: {out}\n" in said) == (0, True)
        code, said, _ = generate(run, bundle_folder, url, out, "--seed", "7", "--json")
    report = json.loads(said)
    assert (code, report["image"], report["seed"], report["handoff"]) == (0, str(out), 7, 2)
    assert out.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("name", WRONG)
def test_a_cloud_that_answers_wrongly(run, bundle_folder: Path, answers: dict, tmp_path: Path, name: str):
    paths = {"/v1/capabilities": (200, answers["offer"]), "/v1/denoise": (200, WRONG[name])}
    with stub_cloud(paths) as url:
        code, said, error = generate(run, bundle_folder, url, tmp_path / "a.png")
    assert (code, said) == (4, "")
    assert error.startswith("obclip: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_cloud_that_is_not_there(run, bundle_folder: Path, tmp_path: Path):
    code, _, error = generate(run, bundle_folder, "http://127.0.0.1:9", tmp_path / "a.png")
    assert (code, "no cloud answers at http://127.0.0.1:9" in error) == (4, True)
    assert list(tmp_path.iterdir()) == []


def test_an_address_that_is_no_cloud(run, bundle_folder: Path, tmp_path: Path):
    with stub_cloud({"/v1/capabilities": (200, b"<html>")}) as url:
        code, _, error = generate(run, bundle_folder, url, tmp_path / "a.png")
    assert (code, "no ObCLIP cloud" in error) == (4, True)


def test_a_cloud_of_another_pair(run, bundle_folder: Path, answers: dict, tmp_path: Path):
    other = replace(OFFER, pair=load_pair("sd14").digest, pair_name="sd14").encode()
    with stub_cloud({"/v1/capabilities": (200, other)}) as url:
        code, _, error = generate(run, bundle_folder, url, tmp_path / "a.png")
    assert (code, "the pair sd14" in error) == (4, True)


BAD_WORDS = {
    "empty prompt": (["generate", ""], 2, "empty"),
    "over-long prompt": (["generate", "a woman " + "cook " * 80], 2, "tokens"),
    "unplaced word": (["generate", "a teenage dirtbag"], 6, ""),
    "nothing hidden": (["generate", "a house"], 6, "hidden"),
    "plain http": (["generate", "a woman", "--cloud", "http://cloud.example"], 6, "https"),
    "unknown provider": (["generate", "a woman", "--provider", "tpu"], 2, "choose one of cpu"),
    "unknown pair": (["generate", "a woman", "--pair", "nope"], 2, "nope"),
    "unknown policy": (["generate", "a woman", "--policy", "nope"], 2, "nope"),
    "no threads": (["generate", "a woman", "--threads", "0"], 2, "threads"),
    "seed": (["generate", "a woman", "--seed", "-1"], 2, "seed"),
    "no floor": (["export", "x", "y", "--picture-psnr", "openvino:33"], 2, "openvino=33,cpu=36"),
    "no number": (["export", "x", "y", "--picture-psnr", "nan"], 2, "openvino=33,cpu=36"),
    "two kinds of floor": (["export", "x", "y", "--picture-psnr", "33,cpu=36"], 2, "openvino=33,cpu=36"),
    "unknown option": (["generate", "a woman", "--sed", "1"], 2, "--sed"),
    "unknown command": (["paint"], 2, "paint"),
    "no prompt": (["generate"], 2, "prompt"),
    "wrong type": (["generate", "a woman", "--seed", "x"], 2, "--seed"),
}


@pytest.mark.parametrize("name", BAD_WORDS)
def test_bad_input(run, bundle_folder: Path, tmp_path: Path, name: str):
    words, wanted, part = BAD_WORDS[name]
    more = ["--bundle", bundle_folder, "--out", tmp_path / "new" / "a.png"] if words[0] == "generate" else []
    code, said, error = run(*words, *more)
    assert (code, said) == (wanted, "")
    assert part in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_errors_are_json_when_asked(run, tmp_path: Path):
    code, said, error = run("generate", "a woman", "--bundle", tmp_path / "none", "--json")
    assert (code, said) == (3, "")
    assert json.loads(error)["exit_code"] == 3
    assert json.loads(error)["type"] == "ModelMissingError"


def truncate(folder: Path) -> None:
    path = folder / "unet" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-100])


def flip(folder: Path) -> None:
    path = folder / "unet" / "model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (truncate, "truncated"),
        (flip, "digest"),
        (lambda f: (f / "vae_decoder" / "model.onnx").unlink(), "missing"),
        (lambda f: (f / "obclip.json").unlink(), "no whole bundle"),
        (lambda f: (f / "obclip.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "obclip.json").write_text('{"schema": 99}'), "schema is 99"),
    ],
)
def test_damaged_bundles(run, bundle_folder: Path, tmp_path: Path, damage, part: str):
    shutil.copytree(bundle_folder, tmp_path / "bundle")
    damage(tmp_path / "bundle")
    out = tmp_path / "out" / "a.png"
    code, said, error = run("generate", "a woman", "--bundle", tmp_path / "bundle", "--out", out)
    assert (code, said) == (1, "")
    assert part in error
    assert not out.parent.exists()


def test_a_place_that_cannot_be_written_is_found_before_any_work(
    run, bundle_folder: Path, small_folder: Path, tmp_path: Path
):
    (tmp_path / "file").write_text("")
    code, _, error = generate(run, bundle_folder, "http://127.0.0.1:9", tmp_path / "file" / "a.png")
    assert (code, "choose another place" in error) == (1, True)
    code, _, error = run("export", small_folder, tmp_path / "file" / "out")
    assert (code, "choose another place" in error) == (1, True)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_old_picture_outlives_a_failure(run, bundle_folder: Path, answers: dict, tmp_path: Path):
    out = tmp_path / "a.png"
    out.write_bytes(b"old")
    paths = {"/v1/capabilities": (200, answers["offer"]), "/v1/denoise": (200, WRONG["half"])}
    with stub_cloud(paths) as url:
        assert generate(run, bundle_folder, url, out)[0] == 4
    assert out.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_marks_are_noted_as_soon_as_they_leave(
    run, bundle_folder: Path, answers: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A picture that failed has shown the cloud its marks; a cloud that was never asked has seen none."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    def draw(prompt: str, url: str) -> str:
        words = ("--cloud", url, "--bundle", bundle_folder, "--out", tmp_path / "a.png")
        code, _, error = run("generate", prompt, "--steps", "6", "--handoff", "2", *words)
        assert code == 4
        return error

    paths = {"/v1/capabilities": (200, answers["offer"]), "/v1/denoise": (200, WRONG["half"])}
    with stub_cloud(paths | {"/v1/capabilities": (200, b"{}")}) as url:
        draw("[[Alice|Bob]] in a hat", url)
    with stub_cloud(paths) as url:
        assert "other alternatives" not in draw("[[Alice|Carol]] in a hat", url)
        assert "other alternatives" in draw("[[Alice|Dave]] in a hat", url)


def test_candidates_one_prompt_and_many(run, monkeypatch: pytest.MonkeyPatch):
    code, said, _ = run("candidates", "an old man", "--policy", "emoji", "--json")
    row = json.loads(said)
    assert code == 0
    assert row["candidates"][row["index"]] == "an older man"
    assert row["attributes"] == {"gender": "man", "age": "older"}
    monkeypatch.setattr("sys.stdin", io.StringIO("a woman\n\na man and a teenage dirtbag\n"))
    code, said, _ = run("candidates", "-", "--json")
    rows = [json.loads(line) for line in said.splitlines()]
    assert (code, len(rows)) == (0, 3)
    assert set(rows[0]) >= {"prompt", "candidates", "index", "attributes"}
    assert rows[1]["refused"]
    assert rows[2]["type"] == "PrivacyError"
    assert "candidates" not in rows[2]


def test_a_line_that_is_not_utf8_is_refused_alone(run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a woman\na \xff man\na man\n"), encoding="utf-8"))
    code, said, _ = run("candidates", "-", "--json")
    assert (code, [json.loads(line).get("type") for line in said.splitlines()]) == (0, [None, "InputError", None])
    assert run("generate", "a \udcff man", "--mode", "device")[0] == 2


def test_what_a_cloud_says_cannot_steer_the_terminal(run, tmp_path: Path):
    said = Problem.of("overloaded", "\x1b]0;owned\x07\x1b[2J\u009b31m full \u202e").encode()
    with stub_cloud({"/v1/capabilities": (422, said)}) as url:
        code, _, error = run("generate", "a woman", "--cloud", url, "--out", tmp_path / "a.png")
    assert (code, "full" in error) == (4, True)
    assert not [c for c in error if c != "\n" and not c.isprintable()]


def test_a_pair_file_without_a_bundle_says_what_to_do(run, tmp_path: Path):
    pair = tmp_path / "mine.toml"
    pair.write_text(TOML)
    code, _, error = run("generate", "a woman", "--pair", pair)
    assert (code, "--bundle" in error, "obclip export some/device" in error) == (3, True, True)
    pair.write_text(TOML.replace("some/device", "embedded:emoji"))
    code, _, error = run("generate", "a woman", "--pair", pair, "--cloud", "http://127.0.0.1:9")
    assert (code, "no cloud" in error) == (4, True)


def test_candidates_for_people_mark_the_real_one(run):
    code, said, _ = run("candidates", "a woman")
    assert code == 0
    assert [line for line in said.splitlines() if "*" in line and "a woman" in line]
    assert "hidden: gender (woman)" in said


def test_audit_and_candidates_say_what_generate_does(run, bundle_folder: Path):
    refused = "generate refuses this prompt, in which nothing is hidden; with --allow-public this is what leaves"
    for command in ("audit", "candidates"):
        assert refused in " ".join(run(command, "a red apple")[1].split())
        assert "2 prompts leave the device" in " ".join(run(command, "a woman")[1].split())
    words = ("generate", "a red apple", "--cloud", "http://127.0.0.1:1", "--bundle", bundle_folder)
    assert run(*words)[0] == 6
    assert run(*words, "--allow-public")[0] == 4


def test_audit_compares_requests(run):
    code, said, _ = run("audit", "a woman firefighter with dark skin tone", "--json")
    report = json.loads(said)
    assert (code, report["requests_equal"], report["candidates"]) == (0, True, 10)
    assert report["attributes_hidden"] == ["gender", "skin"]


def test_audit_says_which_words_give_the_hidden_away(run):
    code, said, _ = run("audit", "a man doing a trick on a skateboard", "--policy", "default")
    assert code == 0
    assert "'skateboard' speaks for man" in said
    assert "drop 'on a skateboard'" in said


def test_options_reach_the_candidates(run):
    said = json.loads(run("candidates", "Alice in a hat", "--protect", "Alice|Bob", "--json")[1])
    assert said["candidates"] == ["alice in a hat", "bob in a hat"]
    assert len(json.loads(run("candidates", "a woman", "--pad", "4", "--json")[1])["candidates"]) == 4
    code, _, error = run("candidates", "Emma in a hat")
    assert (code, "--allow" in error) == (6, True)
    assert run("candidates", "a cook in a hat", "--allow", "hat", "--hide", "gender", "--json")[0] == 0


def test_inspect_reads_bundles_and_pictures(run, bundle_folder: Path, answers: dict, tmp_path: Path):
    code, said, _ = run("inspect", bundle_folder, "--json")
    parts = {c["name"]: c for c in json.loads(said)["components"]}
    assert code == 0
    assert set(parts) == {"text_encoder", "unet", "vae_decoder", "vae_encoder"}
    assert parts["unet"]["psnr_db"] > 45
    assert run("inspect", bundle_folder)[0] == 0
    assert json.loads(run("inspect", "emoji", "--json")[1])["components"][0]["name"] == "text_encoder"
    code, _, error = run("inspect", "sd14")
    assert (code, "obclip export" in error) == (3, True)
    out = tmp_path / "a.png"
    paths = {"/v1/capabilities": (200, answers["offer"]), "/v1/denoise": (200, answers["good"])}
    with stub_cloud(paths) as url:
        generate(run, bundle_folder, url, out, "--seed", "7")
    code, said, _ = run("inspect", out, "--json")
    assert (code, json.loads(said)["seed"]) == (0, 7)
    (tmp_path / "b.png").write_bytes(b"no picture")
    assert run("inspect", tmp_path / "b.png")[0] == 2
    assert run("inspect", tmp_path / "c.png")[0] == 2


def test_a_missing_extra_is_named(run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import sys

    monkeypatch.delitem(sys.modules, "obclip.cloud.serve", raising=False)
    monkeypatch.delitem(sys.modules, "obclip.export", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [m for m in sys.modules if m.startswith(("obclip.cloud", "obclip.export"))]:
        monkeypatch.delitem(sys.modules, name)
    for words, extra in ((["serve"], "obclip[cloud]"), (["export", "a", str(tmp_path / "b")], "obclip[export]")):
        code, _, error = run(*words)
        assert (code, extra in error) == (3, True)


def test_doctor_knows_packages_that_overwrite_each_other():
    assert clashing(["numpy", "onnxruntime"]) == ["onnxruntime"]
    assert clashing(["onnxruntime", "onnxruntime-openvino"]) == ["onnxruntime", "onnxruntime-openvino"]


def test_version(run):
    from importlib.metadata import version

    assert run("--version") == (0, version("obclip") + "\n", "")


def test_candidates_are_shown_as_they_are_sent(run):
    code, said, _ = run("candidates", "a portrait of a woman [red] in a [/b] hat", "--policy", "default")
    assert (code, "a woman [red] in a [/b] hat" in said) == (0, True)


def test_a_picture_needs_a_name(run, tmp_path: Path):
    named = ["demo", "--out", str(tmp_path)], ["generate", "a woman", "--out", "/"], ["demo", "--out", "."]
    for words in (*named, ["demo", "--out", "/"]):
        code, _, error = run(*words)
        assert (code, "is a folder" in error) == (1, True)


@pytest.mark.parametrize(("prompt", "wanted"), [("a cook", 6), ("Mr Smith in a hat", 6), ("a woman" + " cook" * 80, 2)])
def test_a_demo_of_what_is_not_sent_shows_nothing_and_starts_no_cloud(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt: str, wanted: int
):
    def started(*_: object) -> None:
        raise AssertionError("a cloud was started")

    monkeypatch.setattr("obclip.edge.cli.pictures.local_cloud", started)
    code, said, _ = run("demo", prompt, "--out", tmp_path / "a.png")
    assert (code, said) == (wanted, "")


def test_an_export_that_was_not_verified_says_so(run, small_folder: Path, tmp_path: Path):
    out = tmp_path / "b"
    code, said, error = run("export", small_folder, out, "--no-verify", "--components", "text_encoder,unet,vae_decoder")
    assert (code, "verified" in error) == (0, False), error
    assert "not verified" in " ".join(said.split())
    manifest = Manifest.read(out)
    assert (manifest.conditioning, manifest.completion) == (None, None)
    assert all(not c.verification for c in manifest.components)
    assert all("psnr_db" not in v.verification for v in manifest.variants)
    assert run("inspect", out)[0] == 0
    assert Bundle.open(out).encode("a woman")["encoder_hidden_states"].shape == (1, 32, 32)


def test_export_never_replaces_its_source(run, small_folder: Path, tmp_path: Path):
    source = tmp_path / "source"
    shutil.copytree(small_folder, source)
    for out in (source, source / "bundle", tmp_path):
        code, _, error = run("export", source, out, "--force")
        assert (code, "another place" in error) == (2, True), error
    assert (source / "unet").is_dir()
