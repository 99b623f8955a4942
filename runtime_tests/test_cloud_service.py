"""The service: order of checks, limits, going down, faults."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from asking import BODY, JSON, LIMIT_S, PAIR, REQUEST, ROWS, FakeEngine, Later, post, slug
from serving import Serving, serving, until

from obclip.cloud import errors
from obclip.cloud.app import create_app
from obclip.cloud.keys import add_key
from obclip.cloud.limits import Limits, Rate, RateLimiter
from obclip.cloud.model import CloudModel
from obclip.cloud.work import Event, Load
from obclip.core.schedule import build_schedule
from obclip.edge import Client


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def server(model: CloudModel, engine: FakeEngine) -> Iterator[Serving]:
    with serving(create_app(model, PAIR, Limits(body_timeout_s=0.3), engine=engine)) as running:
        yield running
        engine.answer()


# --- order of checks


def test_what_can_be_refused_early_is_refused_before_the_body_is_read(model: CloudModel, tmp_path: Path):
    """Each request has every later fault too; the first check that applies answers. Bodies that nobody may read."""
    engine = FakeEngine()
    key = add_key(tmp_path / "keys.json", "app", Rate(1, None))
    app = create_app(model, PAIR, keys=tmp_path / "keys.json", engine=engine)
    limit = app.state.service.limits.max_body_bytes

    async def ask(headers: dict[str, str]) -> str:
        read = False

        async def body() -> Any:
            nonlocal read
            read = True
            yield b"{"

        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://cloud") as client:
            request = client.build_request("POST", "/v1/denoise", content=body(), headers=headers)
            answer = await client.send(request)
        return slug(answer) + (" after reading" if read else "")

    async def run() -> list[str]:
        engine.load = Load(full=True)
        bearer = {"authorization": f"Bearer {key}"}
        large = {"content-length": str(limit + 1)}
        async with app.router.lifespan_context(app):
            said = [await ask({}), await ask({**bearer, **large}), await ask(bearer)]
            said.append(await ask({**bearer, **JSON}))
            engine.load = Load()
            said.append(await ask({**bearer, **JSON}))  # takes the minute's one request
            engine.load = Load(full=True)
            said.append(await ask({**bearer, **JSON}))
            app.state.service.drain()
            said.append(await ask({**bearer, **JSON}))
        return said

    said = asyncio.run(run())
    assert said == [
        "unauthorized", "body-too-large", "unsupported-media-type", "overloaded", "invalid-request after reading",
        "rate-limited", "draining",
    ]  # fmt: skip
    assert engine.jobs == []


@pytest.mark.parametrize(
    ("path", "headers", "expected"),
    [
        ("/v1/denoise?index=1", JSON, "invalid-request"),
        ("/v1/denoise", {"content-type": "application/jsonx"}, "unsupported-media-type"),
        ("/v1/denoise", {**JSON, "content-encoding": "gzip"}, "unsupported-media-type"),
        ("/v1/denoise/", JSON, "not-found"),
        ("/v1/denoise/0", JSON, "not-found"),
        ("/v1/candidates/0", JSON, "not-found"),
    ],
)
def test_there_is_one_way_to_ask(server: Serving, path: str, headers: dict[str, str], expected: str):
    answer = httpx.post(server.url + path, content=BODY, headers=headers)
    assert slug(answer) == expected


@pytest.mark.parametrize("header", ["bytes=0-99", "bytes=-10", "items=0-0"])
def test_ranges_are_ignored(server: Serving, engine: FakeEngine, header: str):
    def answered(**headers: str) -> httpx.Response:
        before = len(engine.futures)
        got: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: got.append(post(server.url, **headers)))
        thread.start()
        until(lambda: len(engine.futures) > before)
        engine.answer()
        thread.join(LIMIT_S)
        return got[0]

    whole, ranged = answered(), answered(range=header, **{"if-range": '"x"'})
    assert (ranged.status_code, ranged.content) == (200, whole.content)
    assert ranged.headers["accept-ranges"] == "none"


# --- rates and load


def test_rates_are_per_key_and_say_when_to_come_back(model: CloudModel, tmp_path: Path):
    now = [0.0]
    keys = tmp_path / "keys.json"
    one, other = add_key(keys, "one", Rate(None, 12)), add_key(keys, "other", Rate(2, None))
    app = create_app(model, PAIR, keys=keys, limiter=RateLimiter(lambda: now[0]))
    with serving(app) as server:
        assert post(server.url, authorization=f"Bearer {one}").status_code == 200
        refused = post(server.url, authorization=f"Bearer {one}")  # 8 of 12 rows are used, 8 more wanted
        assert (slug(refused), refused.headers["retry-after"]) == ("rate-limited", "20")
        now[0] = 19.0
        assert post(server.url, authorization=f"Bearer {one}").headers["retry-after"] == "1"
        assert [post(server.url, authorization=f"Bearer {other}").status_code for _ in range(3)] == [200, 200, 429]
        now[0] = 20.0
        assert post(server.url, authorization=f"Bearer {one}").status_code == 200


def test_rows_of_a_request_that_was_not_taken_are_given_back(model: CloudModel, tmp_path: Path):
    engine = FakeEngine()
    key = add_key(tmp_path / "keys.json", "app", Rate(None, ROWS))
    with serving(create_app(model, PAIR, keys=tmp_path / "keys.json", engine=engine)) as server:
        engine.error = errors.OverloadedError("3 requests are waiting", 6.2)
        for _ in range(3):
            refused = post(server.url, authorization=f"Bearer {key}")
            assert (slug(refused), refused.headers["retry-after"]) == ("overloaded", "7")


def test_a_request_that_a_full_queue_refuses_takes_nothing_of_the_keys_rate(model: CloudModel, tmp_path: Path):
    """Full before the body is read, or only when the engine is asked: the minute's one request is left."""
    engine = FakeEngine()
    key = add_key(tmp_path / "keys.json", "app", Rate(1, ROWS))
    with serving(create_app(model, PAIR, keys=tmp_path / "keys.json", engine=engine)) as server:

        def ask() -> str:
            return slug(post(server.url, authorization=f"Bearer {key}"))

        engine.load = Load(full=True)
        early = [ask() for _ in range(3)]
        engine.load, engine.error = Load(), errors.OverloadedError("3 requests are waiting", 6.2)
        late = [ask() for _ in range(3)]
        engine.error = errors.FailedError("more rows than a batch has")
        unfit = [ask() for _ in range(2)]
    assert (early, late) == (["overloaded"] * 3, ["overloaded"] * 3)
    assert unfit == ["internal", "rate-limited"]  # its own fault: one a minute


def test_metrics_need_a_key_of_their_own(model: CloudModel, tmp_path: Path):
    keys = tmp_path / "keys.json"
    app, reader = add_key(keys, "app"), add_key(keys, "prometheus", metrics=True)
    with serving(create_app(model, PAIR, keys=keys, engine=FakeEngine())) as server:

        def status(path: str, key: str) -> int:
            return httpx.get(server.url + path, headers={"authorization": f"Bearer {key}"}).status_code

        paths = ("/metrics", "/v1/capabilities", "/v1/openapi.json", "/readyz")
        assert [status(p, app) for p in paths] == [403, 200, 200, 200]
        assert [status(p, reader) for p in paths] == [200, 403, 200, 200]
        assert [status(p, "wrong") for p in paths] == [401, 401, 401, 200]


def test_metrics_can_be_elsewhere(model: CloudModel):
    with serving(create_app(model, PAIR, engine=FakeEngine(), metrics_here=False)) as server:
        assert httpx.get(server.url + "/metrics").status_code == 404


# --- faults


ENGINE_ERRORS = [
    (errors.QueueTimeoutError("x"), 504, "queue-timeout"),
    (errors.ServiceTimeoutError("x"), 504, "service-timeout"),
    (errors.NotFiniteError("x"), 500, "not-finite"),
    (errors.OutOfMemoryError("x"), 500, "out-of-memory"),
    (errors.FailedError("x"), 500, "internal"),
    (errors.DeadEngineError("x"), 503, "engine-dead"),
    (errors.DrainingError("x"), 503, "draining"),
    (ValueError("a woman"), 500, "internal"),
]


@pytest.mark.parametrize(("error", "status", "expected"), ENGINE_ERRORS)
def test_every_error_of_the_engine_is_a_problem(
    server: Serving, engine: FakeEngine, error: Exception, status: int, expected: str
):
    asked = Later(server.url)
    until(lambda: engine.futures)
    engine.futures[0].set_exception(error)
    answer = asked.result()
    assert (answer.status_code, slug(answer)) == (status, expected)
    assert "woman" not in answer.text
    assert ("retry-after" in answer.headers) == (status == 503)


def test_a_client_that_hangs_up_gives_its_place_back(server: Serving, engine: FakeEngine):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/denoise HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(BODY)}"
        connection.sendall(head.encode() + b"\r\n\r\n" + BODY)
        until(lambda: engine.futures)
    until(lambda: engine.cancelled)
    service = server.server.service
    until(lambda: service.in_flight == 0)
    until(lambda: 'outcome="cancelled"} 1.0' in service.metrics.render().decode())


def test_a_client_that_sends_slowly_is_cut_off_and_holds_nobody_up(server: Serving, engine: FakeEngine):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=LIMIT_S) as connection:
        connection.sendall(
            b"POST /v1/denoise HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{"
        )
        asked = Later(server.url)  # another one, meanwhile
        until(lambda: engine.futures)
        engine.answer()
        assert asked.result().status_code == 200
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert (answer.status, json.loads(answer.read())["type"].rpartition("/")[2]) == (408, "body-timeout")
        assert answer.getheader("connection") == "close"


def test_a_client_that_reads_slowly_does_not_hold_the_engine(server: Serving, engine: FakeEngine):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        head = f"POST /v1/denoise HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(BODY)}"
        connection.sendall(head.encode() + b"\r\n\r\n" + BODY)
        until(lambda: engine.futures)
        engine.answer()
        until(lambda: server.server.service.in_flight == 0)  # not a byte was read


# --- going down


def test_going_down_refuses_new_requests_and_finishes_those_let_in(model: CloudModel, engine: FakeEngine):
    with serving(create_app(model, PAIR, engine=engine)) as server:
        asked = Later(server.url)
        until(lambda: engine.futures)
        server.terminate()
        ready, refused = httpx.get(server.url + "/readyz"), post(server.url)
        assert [(a.status_code, slug(a)) for a in (ready, refused)] == [(503, "draining")] * 2
        assert int(refused.headers["retry-after"]) >= 1
        assert httpx.get(server.url + "/healthz").status_code == 200
        assert "obclip_draining 1.0" in httpx.get(server.url + "/metrics").text
        engine.answer()
        assert asked.result().status_code == 200
        server.wait()
        assert engine.closed
        assert not server.server.interrupted


def test_going_down_does_not_wait_for_ever(model: CloudModel, engine: FakeEngine):
    with serving(create_app(model, PAIR, engine=engine), drain_s=0.0) as server:
        asked = Later(server.url)
        until(lambda: engine.futures)
        server.terminate()
        assert slug(asked.result()) == "draining"
        server.wait()


def test_a_dead_engine_tells_everyone_and_ends_the_server(model: CloudModel, engine: FakeEngine):
    with serving(create_app(model, PAIR, engine=engine)) as server:
        asked = [Later(server.url) for _ in range(3)]
        until(lambda: len(engine.futures) == 3)
        engine.on_event(Event("dead"))
        assert httpx.get(server.url + "/readyz").status_code == 503
        assert httpx.get(server.url + "/healthz").status_code == 503
        assert slug(post(server.url)) == "engine-dead"
        for future in engine.futures:
            future.set_exception(errors.DeadEngineError("the device failed"))
        assert [slug(a.result()) for a in asked] == ["engine-dead"] * 3
        server.wait()
        assert server.server.service.state == "dead"


def test_the_device_waits_as_long_as_a_full_cloud_asks_for(model: CloudModel, engine: FakeEngine):
    naps: list[float] = []
    schedule = build_schedule(model.schedule_config, REQUEST.solver, REQUEST.steps)

    def nap(seconds: float) -> None:
        naps.append(seconds)
        engine.load = Load(full=len(naps) < 2, wait_s=2.5)

    def work() -> None:
        until(lambda: engine.futures)
        engine.answer(schedule.digest)

    engine.load = Load(full=True, wait_s=2.5)
    with serving(create_app(model, PAIR, engine=engine)) as server, Client(server.url, sleep=nap) as client:
        thread = threading.Thread(target=work)
        thread.start()
        answer = client.denoise(REQUEST, schedule, PAIR.latent_shape)
        thread.join(LIMIT_S)
    assert answer.latents.shape == (2, *PAIR.latent_shape)
    assert naps == [3.0, 3.0]
