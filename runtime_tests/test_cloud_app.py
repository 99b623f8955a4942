"""The HTTP application: answers, refusals, faults; in process and over a real socket."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from processes import cloud_process

import obclip.cloud.engine as engine
from obclip.cloud import serve
from obclip.cloud.app import create_app
from obclip.cloud.limits import Limits
from obclip.cloud.model import CloudModel, load_model
from obclip.cloud.plan import plain_plan
from obclip.cloud.serve import ServeOptions, run_server
from obclip.core.errors import InputError, RunError
from obclip.core.pairs import load_pair
from obclip.core.wire import MEDIA_TYPE, Capabilities, Request, Response

PAIR = load_pair("emoji")
REQUEST = Request(
    pair=PAIR.digest, candidates=("a man", "a woman"), negative_prompt="", seed=5, height=64, width=64, steps=6,
    handoff=2, guidance=3.5, solver="dpm++2m",
)  # fmt: skip
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def model(large_folder: Path) -> CloudModel:
    return load_model(PAIR, "cpu", "float32", large_folder)


def call(app: Any, *requests: Callable[[httpx.AsyncClient], Any]) -> list[httpx.Response]:
    """Start the application, send the requests at once, stop it."""

    async def run() -> list[httpx.Response]:
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://cloud") as client:
                return list(await asyncio.gather(*(request(client) for request in requests)))

    return asyncio.run(run())


def post(body: bytes, **headers: str) -> Callable[[httpx.AsyncClient], Any]:
    return lambda client: client.post("/v1/denoise", content=body, headers={**JSON, **headers})


def get(path: str, **headers: str) -> Callable[[httpx.AsyncClient], Any]:
    return lambda client: client.get(path, headers=headers)


def test_one_answer_holds_all_candidates(model: CloudModel):
    (answer,) = call(create_app(model, PAIR), post(REQUEST.encode()))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert answer.headers["cache-control"] == "no-store"
    got = Response.decode(answer.content, REQUEST, PAIR.latent_shape)
    expected = engine.execute(plain_plan(REQUEST, 64), REQUEST, model, PAIR)
    np.testing.assert_array_equal(got.latents, expected.latents)


def test_capabilities_health_and_metrics(model: CloudModel):
    app = create_app(model, PAIR, version="9.9")
    health, ready, capabilities, metrics = call(
        app, get("/healthz"), get("/readyz"), get("/v1/capabilities"), get("/metrics")
    )
    assert (health.status_code, ready.status_code) == (200, 200)
    said = Capabilities.decode(capabilities.content)
    assert (said.pair, said.model, said.max_tokens, said.version) == (PAIR.digest, model.digest, 32, "9.9")
    assert "obclip_requests_waiting 0.0" in metrics.text


BIG = replace(REQUEST, candidates=tuple(f"p{i:03}" for i in range(65)))
REFUSALS = {
    "not json": (b"{", 422, "invalid-request"),
    "bad field": (REQUEST.encode().replace(b'"seed":5', b'"seed":-5'), 422, "invalid-request"),
    "other pair": (replace(REQUEST, pair="0" * 64).encode(), 409, "pair-mismatch"),
    "too many": (BIG.encode(), 422, "too-many-candidates"),
    "too long": (replace(REQUEST, candidates=("cook " * 60,)).encode(), 422, "prompt-too-long"),
    "other size": (replace(REQUEST, height=128).encode(), 422, "invalid-request"),
    "too many steps": (replace(REQUEST, steps=500).encode(), 422, "invalid-request"),
    "impossible solver": (replace(REQUEST, solver="lcm", steps=60).encode(), 422, "invalid-request"),
    "large body": (b" " * 400_000, 413, "body-too-large"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_are_problem_documents(model: CloudModel, name: str):
    body, status, slug = REFUSALS[name]
    (answer,) = call(create_app(model, PAIR), post(body))
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"].endswith("/" + slug)
    assert "cook" not in problem["detail"]


def test_other_addresses_methods_and_types(model: CloudModel):
    answers = call(
        create_app(model, PAIR),
        get("/v1/candidates/1"),
        get("/v1/denoise"),
        post(REQUEST.encode(), **{"content-type": "text/plain"}),
    )
    assert [a.status_code for a in answers] == [404, 405, 415]
    assert all(a.headers["content-type"] == "application/problem+json" for a in answers)


def test_a_range_header_does_not_get_a_part(model: CloudModel):
    (answer,) = call(create_app(model, PAIR), post(REQUEST.encode(), range="bytes=0-99"))
    assert answer.status_code == 200
    Response.decode(answer.content, REQUEST, PAIR.latent_shape)


def test_a_token_guards_everything_but_health(model: CloudModel):
    app = create_app(model, PAIR, token="secret")
    bearer = {"authorization": "Bearer secret"}
    answers = call(
        app,
        get("/healthz"),
        get("/metrics"),
        get("/v1/capabilities", authorization="Bearer wrong"),
        get("/v1/capabilities", **bearer),
        post(REQUEST.encode()),
        post(REQUEST.encode(), **bearer),
    )
    assert [a.status_code for a in answers] == [200, 401, 401, 200, 401, 200]


def test_overload_is_refused_with_a_time_to_retry(model: CloudModel):
    app = create_app(model, PAIR, Limits(max_waiting=2))
    answers = call(app, *[post(replace(REQUEST, handoff=6).encode())] * 5)
    codes = sorted(a.status_code for a in answers)
    assert codes == [200, 200, 429, 429, 429]
    assert all(a.headers["retry-after"] for a in answers if a.status_code == 429)


def test_a_failing_forward_fails_its_request_alone(model: CloudModel, monkeypatch: pytest.MonkeyPatch):
    app = create_app(model, PAIR)
    calls, first = [], model.unet.conv_in
    forward = first.forward

    def evil(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:  # the first is the warm-up
            raise RuntimeError("a woman")  # an error text that quotes a prompt
        return forward(*args, **kwargs)

    monkeypatch.setattr(first, "forward", evil)

    async def run() -> list[httpx.Response]:
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://cloud") as client:
                return [await post(REQUEST.encode())(client) for _ in range(2)]

    failed, following = asyncio.run(run())
    assert failed.status_code == 500
    assert "woman" not in failed.text
    assert following.status_code == 200


def test_logs_and_metrics_hold_no_prompt(model: CloudModel, caplog: pytest.LogCaptureFixture):
    caplog.set_level("DEBUG")
    app = create_app(model, PAIR)
    call(app, post(REQUEST.encode()), post(replace(REQUEST, candidates=("cook " * 60,)).encode()))
    text = caplog.text + app.state.service.metrics.render().decode()
    for word in ("woman", "cook"):
        assert word not in text
    assert "outcome=ok" in caplog.text
    assert "candidates=2 steps=2 rows=8" in caplog.text


def test_hosts_reachable_from_outside_want_a_token(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OBCLIP_TOKEN", raising=False)
    with pytest.raises(InputError, match="token"):
        run_server(ServeOptions(host="0.0.0.0"))
    monkeypatch.setenv("OBCLIP_TOKEN", " \n")
    with pytest.raises(InputError, match="token"):
        run_server(ServeOptions(host="0.0.0.0"))


def test_the_line_end_of_a_file_is_no_part_of_a_token(monkeypatch: pytest.MonkeyPatch):
    def built(_: ServeOptions, token: str | None) -> None:
        raise RunError(repr(token))

    monkeypatch.setattr(serve, "build_app", built)
    monkeypatch.setenv("OBCLIP_TOKEN", "secret\n")
    with pytest.raises(RunError, match="'secret'"):
        run_server(ServeOptions(port=0))


def test_a_taken_port_is_named_and_nothing_of_it_stays_open(large_folder: Path, monkeypatch: pytest.MonkeyPatch):
    made: list[socket.socket] = []

    class Noted(socket.socket):
        def __init__(self, *words: Any) -> None:
            super().__init__(*words)
            made.append(self)

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(socket, "socket", Noted)
        with pytest.raises(RunError, match="another port"):
            run_server(ServeOptions(port=taken.getsockname()[1], model=large_folder))
    assert [one.fileno() for one in made] == [-1]


def test_what_is_wrong_about_ports_and_seconds_is_said_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serve, "build_app", None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(InputError, match="the server's own port; choose another"):
        run_server(ServeOptions(port=port, metrics_port=port))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(RunError, match="another port"):
            run_server(ServeOptions(port=0, metrics_port=taken.getsockname()[1]))
    for drain_s in (-1.0, math.inf, math.nan):
        with pytest.raises(InputError, match=f"drain is {drain_s}; it must be"):
            run_server(ServeOptions(port=0, drain_s=drain_s))


def test_a_real_process_serves_and_drains(large_folder: Path, tmp_path: Path):
    with cloud_process(tmp_path, "--model", str(large_folder)) as (url, process):
        answer = httpx.post(url + "/v1/denoise", content=REQUEST.encode(), headers=JSON, timeout=60)
        assert Response.decode(answer.content, REQUEST, PAIR.latent_shape).step == 2
        assert httpx.get(url + "/v1/capabilities").json()["pair_name"] == "emoji"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        assert process.stdout is not None
        assert "listening on " + url in process.stdout.read()
    with pytest.raises(httpx.ConnectError):
        httpx.get(url + "/healthz")
    assert json.loads(REQUEST.encode())["candidates"] == ["a man", "a woman"]


@pytest.mark.parametrize("limits", [{"max_rows": 0}, {"max_rows": -1}, {"max_waiting": 0}, {"max_candidates": 0}])
def test_limits_that_would_serve_nobody_are_refused(limits: dict[str, int]):
    with pytest.raises(InputError, match="1 or more"):
        Limits(**limits)


def test_limits_under_which_a_wide_request_could_never_run_are_refused():
    with pytest.raises(InputError, match=r"max_held_rows is 63, less than .*: max_rows, 64"):
        Limits(max_rows=64, max_held_rows=63)
    assert Limits(max_rows=63, max_held_rows=63).max_rows == 63


def test_ports_that_are_none_are_refused(large_folder: Path):
    with pytest.raises(InputError, match="65535"):
        run_server(ServeOptions(port=99_999, model=large_folder))


def test_a_number_too_large_to_read_is_a_refusal(model: CloudModel):
    body = REQUEST.encode().replace(b'"guidance":3.5', b'"guidance":1' + b"0" * 400)
    (answer,) = call(create_app(model, PAIR), post(body))
    assert (answer.status_code, "guidance" in answer.json()["detail"]) == (422, True)
