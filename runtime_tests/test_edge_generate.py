"""One private picture, from prompt to PNG, through a real cloud process."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from obclip.core.errors import CloudMismatchError, InputError, PrivacyError
from obclip.core.pairs import load_pair
from obclip.core.wire import Response
from obclip.edge import Bundle, Client, Options, candidate_set, generate, load_policy
from obclip.edge.complete import Guidance, denoise, first_latents
from obclip.edge.generate import finish
from obclip.edge.job import prepare
from obclip.edge.modes import REVEALS
from obclip.edge.readiness import ready
from obclip.edge.steps import Saving

PROMPT = "noto style emoji of an older woman with dark skin tone"


class Recorder(httpx.HTTPTransport):
    """The real transport; keeps what goes out."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[str, str, tuple, bytes]] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.sent.append((request.method, request.url.path, tuple(request.headers.raw), request.read()))
        return super().handle_request(request)


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path) -> Bundle:
    return Bundle.open(bundle_folder)


def test_the_picture_is_the_real_candidates_latents_finished_here(bundle: Bundle, cloud_url: str):
    with Client(cloud_url) as client:
        result = generate(PROMPT, bundle=bundle, client=client, seed=3, steps=8, handoff=3)
    job = result.job
    place = job.candidates.prompts.index(PROMPT)
    guide = Guidance(bundle.encode(PROMPT), bundle.encode(""), load_pair("emoji").guidance)
    x = result.response.latents[place].astype(np.float32)
    for _, latents, _ in denoise(bundle, job.schedule, guide, x, 3, 3, None, job.saving):
        x = latents
    np.testing.assert_array_equal(result.image, bundle.decode(x))
    others = result.response.latents.astype(np.float32)
    assert len({row.tobytes() for row in others}) == len(job.candidates.prompts) == 30
    assert set(result.timings_s) == {"prepare", "handshake", "cloud", "device_steps", "decode"}


def test_marks_go_out_and_the_device_keeps_the_real_word(bundle: Bundle):
    job = prepare("[[Bob|Alice]] as a cook", bundle)
    assert job.request.candidates == ("alice as a cook", "bob as a cook")
    assert job.prompt == "Bob as a cook"
    protected = prepare("Bob as a cook", bundle, options=Options(protect=("Bob|Alice",)))
    assert (protected.request.candidates, protected.prompt) == (job.request.candidates, job.prompt)


def test_telling_words_are_warned_of_when_asked(bundle: Bundle):
    assert prepare("a man with a long beard", bundle).warnings == ()
    (warning,) = prepare("a man with a long beard", bundle, warn_below=1.5).warnings
    assert "of 2 candidates" in warning
    assert prepare("a man", bundle, warn_below=1.5).warnings == ()


def test_a_warning_comes_before_anything_is_sent_and_can_stop_it(bundle: Bundle, cloud_url: str):
    recorder = Recorder()

    def stop(note: str) -> None:
        raise KeyboardInterrupt(note)

    with Client(cloud_url, transport=recorder) as client, pytest.raises(KeyboardInterrupt, match="obclip audit"):
        generate("a man with a long beard", bundle=bundle, client=client, warn_below=1.5, warn=stop)
    assert recorder.sent == []


def test_the_same_seed_draws_the_same_picture(bundle: Bundle, cloud_url: str):
    with Client(cloud_url) as client:
        a, b, c = (generate("a woman", bundle=bundle, client=client, seed=s, steps=6, handoff=2) for s in (1, 1, 2))
        free = generate("a woman", bundle=bundle, client=client, steps=6, handoff=2)
    np.testing.assert_array_equal(a.image, b.image)
    assert (a.image != c.image).any()
    assert free.seed not in (1, 2)


def test_everything_that_goes_out_is_the_same_for_every_candidate(bundle: Bundle, cloud_url: str):
    """Not only the body: path, headers and the number of requests, and nothing after the latents are here."""
    prompts = candidate_set("a woman firefighter", load_policy("emoji")).prompts
    seen = set()
    for prompt in prompts:
        recorder = Recorder()
        with Client(cloud_url, transport=recorder) as client:
            generate(prompt, bundle=bundle, client=client, seed=3, steps=6, handoff=2)
        assert [(m, p) for m, p, _, _ in recorder.sent] == [("GET", "/v1/capabilities"), ("POST", "/v1/denoise")]
        seen.add(tuple(recorder.sent))
    assert len(prompts) > 1
    assert len(seen) == 1


def test_the_device_reads_the_users_own_words(bundle: Bundle, cloud_url: str):
    """`lady` goes out as `woman` and comes back as `lady`."""
    with Client(cloud_url) as client:
        lady, woman = (
            generate(p, bundle=bundle, client=client, seed=3, steps=6, handoff=2) for p in ("a lady", "a woman")
        )
        assert not client._http._transport._pool.connections  # closed with the answer, not when the picture is done
    assert lady.job.request.encode() == woman.job.request.encode()
    assert (lady.image != woman.image).any()


@pytest.mark.parametrize(
    ("prompt", "settings", "error", "word"),
    [
        ("", {}, InputError, "empty"),
        ("   ", {}, InputError, "empty"),
        ("a woman " + "cook " * 60, {}, InputError, "tokens"),
        ("a woman " + "x" * 2000, {}, InputError, "characters"),
        ("a house", {}, PrivacyError, "hidden"),
        ("a woman", {"negative_prompt": "old man"}, PrivacyError, "negative"),
        ("a woman", {"seed": 2**53}, InputError, "seed"),
        ("a woman", {"steps": 0}, InputError, "steps"),
        ("a woman", {"handoff": 26}, InputError, "handoff"),
        ("a woman", {"guidance": float("nan")}, InputError, "guidance"),
        ("a woman", {"solver": "heun"}, InputError, "heun"),
        ("a woman", {"pair": "sd14"}, CloudMismatchError, "bundle"),
        ("a woman", {"pair": "lcm-sdxl"}, CloudMismatchError, "bundle"),
        ("a woman", {"mode": "open"}, InputError, "oblivious, hybrid, server, device"),
        ("a woman", {"mode": "server", "handoff": 3}, InputError, "leave handoff out"),
    ],
)
def test_nothing_is_sent_for_what_the_device_refuses(bundle: Bundle, prompt: str, settings: dict, error, word: str):
    def unreachable(request: httpx.Request) -> httpx.Response:
        raise AssertionError("something was sent")

    client = Client("http://127.0.0.1:1", transport=httpx.MockTransport(unreachable))
    with client, pytest.raises(error, match=word):
        generate(prompt, bundle=bundle, client=client, **settings)


@pytest.mark.parametrize(("mode", "cloud_steps"), [("hybrid", 3), ("server", 8)])
def test_modes_that_hide_nothing_send_the_prompt_alone(bundle: Bundle, cloud_url: str, mode: str, cloud_steps: int):
    recorder = Recorder()
    handoff = {"handoff": 3} if mode == "hybrid" else {}
    with Client(cloud_url, transport=recorder) as client:
        result = generate(PROMPT, bundle=bundle, client=client, seed=3, steps=8, mode=mode, **handoff)
    sent = json.loads(recorder.sent[-1][3])
    assert (sent["candidates"], sent["handoff"], sent["steps"]) == ([PROMPT], cloud_steps, 8)
    guide = Guidance(bundle.encode(PROMPT), bundle.encode(""), load_pair("emoji").guidance)
    x = result.response.latents[0].astype(np.float32)
    for _, latents, _ in denoise(bundle, result.job.schedule, guide, x, cloud_steps, 3, None, result.job.saving):
        x = latents
    np.testing.assert_array_equal(result.image, bundle.decode(x))
    assert (result.metadata()["mode"], result.metadata()["handoff"]) == (mode, cloud_steps)


def test_the_device_alone_asks_nobody(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    def connect(*_: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr("socket.socket.connect", connect)
    result = generate(PROMPT, bundle=bundle, seed=3, steps=6, mode="device")
    guide = Guidance(bundle.encode(PROMPT), bundle.encode(""), load_pair("emoji").guidance)
    schedule = bundle.schedule("dpm++2m", 6)
    x = first_latents(schedule, 3, (4, 16, 16))
    for _, latents, _ in denoise(bundle, schedule, guide, x, 0, 3):
        x = latents
    np.testing.assert_array_equal(result.image, bundle.decode(x))
    assert (result.metadata()["handoff"], result.metadata()["cloud_model"]) == (0, None)
    with pytest.raises(InputError, match="client"):
        generate(PROMPT, bundle=bundle, seed=3)
    with pytest.raises(InputError, match="no cloud sends latents"):
        generate(PROMPT, bundle=bundle, seed=3, mode="device", save_latents=Path("x"))


def test_a_device_with_steps_of_its_own_goes_on_at_k_plus_the_shift(bundle: Bundle):
    """A cloud of 4 steps, 2 taken; the device's 12 steps from the 6th on, which is as far."""
    pair = replace(load_pair("emoji"), steps=4, handoff=2, device_steps=12, device_solver="ddim", timestep_shift=4)
    job = prepare(PROMPT, bundle, pair=pair, seed=1)
    assert (job.request.steps, job.request.handoff, job.start) == (4, 2, 6)
    assert (job.device_schedule.solver, job.device_schedule.steps) == ("ddim", 12)
    assert job.schedule.alphas[2] == pytest.approx(job.device_schedule.alphas[6], abs=0.02)
    x = np.random.default_rng(0).standard_normal((30, 4, 16, 16)).astype(np.float16)
    answer = Response(x, None, step=2, schedule=job.schedule.digest, model="m" * 64)
    done: list[int] = []
    image = finish(job, bundle, answer, ready(job, bundle), {}, lambda phase, n, of: done.append(n))
    assert done == [1, 2, 3, 4, 5, 6]
    guide = Guidance(bundle.encode(PROMPT), bundle.encode(""), pair.guidance)
    latents = x[job.candidates.index].astype(np.float32)
    for _, after, _ in denoise(bundle, bundle.schedule("ddim", 12), guide, latents, 6, 1, None, job.saving):
        latents = after
    np.testing.assert_array_equal(image, bundle.decode(latents))
    together = replace(load_pair("emoji"), steps=12, handoff=2, timestep_shift=4)
    assert prepare(PROMPT, bundle, pair=together, handoff=8, seed=1).start == 12
    with pytest.raises(InputError, match="the device has 12 steps"):
        prepare(PROMPT, bundle, pair=together, handoff=9, seed=1)


@pytest.mark.parametrize(
    ("steps", "handoff", "start"),
    [(8, None, 12), (4, None, 12), (16, None, 12), (8, 2, 6), (8, 6, 18), (16, 4, 6), (8, 8, 25), (1, None, 25)],
)
def test_a_device_with_steps_of_its_own_goes_on_where_the_cloud_ends(
    bundle: Bundle, steps: int, handoff: int | None, start: int
):
    """LCM-SDXL's numbers, 4 of 8 and 12 of 25, and other T and k: the noise that the cloud leaves is what the step
    wants, within one step of the device's."""
    own = replace(load_pair("emoji"), steps=8, handoff=4, device_steps=25, device_solver="ddim", timestep_shift=8)
    job = prepare(PROMPT, bundle, pair=own, steps=steps, handoff=handoff, seed=1)
    assert job.start == start
    if start < 25:
        left, around = job.schedule.timesteps[job.request.handoff], job.device_schedule.timesteps
        assert around[start - 1] >= left >= around[min(start + 1, 24)]
    else:
        assert job.steps_here == 0


@pytest.mark.parametrize(("steps", "handoff"), [(1, 1), (5, 2), (6, 2), (25, 10), (50, 20)])
def test_the_pairs_share_of_the_steps_runs_in_the_cloud_however_many_there_are(
    bundle: Bundle, steps: int, handoff: int
):
    request = prepare(PROMPT, bundle, steps=steps).request
    assert (request.steps, request.handoff) == (steps, handoff)


@pytest.mark.parametrize("settings", [{"handoff": 25}, {"mode": "server", "saving": Saving(1, 0.5)}])
def test_a_device_without_steps_leaves_none_of_them_out(bundle: Bundle, settings: dict):
    assert prepare(PROMPT, bundle, **settings).device_steps == "no steps on this device"


def test_a_public_prompt_goes_out_when_allowed(bundle: Bundle):
    job = prepare("a house", bundle, allow_public=True)
    assert job.request.candidates == ("a house",)


@pytest.mark.parametrize(
    ("prompt", "settings", "told"),
    [
        (PROMPT, {}, "oblivious"),
        (PROMPT, {"allow_public": True}, "oblivious"),
        ("a house", {"allow_public": True}, "hybrid"),
        ("a house", {"allow_public": True, "handoff": 25}, "server"),
        (PROMPT, {"handoff": 25}, "oblivious"),
        (PROMPT, {"mode": "hybrid"}, "hybrid"),
        (PROMPT, {"mode": "hybrid", "handoff": 25}, "server"),
        (PROMPT, {"mode": "server"}, "server"),
        (PROMPT, {"mode": "device"}, "device"),
    ],
)
def test_what_the_cloud_learns_is_said_and_warned_of_where_it_reads_the_prompt(
    bundle: Bundle, prompt: str, settings: dict, told: str
):
    job = prepare(prompt, bundle, **settings)
    assert job.reveals == REVEALS[told]
    assert [REVEALS[told] in w for w in job.warnings] == ([True] if told in ("hybrid", "server") else [])


def test_another_pair_on_the_cloud_is_found_before_the_prompt_leaves(bundle: Bundle, cloud_url: str):
    recorder = Recorder()
    with Client(cloud_url, transport=recorder) as client, pytest.raises(CloudMismatchError, match="emoji"):
        generate(PROMPT, bundle=bundle, client=client, pair=replace(load_pair("emoji"), guidance=9.0))
    assert [p for _, p, _, _ in recorder.sent] == ["/v1/capabilities"]


def test_the_png_holds_the_prompt_only_when_asked(bundle: Bundle, cloud_url: str, tmp_path: Path):
    with Client(cloud_url) as client:
        result = generate(PROMPT, bundle=bundle, client=client, seed=3, steps=6, handoff=2)
    result.save(tmp_path / "a.png")
    result.save(tmp_path / "b.png", with_prompt=True)
    for name, asked in (("a.png", False), ("b.png", True)):
        with Image.open(tmp_path / name) as image:
            image.load()
            said = json.loads(image.text["obclip"])
        assert (said["seed"], said["handoff"], said["steps"], said["pair"]) == (3, 2, 6, "emoji")
        assert (said.get("prompt") == PROMPT) is asked
    for word in (b"older", b"woman", b"dark"):
        assert word not in (tmp_path / "a.png").read_bytes()


def test_a_whole_generate_loads_no_training_framework(bundle_folder: Path, cloud_url: str, tmp_path: Path):
    out = tmp_path / "a.png"
    words = ["generate", PROMPT, "--cloud", cloud_url, "--bundle", str(bundle_folder), "--out", str(out), "--json"]
    script = (
        "import sys\nimport obclip.edge\nfrom obclip.edge.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit as end:\n    code = end.code\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'optimum', 'onnx', 'obclip.cloud', 'obclip.export'}\n"
        "print(code, sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    report, modules = done.stdout.splitlines()
    assert modules == "0 []"
    assert json.loads(report)["candidates"] == 30
    with Image.open(out) as image:
        assert image.size == (64, 64)
