"""The wire: golden bytes, round trips, and refusal of everything malformed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from obclip.core.errors import CloudMismatchError, CloudResponseError, InputError
from obclip.core.problems import KINDS, Problem
from obclip.core.wire import Capabilities, Request, Response

REQUEST = Request(
    pair="ab" * 32,
    candidates=("a man", "a wöman"),
    negative_prompt="blurry",
    seed=2**53 - 1,
    height=64,
    width=32,
    steps=25,
    handoff=10,
    guidance=3.5,
    solver="dpm++2m",
)
GOLDEN_REQUEST = (
    '{"candidates":["a man","a wöman"],"guidance":3.5,"handoff":10,"height":64,"negative_prompt":"blurry","pair":"'
    + "ab" * 32
    + '","protocol":1,"seed":9007199254740991,"solver":"dpm++2m","steps":25,"want_x0":false,"width":32}'
).encode()
SHAPE = (4, 2, 3)


def response(n: int = 2, **changes: Any) -> Response:
    latents = np.arange(n * 24, dtype=np.float16).reshape(n, *SHAPE)
    return replace(Response(latents, None, 10, "cd" * 32, "ef" * 32), **changes)


def test_request_golden_bytes():
    assert REQUEST.encode() == GOLDEN_REQUEST
    assert Request.decode(GOLDEN_REQUEST) == REQUEST


def test_response_golden_bytes():
    header = (
        b'{"__metadata__":{"model":"' + b"ef" * 32 + b'","protocol":"1","schedule":"' + b"cd" * 32 + b'","step":"10"},'
        b'"latents":{"data_offsets":[0,96],"dtype":"F16","shape":[2,4,2,3]}}'
    )
    header += b" " * (-len(header) % 8)
    payload = np.arange(48, dtype="<f2").tobytes()
    assert response().encode() == len(header).to_bytes(8, "little") + header + payload


@given(
    prompts=st.sets(st.text(max_size=40), min_size=1, max_size=8),
    negative=st.text(max_size=20),
    seed=st.integers(0, 2**53 - 1),
    steps=st.integers(1, 1000),
    guidance=st.floats(0, 100),
    data=st.data(),
)
def test_requests_survive_the_wire(prompts, negative, seed, steps, guidance, data):
    handoff = data.draw(st.integers(1, steps))
    request = Request("0" * 64, tuple(sorted(prompts)), negative, seed, 64, 64, steps, handoff, guidance, "ddim", True)
    assert Request.decode(request.encode()) == request


@given(n=st.integers(1, 5), with_x0=st.booleans(), seed=st.integers(0, 99))
def test_responses_survive_the_wire(n, with_x0, seed):
    x = np.random.default_rng(seed).standard_normal((n, *SHAPE)).astype(np.float16)
    sent = response(latents=x, x0=-x if with_x0 else None)
    request = replace(REQUEST, candidates=tuple(f"p{i}" for i in range(n)), want_x0=with_x0)
    got = Response.decode(sent.encode(), request, SHAPE)
    np.testing.assert_array_equal(got.latents, x)
    assert (got.x0 is None) != with_x0
    assert (got.step, got.schedule, got.model) == (sent.step, sent.schedule, sent.model)


BAD_FIELDS = [
    ("protocol", 2), ("protocol", None), ("pair", "xyz"), ("pair", "AB" * 32), ("candidates", []), ("candidates", "a"),
    ("candidates", ["b", "a"]), ("candidates", ["a", "a"]), ("candidates", [1]), ("candidates", ["x" * 1001]),
    ("negative_prompt", None), ("seed", -1), ("seed", 2**53), ("seed", 1.5), ("seed", True), ("seed", "1"),
    ("height", 0), ("height", 64.0), ("width", 5000), ("steps", 0), ("steps", True), ("handoff", 0), ("handoff", 26),
    ("guidance", -1), ("guidance", "3"), ("guidance", True), ("guidance", 101), ("solver", "pndm"), ("want_x0", 1),
    ("surprise", 1), ("candidates", ["\ud800"]),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS)
def test_bad_fields_are_refused(field: str, value: object):
    with pytest.raises(InputError):
        Request.decode(json.dumps({**json.loads(GOLDEN_REQUEST), field: value}).encode())


@pytest.mark.parametrize("field", sorted(json.loads(GOLDEN_REQUEST)))
def test_missing_fields_are_refused(field: str):
    values = json.loads(GOLDEN_REQUEST)
    del values[field]
    with pytest.raises(InputError, match=field):
        Request.decode(json.dumps(values).encode())


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff\xfe", b"[]", b"nonsense", GOLDEN_REQUEST.replace(b"3.5", b"NaN"), b"[" * 100_000, b'{"a":1,"a":2}'],
)
def test_bodies_that_are_no_json_object_are_refused(body: bytes):
    with pytest.raises(InputError):
        Request.decode(body)


def test_refusals_do_not_repeat_a_prompt():
    body = GOLDEN_REQUEST.replace(b'"a man"', b'"zz secret"')
    with pytest.raises(InputError) as caught:
        Request.decode(body)
    assert "secret" not in str(caught.value)


def with_value(value: float, row: int) -> Response:
    latents = response().latents.copy()
    latents[row, 1, 1, 1] = value
    return response(latents=latents)


BAD_RESPONSES = {
    "garbage": b"not safetensors at all",
    "empty": b"",
    "truncated": response().encode()[:-10],
    "header only": response().encode()[:40],
    "huge header": b"\xff" * 16,
    "float32": save({"latents": response().latents.astype(np.float32)}, {"protocol": "1", "step": "10"}),
    "no metadata": save({"latents": response().latents}),
    "other tensor": save({"x": response().latents}, {"protocol": "1", "step": "10", "schedule": "a", "model": "b"}),
    "too few": response(1).encode(),
    "too many": response(3).encode(),
    "shape": response(latents=np.zeros((2, 4, 3, 3), np.float16)).encode(),
    "step": response(step=9).encode(),
    "no schedule": response(schedule="").encode(),
    "nan in the first": with_value(np.nan, 0).encode(),
    "nan in the last": with_value(np.nan, 1).encode(),
    "infinite": with_value(np.inf, 1).encode(),
}


@pytest.mark.parametrize("name", BAD_RESPONSES)
def test_bad_responses_are_refused_whole(name: str):
    with pytest.raises(CloudResponseError):
        Response.decode(BAD_RESPONSES[name], REQUEST, SHAPE)


def test_missing_x0_is_refused_when_it_was_asked_for():
    with pytest.raises(CloudResponseError, match="x0"):
        Response.decode(response().encode(), replace(REQUEST, want_x0=True), SHAPE)


def test_refusal_reads_the_same_whichever_row_is_bad():
    """An error text, and so a retry or a log line, must not tell candidates apart."""
    texts = set()
    for row in (0, 1):
        with pytest.raises(CloudResponseError) as caught:
            Response.decode(with_value(np.nan, row).encode(), REQUEST, SHAPE)
        texts.add(str(caught.value))
    assert len(texts) == 1


CAPABILITIES = Capabilities(
    1, "0.1", "emoji", "ab" * 32, "cd" * 32, ("ddim",), {"a": 1}, 64, 64, 4, 4, 64, 100, 32, 1_000_000
)


def test_capabilities_survive_the_wire():
    assert Capabilities.decode(CAPABILITIES.encode()) == CAPABILITIES


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": 2}, {"solvers": None}, {"max_candidates": ...}, {"max_candidates": "x"}, {"pair": 5},
        {"solvers": [1]}, {"schedule_config": []}, {"max_steps": True},
    ],
)  # fmt: skip
def test_other_capabilities_are_a_mismatch(change: dict[str, Any]):
    values = json.loads(CAPABILITIES.encode())
    for key, value in change.items():
        values.pop(key) if value is ... else values.update({key: value})
    with pytest.raises(CloudMismatchError):
        Capabilities.decode(json.dumps(values).encode())


@pytest.mark.parametrize("slug", KINDS)
def test_problems_survive_the_wire(slug: str):
    problem = Problem.of(slug, "what happened")
    assert Problem.decode(problem.encode(), problem.status) == problem
    assert problem.slug == slug


def test_an_answer_that_is_no_problem_document_becomes_one():
    assert Problem.decode(b"<html>", 502).status == 502
