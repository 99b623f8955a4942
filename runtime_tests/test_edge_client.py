"""The client against clouds that are slow, absent, wrong or hostile."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace

import httpx
import numpy as np
import pytest

from obclip.core.errors import (
    CloudError,
    CloudMismatchError,
    CloudResponseError,
    CloudUnreachableError,
    InputError,
    PrivacyError,
)
from obclip.core.pairs import load_pair
from obclip.core.problems import KINDS, Problem
from obclip.core.schedule import Schedule, build_schedule
from obclip.core.schedule_config import ScheduleConfig
from obclip.core.wire import Capabilities, Request, Response
from obclip.edge import Client

PAIR = load_pair("emoji")
CONFIG = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction",
    "timestep_spacing": "trailing", "num_train_timesteps": 1000,
}  # fmt: skip
SCHEDULE = build_schedule(ScheduleConfig.from_dict(CONFIG), "dpm++2m", 6)
REQUEST = Request(
    pair=PAIR.digest, candidates=("a man", "a woman"), negative_prompt="", seed=5, height=64, width=64, steps=6,
    handoff=2, guidance=3.5, solver="dpm++2m",
)  # fmt: skip
OFFER = Capabilities(
    protocol=1, version="0", pair_name="emoji", pair=PAIR.digest, model="b" * 64, solvers=("ddim", "dpm++2m"),
    schedule_config=CONFIG, height=64, width=64, latent_channels=4, latent_downscale=4, max_candidates=8, max_steps=50,
    max_tokens=32, max_body_bytes=10**6,
)  # fmt: skip


def response(latents: np.ndarray | None = None, schedule: Schedule = SCHEDULE, step: int = 2) -> bytes:
    if latents is None:
        latents = np.ones((2, *PAIR.latent_shape), np.float16)
    return Response(latents, None, step, schedule.digest, "b" * 64).encode()


class Cloud(httpx.BaseTransport):
    """Answers, in turn; keeps every request's bytes as they would go over the wire."""

    def __init__(self, *answers: httpx.Response | Exception):
        self.answers, self.seen = list(answers), []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.seen.append((request.method, str(request.url), request.headers.raw, request.read()))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def client_of(cloud: Cloud, **settings) -> tuple[Client, list[float]]:
    naps: list[float] = []
    return Client("http://127.0.0.1:1", transport=cloud, sleep=naps.append, **settings), naps


def problem(slug: str, **headers: str) -> httpx.Response:
    document = Problem.of(slug, "details")
    return httpx.Response(document.status, content=document.encode(), headers=headers)


def test_a_busy_cloud_gets_the_same_bytes_again():
    busy = [problem("overloaded", **{"retry-after": "3"}), problem("draining"), httpx.ConnectError("refused")]
    cloud = Cloud(*busy, httpx.Response(200, content=response()))
    client, naps = client_of(cloud)
    answer = client.denoise(REQUEST, SCHEDULE, PAIR.latent_shape)
    assert answer.latents.shape == (2, 4, 16, 16)
    assert len(cloud.seen) == 4
    assert all(seen == cloud.seen[0] for seen in cloud.seen)
    assert naps == [3.0, 2.0, 4.0]


def test_a_cloud_that_goes_down_in_mid_answer_gets_the_same_bytes_once_it_is_back():
    gone = [httpx.RemoteProtocolError("closed"), *[httpx.ConnectError("refused")] * 3, httpx.ReadError("reset")]
    busy = [problem("out-of-memory"), problem("queue-timeout"), httpx.Response(500, content=b"<html>")]
    cloud = Cloud(*gone, *busy, httpx.Response(200, content=response()))
    client, naps = client_of(cloud, patience_s=120)
    client.denoise(REQUEST, SCHEDULE, PAIR.latent_shape)
    assert len(cloud.seen) == 9
    assert all(seen == cloud.seen[0] for seen in cloud.seen)
    assert naps == [1, 2, 4, 8, 8, 8, 8, 8]


def test_a_cloud_that_stays_away_is_given_up_after_the_patience():
    client, naps = client_of(Cloud(httpx.ReadError("reset"), *[httpx.ConnectError("refused")] * 50), patience_s=20)
    with pytest.raises(CloudUnreachableError, match="no cloud answers"):
        client.denoise(REQUEST, SCHEDULE, PAIR.latent_shape)
    assert sum(naps) == pytest.approx(20)


def test_a_cloud_that_was_there_is_waited_for_and_one_that_never_was_is_not():
    client, naps = client_of(Cloud(*[httpx.ConnectError("refused")] * 50), patience_s=20)
    with pytest.raises(CloudUnreachableError, match="is it running"):
        client.denoise(REQUEST, SCHEDULE, PAIR.latent_shape)
    assert sum(naps) <= 4
    cloud = Cloud(httpx.Response(200, content=OFFER.encode()), *[httpx.ConnectError("refused")] * 4)
    cloud.answers.append(httpx.Response(200, content=response()))
    client, naps = client_of(cloud, patience_s=60)
    client.capabilities()
    client.denoise(REQUEST, SCHEDULE, PAIR.latent_shape)
    assert naps == [1, 2, 4, 8]


@pytest.mark.parametrize("slug", ["internal", "not-finite", "service-timeout"])
def test_what_would_fail_again_is_not_sent_again(slug: str):
    cloud = Cloud(problem(slug))
    client, naps = client_of(cloud)
    with pytest.raises(CloudResponseError):
        client.denoise(REQUEST, SCHEDULE, PAIR.latent_shape)
    assert (len(cloud.seen), naps) == (1, [])


def test_patience_ends():
    client, naps = client_of(Cloud(*[problem("overloaded")] * 50), patience_s=10)
    with pytest.raises(CloudUnreachableError, match="busy"):
        client.denoise(REQUEST, SCHEDULE, PAIR.latent_shape)
    assert sum(naps) == pytest.approx(10)


def test_a_key_that_is_used_up_is_told_when_to_come_back():
    cloud = Cloud(*[problem("rate-limited", **{"retry-after": "45"})] * 2)
    client, naps = client_of(cloud, patience_s=20)
    with pytest.raises(CloudUnreachableError, match=r"this key .* in 45 s"):
        client.denoise(REQUEST, SCHEDULE, PAIR.latent_shape)
    assert naps == [20.0]
    assert cloud.seen[0] == cloud.seen[1]


@pytest.mark.parametrize("slug", KINDS)
def test_every_problem_has_an_error(slug: str):
    client, _ = client_of(Cloud(problem(slug)), patience_s=0)
    with pytest.raises(CloudError, match="details") as caught:
        client.denoise(REQUEST, SCHEDULE, PAIR.latent_shape)
    busy = ("overloaded", "rate-limited", "draining", "engine-dead", "queue-timeout", "body-timeout")
    failed = ("internal", "not-finite", "out-of-memory", "service-timeout")
    expected = dict.fromkeys(busy, CloudUnreachableError) | dict.fromkeys(failed, CloudResponseError)
    expected |= dict.fromkeys(("unauthorized", "forbidden"), CloudError)
    assert type(caught.value) is expected.get(slug, CloudMismatchError)


nan = np.ones((2, *PAIR.latent_shape), np.float16)
nan[0, 1, 2, 3] = np.nan
OTHER = build_schedule(ScheduleConfig.from_dict({**CONFIG, "timestep_spacing": "linspace"}), "dpm++2m", 6)
WRONG = {
    "nothing": b"",
    "garbage": b"\xff" * 500,
    "html": b"<html>hello</html>",
    "half": response()[: len(response()) // 2],
    "header only": response()[:300],
    "longer": response() + b"\0" * 100,
    "too few": response(np.ones((1, *PAIR.latent_shape), np.float16)),
    "too many": response(np.ones((3, *PAIR.latent_shape), np.float16)),
    "other size": response(np.ones((2, 4, 8, 8), np.float16)),
    "other type": response(np.ones((2, *PAIR.latent_shape), np.float32)),
    "one not finite": response(nan),
    "other step": response(step=3),
    "other schedule": response(schedule=OTHER),
    "huge header": (1 << 40).to_bytes(8, "little") + b"{}",
}


@pytest.mark.parametrize("name", WRONG)
def test_answers_that_are_not_whole_are_not_used(name: str):
    client, _ = client_of(Cloud(httpx.Response(200, content=WRONG[name])))
    with pytest.raises(CloudError) as caught:
        client.denoise(REQUEST, SCHEDULE, PAIR.latent_shape)
    assert caught.value.exit_code == 4
    assert len(str(caught.value)) > 20


def test_the_row_that_is_wrong_does_not_matter():
    """Whether the real candidate's latents are the bad ones must not show."""
    said = set()
    for row in (0, 1):
        latents = np.ones((2, *PAIR.latent_shape), np.float16)
        latents[row] = np.inf
        client, _ = client_of(Cloud(httpx.Response(200, content=response(latents))))
        with pytest.raises(CloudResponseError) as caught:
            client.denoise(REQUEST, SCHEDULE, PAIR.latent_shape)
        said.add(str(caught.value))
    assert len(said) == 1


def test_an_endless_answer_is_cut_off():
    def endless():
        while True:
            yield b"\0" * 65_536

    client, _ = client_of(Cloud(httpx.Response(200, content=endless())))
    with pytest.raises(CloudResponseError, match="over"):
        client.denoise(REQUEST, SCHEDULE, PAIR.latent_shape)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"pair": "0" * 64, "pair_name": "other"}, "other"),
        ({"solvers": ("ddim",)}, "dpm"),
        ({"schedule_config": {**CONFIG, "beta_end": 0.02}}, "noise schedules"),
        ({"schedule_config": {**CONFIG, "thresholding": True}}, "schedule"),
        ({"max_candidates": 1}, "2 candidates"),
        ({"max_steps": 5}, "steps"),
        ({"protocol": 2}, "protocol 2"),
    ],
)
def test_the_handshake_names_the_difference(change: dict, word: str):
    cloud = Cloud(httpx.Response(200, content=replace(OFFER, **change).encode()))
    client, _ = client_of(cloud)
    with pytest.raises(CloudMismatchError, match=word):
        client.check(PAIR, SCHEDULE, 2)


def test_the_handshake_sends_nothing_of_the_prompt():
    cloud = Cloud(httpx.Response(200, content=OFFER.encode()))
    client, _ = client_of(cloud)
    assert client.check(PAIR, SCHEDULE, 2) == OFFER
    ((method, url, _, body),) = cloud.seen
    assert (method, url, body) == ("GET", "http://127.0.0.1:1/v1/capabilities", b"")


def test_redirects_are_not_followed():
    cloud = Cloud(httpx.Response(307, headers={"location": "https://elsewhere.example/"}))
    client, _ = client_of(cloud)
    with pytest.raises(CloudResponseError, match="307"):
        client.denoise(REQUEST, SCHEDULE, PAIR.latent_shape)
    assert len(cloud.seen) == 1


@pytest.mark.parametrize("url", ["http://cloud.example", "http://192.168.0.2:8250", "http://127.0.0.1.example.com"])
def test_plain_http_stays_on_this_machine(url: str):
    with pytest.raises(PrivacyError, match="https"):
        Client(url)


@pytest.mark.parametrize("url", ["", "cloud", "ftp://127.0.0.1", "http://"])
def test_addresses_that_are_none(url: str):
    with pytest.raises(InputError, match="address"):
        Client(url)


def test_the_environments_proxies_are_not_used(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    client = Client(f"http://127.0.0.1:{port}", patience_s=0)
    with client, pytest.raises(CloudUnreachableError, match=f"no cloud answers at http://127.0.0.1:{port}"):
        client.capabilities()


def test_a_silent_cloud_times_out():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        client = Client(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.2)
        with client, pytest.raises(CloudUnreachableError, match="in time"):
            client.capabilities()


def test_the_token_goes_with_every_request():
    cloud = Cloud(httpx.Response(200, content=OFFER.encode()), httpx.Response(200, content=response()))
    client, _ = client_of(cloud, token="secret")
    client.check(PAIR, SCHEDULE, 2)
    client.denoise(REQUEST, SCHEDULE, PAIR.latent_shape)
    assert all((b"Authorization", b"Bearer secret") in headers for _, _, headers, _ in cloud.seen)


@pytest.mark.parametrize(
    ("url", "token", "hidden"),
    [
        ("http://user:hunter2@127.0.0.1:1", "t", "hunter2"),
        ("http://[::1", "t", "nothing"),
        ("http://127.0.0.1:1", "s\x00cret", "cret"),
        ("http://127.0.0.1:1", "sécret", "cret"),
    ],
)
def test_secrets_stay_out_of_errors(url: str, token: str, hidden: str):
    with pytest.raises(InputError) as caught:
        Client(url, token=token)
    assert hidden not in str(caught.value)


def test_a_token_from_a_file_may_end_its_line():
    cloud = Cloud(httpx.Response(200, content=OFFER.encode()))
    client, _ = client_of(cloud, token="secret\n")
    client.capabilities()
    assert (b"Authorization", b"Bearer secret") in cloud.seen[0][2]


def test_a_cloud_that_drips_its_answer_times_out_as_a_whole():
    class Drip(httpx.SyncByteStream):
        def __iter__(self):
            for _ in range(1000):
                threading.Event().wait(0.01)
                yield b"x"

    client, _ = client_of(Cloud(httpx.Response(200, stream=Drip())), timeout_s=0.05)
    with pytest.raises(CloudUnreachableError, match="in time"):
        client.capabilities()


def test_an_endless_nest_is_no_problem_document():
    assert Problem.decode(b"[" * 100_000, 502).from_elsewhere
