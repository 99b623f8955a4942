"""The service: order of checks, limits, going down, faults, and that nothing of a prompt or a choice shows outside."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from serving import Serving, serving, until

from obclip.cloud import errors, logs
from obclip.cloud.app import create_app
from obclip.cloud.keys import add_key
from obclip.cloud.limits import Limits, Rate, RateLimiter
from obclip.cloud.model import CloudModel, load_model
from obclip.cloud.tracing import Tracer
from obclip.cloud.work import Event, Job, Load, Span, Ticket, ignore
from obclip.core.errors import RunError
from obclip.core.pairs import load_pair
from obclip.core.problems import Problem
from obclip.core.schedule import build_schedule
from obclip.core.wire import Request, Response
from obclip.edge import Client

PAIR = load_pair("emoji")
REQUEST = Request(
    pair=PAIR.digest, candidates=("a man", "a woman"), negative_prompt="", seed=5, height=64, width=64, steps=6,
    handoff=2, guidance=3.5, solver="dpm++2m",
)  # fmt: skip
ROWS = 8
BODY = REQUEST.encode()
JSON = {"content-type": "application/json"}
LIMIT_S = 30


@pytest.fixture(scope="module")
def model(large_folder: Path) -> CloudModel:
    return load_model(PAIR, "cpu", "float32", large_folder)


class FakeEngine:
    """Keeps what it is given until told how it ended. `error`: what `submit` raises."""

    def __init__(self) -> None:
        self.on_event: Callable[[Event], None] = ignore
        self.load, self.error = Load(), None
        self.jobs: list[Job] = []
        self.futures: list[Future[Response]] = []
        self.cancelled = self.closed = 0

    load: Load
    error: RunError | None

    def start(self) -> None:
        pass

    def submit(self, job: Job) -> Ticket:
        if self.error is not None:
            raise self.error
        future: Future[Response] = Future()
        future.set_running_or_notify_cancel()
        self.jobs.append(job)
        self.futures.append(future)

        def cancel() -> None:
            if not future.done():
                self.cancelled += 1
                future.set_exception(errors.CancelledError("cancelled"))

        return Ticket(future, cancel, [Span("queue", 1, 2), Span("encode", 2, 3), Span("denoise", 3, 4)])

    def close(self, drain_s: float) -> None:
        self.closed += 1
        for future in self.futures:
            if not future.done():
                future.set_exception(errors.DrainingError("closed"))

    def answer(self, schedule: str = "b" * 64) -> None:
        """All that is in hand, with noise."""
        for job, future in zip(self.jobs, self.futures, strict=True):
            if not future.done():
                shape = (len(job.request.candidates), *PAIR.latent_shape)
                latents = np.random.default_rng(0).standard_normal(shape).astype(np.float16)
                future.set_result(Response(latents, None, job.request.handoff, schedule, "c" * 64))


def post(url: str, body: bytes = BODY, **headers: str) -> httpx.Response:
    return httpx.post(url + "/v1/denoise", content=body, headers={**JSON, **headers}, timeout=LIMIT_S)


class Later:
    """A request in a thread of its own."""

    def __init__(self, url: str, body: bytes = BODY) -> None:
        self.got: list[httpx.Response] = []
        self.thread = threading.Thread(target=lambda: self.got.append(post(url, body)))
        self.thread.start()

    def result(self) -> httpx.Response:
        self.thread.join(LIMIT_S)
        return self.got[0]


def slug(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    problem = Problem.decode(answer.content, answer.status_code)
    assert problem.status == answer.json()["status"] == answer.status_code
    return problem.slug


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


# --- nothing shows


def test_the_same_request_gets_the_same_bytes_and_permuted_content_the_same_shape(model: CloudModel):
    """The server cannot know which candidate is meant; here: it does not treat them differently either."""
    permuted = replace(REQUEST, candidates=("a cook", "a woman"))
    swapped = replace(REQUEST, candidates=("a cooks", "a woma"))
    with serving(create_app(model, PAIR)) as server:
        first, again, *others = [post(server.url, r.encode()) for r in (REQUEST, REQUEST, permuted, swapped)]
    assert first.content == again.content
    for other in others:
        assert len(other.content) == len(first.content)
        assert [k for k, _ in other.headers.multi_items()] == [k for k, _ in first.headers.multi_items()]
        varying = ("date", "x-request-id")
        assert {k: v for k, v in other.headers.items() if k not in varying} == {
            k: v for k, v in first.headers.items() if k not in varying
        }
    assert first.headers["x-request-id"] != again.headers["x-request-id"]
    assert len(first.headers["x-request-id"]) == len(again.headers["x-request-id"])


def test_what_is_logged_and_counted_does_not_depend_on_the_words(model: CloudModel, caplog: pytest.LogCaptureFixture):
    """Same events, same fields, same values but for ids and times, whichever words the candidates have."""
    caplog.set_level("DEBUG", "obclip")
    told = []
    for request in (REQUEST, replace(REQUEST, candidates=("an old cook", "red hat"))):
        caplog.clear()
        with serving(create_app(model, PAIR)) as server:
            post(server.url, request.encode())
        records = [getattr(r, "obclip_fields", {}) for r in caplog.records if r.name.startswith("obclip")]
        varying = ("request", "seconds", "wait_s", "url")
        told.append(sorted(json.dumps({k: v for k, v in f.items() if k not in varying}) for f in records))
    assert told[0] == told[1]


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


SECRETS = ("woman", "zanzibar", "cook", "quetzal")


class EvilError(RuntimeError):
    """What a library could raise: its message quotes what it was given."""


def quoting(*_: Any, **__: Any) -> Any:
    raise EvilError("a woman zanzibar", *_)


def full_run(model: CloudModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: logs.Format) -> str:
    """Successes, refusals and failures of all kinds; returns all that was logged, counted and traced."""
    stream, exporter = io.StringIO(), InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    key = add_key(tmp_path / f"keys-{form}.json", "app", Rate(100, None))
    bearer = {"authorization": f"Bearer {key}"}
    logs.configure(form, "debug", stream)
    app = create_app(
        model, PAIR, Limits(body_timeout_s=0.2), keys=tmp_path / f"keys-{form}.json", tracer=Tracer(provider)
    )
    service = app.state.service
    request = replace(REQUEST, candidates=("a cook zanzibar", "a woman"), negative_prompt="quetzal")
    with serving(app) as server:
        codes = [post(server.url, request.encode(), **bearer).status_code]
        codes.append(post(server.url, request.encode()).status_code)
        codes.append(post(server.url, request.encode(), authorization="Bearer zanzibar").status_code)
        for bad in (
            b'{"a woman"',
            request.encode().replace(b'"ddim"', b'"woman"').replace(b'"dpm++2m"', b'"woman"'),
            request.encode().replace(b'"seed"', b'"quetzal"'),
            replace(request, candidates=("cook " * 60,)).encode(),
            replace(request, pair="0" * 64).encode(),
            b'{"cook": "' + b"woman " * 100_000,
        ):
            codes.append(post(server.url, bad, **bearer).status_code)
        codes.append(httpx.get(server.url + "/v1/denoise?prompt=a+woman", headers=bearer).status_code)
        codes.append(httpx.get(server.url + "/cook/a%20woman", headers=bearer).status_code)
        codes.append(httpx.request("WOMAN", server.url + "/v1/denoise", headers=bearer).status_code)
        codes.append(post(server.url, request.encode(), **bearer, **{"x-request-id": "woman"}).status_code)
        with socket.create_connection(server.url.removeprefix("http://").rsplit(":", 1)) as raw:  # type: ignore[arg-type]
            raw.sendall(b"a woman zanzibar\r\n\r\n")
            raw.recv(1000)
        for target, name in (
            (model.unet.conv_in, "forward"),
            (model.text.encoders[0].model, "forward"),
            (type(model.text), "check"),
            (Response, "encode"),
            (service.engine, "submit"),
            (service, "planner"),
            (service, "admit"),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(target, name, quoting)
                codes.append(post(server.url, request.encode(), **bearer).status_code)
        counted = service.metrics.render().decode()
    assert codes == [200, 401, 401, 422, 422, 422, 422, 409, 413, 405, 404, 405, 200, *[500] * 7]
    spans = [span.to_json() for span in exporter.get_finished_spans()]
    assert {"request", "queue", "encode", "denoise", "pack"} <= {s.name for s in exporter.get_finished_spans()}
    assert 'obclip_requests_total{outcome="ok"} 2.0' in counted
    text = stream.getvalue()
    assert text.count("outcome=ok") + text.count('"outcome": "ok"') == 2
    assert "EvilError" in text  # failures are told of, by class and place
    return text + counted + "".join(spans)


@pytest.fixture
def quiet() -> Iterator[None]:
    """Loggers as they were."""
    kept = {
        n: (logging.getLogger(n).handlers, logging.getLogger(n).propagate, logging.getLogger(n).level) for n in NAMES
    }
    yield
    for name, (handlers, propagate, level) in kept.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


NAMES = ("obclip", "uvicorn", "asyncio")


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.usefixtures("quiet")
def test_no_log_line_metric_or_span_has_a_word_of_a_prompt(
    model: CloudModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    form: logs.Format,
):
    told = full_run(model, tmp_path, monkeypatch, form) + "".join(capfd.readouterr())
    found = [word for word in SECRETS if word in told.lower()]
    assert found == []
    if form == "json":
        lines = [line for line in told.splitlines() if line.startswith('{"time"')]
        assert all({"time", "level", "logger", "event"} <= json.loads(line).keys() for line in lines)
        assert len(lines) > 40


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.usefixtures("quiet")
def test_what_other_libraries_log_is_reduced_to_its_place(form: logs.Format):
    stream = io.StringIO()
    logs.configure(form, "debug", stream)
    for name in ("uvicorn.error", "asyncio"):
        try:
            quoting()
        except EvilError:
            logging.getLogger(name).exception("task of %s", "a woman")
    said = stream.getvalue()
    assert [word for word in SECRETS if word in said] == []
    assert said.count("EvilError") == 2
    assert len(said.splitlines()) == 2


@pytest.mark.usefixtures("quiet")
def test_the_library_sets_no_handlers(model: CloudModel):
    before = [(logging.getLogger(n).handlers[:], logging.getLogger(n).level) for n in ("", *NAMES)]
    with serving(create_app(model, PAIR)) as server:
        post(server.url)
    assert before == [(logging.getLogger(n).handlers, logging.getLogger(n).level) for n in ("", *NAMES)]
