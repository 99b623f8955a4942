"""Before a server is ready, all that its plans may ask of the UNet has run once; what a request keeps is its own."""

from __future__ import annotations

import gc
import threading
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from serving import LIMIT_S, until
from stepping import LIMITS

from obclip.cloud import engines, errors
from obclip.cloud.batch import Batcher, Slice
from obclip.cloud.denoising import Denoising
from obclip.cloud.engines import step_engine, warm_up
from obclip.cloud.limits import Limits
from obclip.cloud.model import CloudModel, load_model
from obclip.cloud.plan import plain_plan
from obclip.cloud.plans import Planner, load_planner
from obclip.cloud.stepper import StepEngine
from obclip.cloud.unet import LayeredUNet
from obclip.cloud.work import Job
from obclip.core.pairs import load_pair
from obclip.core.wire import Request

PAIR = replace(load_pair("emoji"), steps=8, handoff=4)
CLASSES = """
[[class]]
candidates = 2
shared_unconditional = 0
prefix = 2
deep_cache = { depth = 1, every = 2 }
[[class]]
candidates = 4
handoff = 3
deep_cache = { depth = 2, every = 3 }
[[class]]
tree = [1, 2]
"""


class Seen:
    """Stands for the UNet; which parts ran, keeping what, in batches of how many rows."""

    def __init__(self, model: CloudModel) -> None:
        self.model, self.kinds = model, set[tuple]()

    def __call__(self, x, inputs, part, kept, keep, pivots):
        self.kinds.add((part, keep, len(x)))
        return self.model.layered(x, inputs, part, kept, keep, pivots)


@pytest.fixture(scope="module")
def model(small_folder: Path) -> CloudModel:
    return load_model(PAIR, "cpu", "float32", small_folder)


@pytest.fixture
def planner(model: CloudModel, tmp_path: Path) -> Planner:
    (tmp_path / "classes.toml").write_text(CLASSES)
    return load_planner(tmp_path / "classes.toml", PAIR.steps, model.layered.depth, max_rows=5)


def request(n: int, k: int) -> Request:
    return Request(
        pair=PAIR.digest, candidates=tuple(f"a man {i}" for i in range(n)), negative_prompt="", seed=0, height=64,
        width=64, steps=8, handoff=k, guidance=3.0, solver="dpm++2m",
    )  # fmt: skip


def test_every_part_in_every_size_has_run(model: CloudModel, planner: Planner):
    seen = Seen(model)
    warm_up(model, PAIR, planner, Batcher(seen), [1, 2, 3], max_candidates=6)
    wanted = {
        (one.part, one.keep, size)
        for n in range(1, 7) for k in range(1, 9)
        for step in planner(request(n, k)).steps for one in step.passes for size in (1, 2, 3)
    }  # fmt: skip
    assert len({part for part, _, _ in wanted}) == 3
    assert wanted <= seen.kinds


@torch.inference_mode()
def test_what_a_request_keeps_does_not_hold_its_batch_in_memory(model: CloudModel, planner: Planner):
    states = [Denoising(model, PAIR, request(2, 4), planner(request(2, 4))) for _ in range(4)]
    for step in states[0].plan.steps:
        for one in step.passes:
            Batcher(model.layered).run([Slice(s, step, one, 0, len(one.rows)) for s in states])
        for state in states:
            state.advance(step)
    for state in states:
        assert state.features
        for feature in state.features.values():
            assert feature.untyped_storage().nbytes() == feature.numel() * feature.element_size()


class Compiled:
    """Stands for a compiled UNet: the thread of each call, what ran, and in a batch of how many rows."""

    def __init__(self, layered: LayeredUNet) -> None:
        self.layered, self.calls = layered, list[tuple]()

    def __call__(self, x, inputs, part, kept, keep, pivots):
        self.calls.append((threading.current_thread().name, part, keep, len(x)))
        return self.layered(x, inputs, part, kept, keep, pivots)


def test_compiled_it_warms_up_twice_in_every_size_and_where_it_will_run(
    model: CloudModel, planner: Planner, monkeypatch: pytest.MonkeyPatch
):
    """A CUDA graph is recorded in the second run, for the thread that it runs in. `planner` has passes of 5 rows."""
    monkeypatch.setattr(engines, "CompiledForward", Compiled)
    engine = step_engine(model, PAIR, Limits(max_rows=5, max_candidates=6), planner, compiled=True)
    forward: Any = engine._runner.batcher.forward
    try:
        engine.start()
        before = Counter(forward.calls)
        engine.submit(Job(request(3, 4), planner(request(3, 4)))).future.result(LIMIT_S)
    finally:
        engine.close(LIMIT_S)
    kinds = {(part, keep) for _, part, keep, _ in before}
    assert len(kinds) >= 3
    assert {call[1:] for call in before} == {(*kind, size) for kind in kinds for size in (1, 2, 3, 4, 5)}
    assert min(before.values()) >= 2
    assert {thread for thread, *_ in before} == {"obclip-engine"}
    assert set(forward.calls) == set(before)


def test_whoever_starts_an_engine_hears_why_it_cannot(model: CloudModel):
    def warm_up() -> None:
        raise ZeroDivisionError(threading.current_thread().name)

    engine = StepEngine(model, PAIR, LIMITS, warm_up=warm_up)
    early = engine.submit(Job(request(2, 2), plain_plan(request(2, 2))))
    with pytest.raises(ZeroDivisionError, match="obclip-engine"):
        engine.start()
    assert isinstance(early.future.exception(LIMIT_S), errors.DeadEngineError)
    with pytest.raises(errors.DeadEngineError):
        engine.submit(Job(request(2, 2), plain_plan(request(2, 2))))
    engine.close(LIMIT_S)
    assert not engine._thread.is_alive()


def test_an_engine_without_work_keeps_nothing_of_its_last_request(model: CloudModel):
    engine = StepEngine(model, PAIR, LIMITS)
    engine.start()
    try:
        job = Job(request(2, 2), plain_plan(request(2, 2)))
        kept = weakref.ref(job)
        engine.submit(job).future.result(LIMIT_S)
        del job
        until(lambda: gc.collect() >= 0 and kept() is None)
    finally:
        engine.close(LIMIT_S)
