"""The step batcher with a UNet that breaks: who fails, who does not, and what is told."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from serving import LIMIT_S
from stepping import (
    FIRST_T,
    OTHER_T,
    PAIR,
    PUBLISHED,
    SHARING,
    Forward,
    all_rows,
    alone,
    answers,
    assert_near,
    engine_of,
    failure,
    job,
    kinds,
    raising,
    step_rows,
)

from obclip.cloud import errors, runner, stepper
from obclip.cloud.denoising import Denoising
from obclip.cloud.model import CloudModel, load_model
from obclip.cloud.plan import Policy
from obclip.cloud.policies import (
    DeepCache,
    PublishedReuse,
    SharedUnconditional,
)
from obclip.cloud.runner import Outcome
from obclip.cloud.scheduler import Scheduler
from obclip.cloud.work import Job
from obclip.core.schedule import build_schedule


def culprit(inputs: Any, model: CloudModel, one: Job) -> torch.Tensor:
    """Which rows are those of a request of OTHER_T steps, but for its first step, whose time is that of all."""

    def times(steps: int) -> set[float]:
        return {float(t) for t in build_schedule(model.schedule_config, one.request.solver, steps).timesteps}

    own = times(OTHER_T) - times(FIRST_T)
    assert len(own) == OTHER_T - 1
    return torch.tensor([float(t) in own for t in inputs.timestep])


def test_only_the_request_that_breaks_a_batch_fails(model: CloudModel):
    bad, good = job(2, 3, steps=OTHER_T), [job(2, 3), job(1, 4, client="d")]

    def act(inputs: Any) -> None:
        if culprit(inputs, model, bad).any():
            raise RuntimeError(f"a kernel failed on {bad.request.candidates}")

    forward = Forward(model)
    forward.always = act
    with engine_of(model, forward) as (engine, seen):
        tickets = [engine.submit(one) for one in (good[0], bad, good[1])]
        engine.start()
        assert isinstance(failure(tickets[1]), errors.FailedError)
        for ticket, one in ((tickets[0], good[0]), (tickets[2], good[1])):
            assert_near(ticket.future.result(LIMIT_S), alone(model, one))
    assert kinds(seen).count("failed") == 1


def test_a_fault_that_does_not_come_back_costs_nobody_anything(model: CloudModel):
    forward = Forward(model)
    forward.at[2] = raising(RuntimeError("once"))
    with engine_of(model, forward) as (engine, seen):
        jobs = [job(1), job(2)]
        for one, got in zip(jobs, answers(engine, jobs), strict=True):
            assert_near(got, alone(model, one))
    assert "failed" not in kinds(seen)


def test_a_request_alone_in_its_batch_fails_with_it(model: CloudModel):
    forward = Forward(model)
    forward.at[2] = raising(RuntimeError("once"))
    with engine_of(model, forward) as (engine, _):
        ticket = engine.submit(job())
        engine.start()
        assert isinstance(failure(ticket), errors.FailedError)
        assert_near(engine.submit(job()).future.result(LIMIT_S), alone(model, job()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("row_by_row", [False, True])
def test_rows_that_are_not_finite_are_run_again_in_float32(large_folder: Path, dtype: str, row_by_row: bool):
    model = load_model(PAIR, "cpu", dtype, large_folder)
    odd, even = job(2, 2, SHARING, steps=OTHER_T), job(1, 2)
    forward = Forward(model)
    forward.always = lambda inputs: culprit(inputs, model, odd)
    with engine_of(model, forward, row_by_row=row_by_row) as (engine, seen):
        got = answers(engine, [odd, even])
    reference = load_model(PAIR, "cpu", "float32", large_folder)
    for one, response in zip((odd, even), got, strict=True):
        expected = alone(reference, one).latents.astype(float)
        atol = 4e-3 if dtype == "float32" else 0.05 * np.abs(expected).max()
        np.testing.assert_allclose(response.latents.astype(float), expected, atol=atol)
    assert [e.values["rows"] for e in seen if e.kind == "nan_rerun"] == [2]  # not those of the other


@pytest.mark.parametrize(
    ("side", "i", "policy"), [("up", -2, DeepCache(1, (0, 2))), ("down", 0, PUBLISHED[0])], ids=["features", "skips"]
)
def test_features_beyond_float16_are_kept_for_later_steps(large_folder: Path, side: str, i: int, policy: Policy):
    """One layer gives hundreds of thousands, which later ones bring back to one."""
    reference, half = (load_model(PAIR, "cpu", "float32", large_folder) for _ in range(2))
    for model in (reference, half):
        with torch.no_grad():
            getattr(model.layered, side)[i].resnet.conv2.weight *= 3e5
    half = replace(half, dtype=torch.float16)  # load_model refuses it on a CPU, as too slow
    for module in (half.unet, *(encoder.model for encoder in half.text.encoders)):
        module.half()
    one = job(2, 4, (policy,))
    states: list[Denoising] = []

    class Seen(Denoising):
        def take(self, *arguments: Any) -> None:
            super().take(*arguments)
            states.append(self)

    with pytest.MonkeyPatch.context() as patch, engine_of(half) as (engine, seen):
        patch.setattr(stepper, "Denoising", Seen)
        (got,) = answers(engine, [one])
    expected = alone(reference, one).latents.astype(float)
    np.testing.assert_allclose(got.latents.astype(float), expected, atol=0.01 * np.abs(expected).max())
    assert sum(int(e.values["rows"]) for e in seen if e.kind == "nan_rerun") == one.plan.rows
    kept = states[-1].features.values()
    assert all(bool(torch.isfinite(value).all()) for value in kept)
    assert max(float(value.abs().max()) for value in kept) > 65504


def test_what_is_not_finite_in_float32_either_is_not_returned(model: CloudModel):
    bad, good = job(2, 3, steps=OTHER_T), job(1, 3)
    poisoned = Forward(model)
    poisoned.always = lambda inputs: culprit(inputs, model, bad)

    class Layered:
        """The UNet itself, broken for one request in any precision."""

        def __getattr__(self, name: str) -> Any:
            return getattr(model.layered, name)

        def __call__(self, *arguments: Any) -> Any:
            return poisoned(*arguments)

    broken = replace(model, layered=Layered())  # type: ignore[arg-type]
    with engine_of(broken, Forward(broken)) as (engine, seen):
        tickets = [engine.submit(one) for one in (bad, good)]
        engine.start()
        assert isinstance(failure(tickets[0]), errors.NotFiniteError)
        assert_near(tickets[1].future.result(LIMIT_S), alone(model, good))
    assert [e.values["rows"] for e in seen if e.kind == "nan_rerun"] == [4]
    assert step_rows(seen) == [6, 2, 2]


def test_after_out_of_memory_batches_are_half_as_wide(model: CloudModel):
    forward = Forward(model)
    forward.at[1] = raising(torch.OutOfMemoryError("CUDA out of memory"))
    with engine_of(model, forward, max_batch_rows=12, max_held_rows=12) as (engine, seen):
        running = [engine.submit(job(2, client=c)) for c in "abc"]
        wide = engine.submit(job(7, 2, (SharedUnconditional(), PublishedReuse(2))))  # seven rows in one pass
        later = engine.submit(job(4))
        engine.start()
        assert all(isinstance(failure(t), errors.OutOfMemoryError) for t in (*running, wide))
        assert_near(later.future.result(LIMIT_S), alone(model, job(4)))
        with pytest.raises(errors.FailedError, match="fewer candidates"):
            engine.submit(job(7, 2, (PublishedReuse(2),)))
    assert [e.values["rows"] for e in seen if e.kind == "oom"] == [6]
    assert step_rows(seen) == [6, 2] * 3
    assert kinds(seen).count("failed") == 4


def test_batches_grow_again_once_all_has_gone_well_for_long(model: CloudModel):
    forward = Forward(model)
    with engine_of(model, forward, max_batch_rows=12, max_held_rows=24) as (engine, seen):
        engine._after(Outcome(overflow=12))
        for _ in range(255):
            engine._after(Outcome())
        tickets = [engine.submit(job(2, client=c)) for c in "abc"]  # twelve rows a step
        engine.start()  # the first batch, of six rows, is the last that is wanted
        for one in tickets:
            assert_near(one.future.result(LIMIT_S), alone(model, job(2, client="a")))
    assert step_rows(seen)[0] == 6
    assert max(step_rows(seen)) == 12


def test_out_of_memory_does_not_keep_the_batch_in_memory(model: CloudModel, monkeypatch: pytest.MonkeyPatch):
    """The exception's traceback holds the batch's tensors; it is gone before memory is given back."""
    handled: list[Any] = []
    forward = Forward(model)
    forward.at[1] = raising(torch.OutOfMemoryError("CUDA out of memory"))
    whole = runner.Runner._overflow

    def overflow(*arguments: Any) -> None:
        handled.append(traceback.format_exc())
        whole(*arguments)

    monkeypatch.setattr(runner.Runner, "_overflow", overflow)
    with engine_of(model, forward) as (engine, _):
        ticket = engine.submit(job())
        engine.start()
        assert isinstance(failure(ticket), errors.OutOfMemoryError)
    assert handled == ["NoneType: None\n"]


CUDA = RuntimeError("CUDA error: an illegal memory access was encountered; a young woman")


def die_in_forward(forward: Forward, _: pytest.MonkeyPatch) -> None:
    forward.at[2] = raising(CUDA)


def die_when_isolating(forward: Forward, _: pytest.MonkeyPatch) -> None:
    forward.at |= {2: raising(ValueError("whose?")), 3: raising(CUDA)}


def die_when_encoding(_: Forward, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stepper, "Denoising", lambda *arguments: raising(CUDA)(None))


def die_in_float32(forward: Forward, patch: pytest.MonkeyPatch) -> None:
    forward.at[2] = all_rows
    patch.setattr(runner, "run_float32", lambda *arguments: raising(CUDA)(None))


def die_when_advancing(_: Forward, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Denoising, "advance", lambda *arguments: raising(CUDA)(None))


def die_when_packing(_: Forward, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Denoising, "response", lambda *arguments: raising(CUDA)(None))


def die_by_a_slip(_: Forward, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scheduler, "postprocess", lambda *arguments: raising(KeyError("a young woman"))(None))


@pytest.mark.parametrize(
    "die",
    [
        die_in_forward, die_when_isolating, die_when_encoding, die_in_float32, die_when_advancing, die_when_packing,
        die_by_a_slip,
    ],
)  # fmt: skip
def test_a_dead_device_ends_everything_and_everybody_is_told(
    model: CloudModel, monkeypatch: pytest.MonkeyPatch, die: Callable[[Forward, pytest.MonkeyPatch], None]
):
    forward = Forward(model)
    die(forward, monkeypatch)
    with engine_of(model, forward, max_held_rows=8) as (engine, seen):
        tickets = [engine.submit(job(2, client=client)) for client in "abc"]  # the third waits
        engine.start()
        for ticket in tickets:
            error = failure(ticket)
            assert isinstance(error, errors.DeadEngineError)
            assert "woman" not in told(error)
        with pytest.raises(errors.DeadEngineError):
            engine.submit(job())
        engine._thread.join(LIMIT_S)
        assert kinds(seen).count("dead") == 1
        assert kinds(seen)[-1] == "dead"
    assert forward.calls <= 3


def test_a_request_that_cannot_be_encoded_fails_alone(model: CloudModel):
    with engine_of(model) as (engine, seen):
        long = engine.submit(job(1, candidates=("cook " * 60,)))
        good = engine.submit(job())
        engine.start()
        assert isinstance(failure(long), errors.FailedError)
        assert "cook" not in told(failure(long))
        assert_near(good.future.result(LIMIT_S), alone(model, job()))
    assert step_rows(seen) == [4, 4, 4]


def test_a_request_whose_solver_breaks_fails_alone(model: CloudModel, monkeypatch: pytest.MonkeyPatch):
    bad, good = job(1, 3), job(2, 3)
    expected, whole = alone(model, good), Denoising.advance

    def advance(self: Denoising, step: Any) -> None:
        if self.plan is bad.plan and step.index == 1:
            raise ValueError(self.request.candidates)
        whole(self, step)

    monkeypatch.setattr(Denoising, "advance", advance)
    with engine_of(model) as (engine, _):
        tickets = [engine.submit(one) for one in (bad, good)]
        engine.start()
        assert isinstance(failure(tickets[0]), errors.FailedError)
        assert_near(tickets[1].future.result(LIMIT_S), expected)


def told(error: BaseException | None) -> str:
    """All that can be had from an error."""
    assert error is not None
    return repr(error) + "".join(traceback.format_exception(error)) + repr((error.__cause__, error.__context__))


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, torch.OutOfMemoryError, MemoryError, errors.FailedError])
def test_no_error_quotes_a_prompt(model: CloudModel, kind: type[Exception]):
    """But for errors of the engine's own, which are made from fixed words."""
    forward = Forward(model)
    forward.always = raising(kind("a woman" if kind is not errors.FailedError else "fixed words"))
    with engine_of(model, forward) as (engine, seen):
        ticket = engine.submit(job())
        engine.start()
        assert "woman" not in told(failure(ticket))
    assert not any("woman" in repr(e) for e in seen)
