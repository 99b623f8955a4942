"""Nothing of a prompt or a choice shows outside: answers, logs, metrics, spans."""

from __future__ import annotations

import io
import json
import logging
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from asking import PAIR, REQUEST, post
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from serving import serving

from obclip.cloud import logs
from obclip.cloud.app import create_app
from obclip.cloud.keys import add_key
from obclip.cloud.limits import Limits, Rate
from obclip.cloud.model import CloudModel, load_model
from obclip.cloud.tracing import Tracer
from obclip.core.wire import Response


@pytest.fixture(scope="module")
def model(large_folder: Path) -> CloudModel:
    return load_model(PAIR, "cpu", "float32", large_folder)


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
