"""How many rows a batch really has: which sizes there are, who pads to what, and what that means for answers."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from serving import LIMIT_S
from stepping import LIMITS, PAIR, Forward, alone, answers, assert_near, engine_of, failure, job, raising

from obclip.cloud import engines, errors
from obclip.cloud.batch import Batcher
from obclip.cloud.compiled import bucket, bucket_sizes
from obclip.cloud.engines import step_engine
from obclip.cloud.limits import Limits
from obclip.cloud.model import CloudModel, load_model
from obclip.cloud.plans import PLAIN, Planner
from obclip.cloud.rowcap import RowCap
from obclip.cloud.stepper import StepEngine

PLANNER = Planner(PLAIN, PAIR.steps, ())


class Widths(Forward):
    """The UNet's forward, and how many rows each call had."""

    def __init__(self, model: CloudModel) -> None:
        super().__init__(model)
        self.widths: list[int] = []

    def __call__(self, x: Any, inputs: Any, *others: Any) -> Any:
        self.widths.append(len(x))
        return super().__call__(x, inputs, *others)


def test_the_sizes_of_the_default_and_of_odd_limits():
    assert bucket_sizes(64) == (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
    assert bucket_sizes(40) == (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40)
    assert bucket_sizes(1) == (1,)


@given(st.integers(1, 600), st.data())
def test_every_batch_fits_a_size_of_which_a_third_at_most_is_padding(most: int, data: st.DataObject):
    sizes, rows = bucket_sizes(most), data.draw(st.integers(1, most))
    assert list(sizes) == sorted(set(sizes))
    assert sizes[-1] == most
    padded = bucket(rows, sizes)
    assert padded in sizes
    assert 0 <= padded - rows <= padded / 3


@pytest.mark.parametrize(
    ("device", "options", "expected"),
    [
        ("cpu", {}, (1, 5, 35)),
        ("cuda", {}, (1, 5, 35)),
        ("cpu", {"compiled": True}, (1, 6, 40)),
        ("cuda", {"compiled": True}, (1, 6, 40)),
        ("cpu", {"deterministic": True}, (1, 5, 35)),
        ("cpu", {"deterministic": True, "compiled": True}, (1, 5, 35)),
        ("cuda", {"deterministic": True}, (40, 40, 40)),
        ("cuda", {"deterministic": True, "compiled": True}, (40, 40, 40)),
    ],
)
def test_batches_are_padded_only_if_compiled_or_deterministic(
    monkeypatch: pytest.MonkeyPatch, device: str, options: dict[str, bool], expected: tuple[int, ...]
):
    monkeypatch.setattr(engines, "CompiledForward", lambda layered: layered)
    model: Any = SimpleNamespace(device=torch.device(device), layered=None)
    batcher = step_engine(model, PAIR, Limits(max_rows=40), PLANNER, **options)._runner.batcher
    assert tuple(batcher.size(rows) for rows in (1, 5, 35)) == expected
    assert batcher.row_by_row == (device == "cpu" and "deterministic" in options)


def test_batches_padded_to_the_cap_are_half_as_wide_once_memory_ran_out(
    model: CloudModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(logging.getLogger("obclip"), "propagate", True)
    cap, forward = RowCap(16), Widths(model)
    forward.at[1] = raising(torch.OutOfMemoryError("CUDA out of memory"))
    engine = StepEngine(model, PAIR, LIMITS, Batcher(forward, cap.pad), cap=cap)
    try:
        engine.start()
        assert isinstance(failure(engine.submit(job(2, 2))), errors.OutOfMemoryError)
        got = engine.submit(job(2, 2)).future.result(LIMIT_S)
    finally:
        engine.close(LIMIT_S)
    assert forward.widths == [16, 8, 8]
    assert_near(got, alone(model, job(2, 2)))
    told = {r.getMessage() for r in caplog.records if r.getMessage().startswith("padding")}
    assert told == {'padding rows=8 note="answers may differ in their last bits from those before"'}


def test_batches_that_are_not_padded_to_the_cap_say_nothing_of_it(
    model: CloudModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(logging.getLogger("obclip"), "propagate", True)
    forward = Forward(model)
    forward.at[1] = raising(torch.OutOfMemoryError("CUDA out of memory"))
    with engine_of(model, forward) as (engine, _):
        engine.start()
        assert isinstance(failure(engine.submit(job())), errors.OutOfMemoryError)
    assert not [r for r in caplog.records if r.getMessage().startswith("padding")]


@pytest.mark.parametrize("widest", [3, 16])
def test_a_row_that_is_not_finite_is_run_again_alone_however_its_request_was_split(large_folder: Path, widest: int):
    """Others of its batch keep what they have: in bfloat16 they would differ by far more than a bit."""
    half = load_model(PAIR, "cpu", "bfloat16", large_folder)
    one = job(4, 1)  # eight rows, in batches of three or in one
    with engine_of(half, bucket=lambda rows: 16) as (engine, _):
        (sound,) = answers(engine, [one])
    forward = Forward(half)
    text = half.encode([one.request.negative_prompt, *one.request.candidates]).hidden[2]
    forward.always = lambda inputs: (inputs.text - text).abs().flatten(1).amax(1) < 1e-3
    with engine_of(half, forward, bucket=lambda rows: 16, max_batch_rows=widest) as (engine, seen):
        (got,) = answers(engine, [one])
    assert [e.values["rows"] for e in seen if e.kind == "nan_rerun"] == [1]
    same = [bool((a == b).all()) for a, b in zip(got.latents, sound.latents, strict=True)]
    assert same == [True, False, True, True]
    in_float32 = alone(load_model(PAIR, "cpu", "float32", large_folder), one)
    assert abs(got.latents[1].astype(float) - in_float32.latents[1].astype(float)).max() < 0.1
