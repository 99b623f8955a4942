"""Plans from files, and the engine that a server builds of one."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from serving import LIMIT_S
from stepping import DEPTH, FIRST_T, PAIR, alone, answers, assert_near, job

from obclip.cloud.engines import step_engine
from obclip.cloud.limits import Limits
from obclip.cloud.model import CloudModel, load_model
from obclip.cloud.plan import build_plan, plain_plan
from obclip.cloud.plans import PLAIN, Planner, default_plan, load_planner
from obclip.cloud.policies import (
    DeepCache,
    GuidanceFrom,
    Prefix,
    PublishedCache,
    PublishedReuse,
    SharedUnconditional,
    Tree,
)
from obclip.cloud.work import Job
from obclip.core.errors import InputError
from obclip.core.pairs import load_pair
from obclip.core.wire import Response


@pytest.fixture(scope="module")
def model(large_folder: Path) -> CloudModel:
    return load_model(PAIR, "cpu", "float32", large_folder)


CLASSES = """
[[class]]
candidates = 2
handoff = 4
shared_unconditional = 2

[[class]]
candidates = 4
shared_unconditional = 0
prefix = 4
deep_cache = { depth = 2, every = 2, first = 4 }

[[class]]
tree = [2, 6]
guidance_from = 3
"""


PUBLISHED = """
[[class]]
published_cache = { attention_from = 2, skip_from = 3, refresh = 4 }
published_reuse = 2
"""


@pytest.fixture
def plan_file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf8")
        return path

    return write


def test_a_request_gets_the_policies_of_the_first_class_that_it_fits(plan_file: Callable[[str], Path]):
    planner = load_planner(plan_file(CLASSES), steps=FIRST_T, depth=DEPTH)
    narrow, wide, more = job(2, 4), job(2, 5), job(5, 4)
    assert planner.name == "mine"
    assert planner.policies(narrow.request) == [SharedUnconditional(2)]
    assert planner.policies(wide.request) == [SharedUnconditional(0), Prefix(4), DeepCache(2, (0, 1, 2, 3, 3))]
    assert planner.policies(more.request) == [Tree((2, 6)), GuidanceFrom(3)]
    for one in (narrow, wide, more):
        assert planner(one.request) == build_plan(one.request, planner.policies(one.request))


def test_the_papers_cache_and_reuse_can_be_served(plan_file: Callable[[str], Path]):
    planner = load_planner(plan_file(PUBLISHED), FIRST_T, DEPTH)
    assert planner.policies(job(3, 6).request) == [PublishedCache(2, 3, DEPTH, 4), PublishedReuse(2)]
    doubled = load_planner(plan_file(PUBLISHED), 2 * FIRST_T, DEPTH)
    assert doubled.policies(job(3, 6).request) == [PublishedCache(1, 1, DEPTH, 4), PublishedReuse(1)]


def test_a_plan_that_shares_attention_maps_is_refused_where_passes_have_one_row(plan_file: Callable[[str], Path]):
    with pytest.raises(InputError, match=r"max_rows is 1, and the plan mine shares .*: raise max_rows to 2 or more"):
        load_planner(plan_file(PUBLISHED), FIRST_T, DEPTH, max_rows=1)
    unused = plan_file(PUBLISHED.replace("reuse = 2", "reuse = 0"))
    assert load_planner(unused, FIRST_T, DEPTH, max_rows=1)(job(3).request).widest == 1


def test_step_numbers_are_scaled_to_the_requests_own_steps(plan_file: Callable[[str], Path]):
    planner = load_planner(plan_file(CLASSES), steps=2 * FIRST_T, depth=DEPTH)  # for twice as many as are asked for
    assert planner.policies(job(2, 4).request) == [SharedUnconditional(1)]
    shared, prefix, cache = planner.policies(job(4, 6).request)
    assert (shared, prefix) == (SharedUnconditional(0), Prefix(2))
    assert cache == DeepCache.every(2, 2, 6, first=2)
    assert planner.policies(job(5, 4).request) == [Tree((1, 3)), GuidanceFrom(1)]


def test_what_fits_no_class_is_run_plain(plan_file: Callable[[str], Path]):
    planner = load_planner(plan_file("[[class]]\ncandidates = 2\nprefix = 1\n"), FIRST_T, DEPTH, max_rows=3)
    assert planner(job(3).request) == plain_plan(job(3).request, 3)


@pytest.mark.parametrize("source", [PLAIN, default_plan("a-pair-without-a-file")])
def test_plain_is_a_plan_and_that_of_pairs_without_one(source: str):
    planner = load_planner(source, FIRST_T, DEPTH)
    assert (planner.name, planner.classes) == (PLAIN, ())
    assert planner(job(3).request) == plain_plan(job(3).request)


@pytest.mark.parametrize("name", ["emoji", "realistic-vision", "sd14", "sd14-tiny", "sdxl", "lcm-sdxl"])
def test_the_plans_that_come_with_it_can_be_read(name: str):
    pair = load_pair(name)
    assert default_plan(name) == name
    assert load_planner(name, pair.steps, depth=9).classes


@pytest.mark.parametrize("name", ["emojy", "", "../plans/emoji", "EMOJI"])
def test_a_name_that_is_no_plan_is_refused_with_those_that_are(name: str):
    with pytest.raises(InputError, match=r"there are plain, emoji, .*, sdxl, or pass") as refused:
        load_planner(name, FIRST_T, DEPTH)
    assert repr(name) in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[class", "the plan mine is no TOML"),
        ("prefix = 3", "must be a list of"),
        ("[class]\nprefix = 3", "must be a list of"),
        ("[[class]]\nsuffix = 3", "class 1: suffix is no policy; known are shared_unconditional, prefix"),
        ("[[class]]\n[[class]]\nprefix = -1", "class 2: prefix is -1"),
        ("[[class]]\nprefix = true", "prefix is True"),
        ("[[class]]\nguidance_from = 1.5", "guidance_from is 1.5"),
        ("[[class]]\ncandidates = 0", "candidates and handoff"),
        ("[[class]]\ntree = [3, 1]", "a rising list"),
        ("[[class]]\ntree = []", "a rising list"),
        ("[[class]]\ndeep_cache = { depth = 2 }", "deep_cache must be"),
        ("[[class]]\ndeep_cache = { depth = 2, every = 0 }", "deep_cache must be"),
        ("[[class]]\ndeep_cache = { depth = 2, every = 2, last = 3 }", "deep_cache must be"),
        ("[[class]]\npublished_cache = { skip_from = 2 }", "published_cache must be"),
        ("[[class]]\npublished_reuse = { until = 2 }", "published_reuse is {'until': 2}"),
        ("[[class]]\ndeep_cache = { depth = 5, every = 2 }", "has depth 5; this UNet has 4 up layers"),
    ],
)
def test_a_plan_that_means_nothing_is_refused_by_name(plan_file: Callable[[str], Path], text: str, said: str):
    with pytest.raises(InputError, match=re.escape(said)):
        load_planner(plan_file(text), FIRST_T, DEPTH)


def test_a_plan_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="cannot be read"):
        load_planner(tmp_path / "absent.toml", FIRST_T, DEPTH)


def served(model: CloudModel, planner: Planner, jobs: Sequence[Job], **options: Any) -> list[Response]:
    """From the engine that a server builds. Requests wait here while it compiles: minutes, on a busy core."""
    patient = {"queue_timeout_s": 600.0, "service_timeout_s": 600.0}
    limits = Limits(max_rows=options.pop("max_rows", 16), **patient)
    engine = step_engine(model, PAIR, limits, planner, **options)
    try:
        return answers(engine, jobs)
    finally:
        engine.close(LIMIT_S)


def planned(planner: Planner, jobs: Sequence[Job]) -> list[Job]:
    return [replace(one, plan=planner(one.request)) for one in jobs]


@pytest.mark.parametrize("text", ["", CLASSES, PUBLISHED], ids=["plain", "policies", "published"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_server_warms_its_engine_up_and_answers(
    model: CloudModel, plan_file: Callable[[str], Path], text: str, deterministic: bool
):
    planner = load_planner(plan_file(text) if text else PLAIN, PAIR.steps, DEPTH, max_rows=16)
    jobs = planned(planner, [job(2, 3), job(3, 4), job(5, 2)])
    together = served(model, planner, jobs, deterministic=deterministic)
    for one, got in zip(jobs, together, strict=True):
        assert_near(got, alone(model, one))
    if deterministic:
        assert together[1].encode() == served(model, planner, [jobs[1]], deterministic=True)[0].encode()


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
def test_compiled_it_answers_the_same(small_folder: Path):
    """With one graph, of one row."""
    small = load_model(PAIR, "cpu", "float32", small_folder)
    planner = load_planner(PLAIN, PAIR.steps, small.layered.depth, max_rows=3)
    jobs = planned(planner, [job(1, 3), job(2, 2)])
    compiled = served(small, planner, jobs, compiled=True, deterministic=True, max_rows=3)
    for one, got in zip(jobs, compiled, strict=True):
        assert_near(got, alone(small, one))


@pytest.mark.slow
def test_as_many_parts_and_sizes_as_are_served_can_be_compiled(small_folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Traced, not compiled: what counts here is that PyTorch does not give up after its default of eight variants."""
    small, whole = load_model(PAIR, "cpu", "float32", small_folder), torch.compile

    @wraps(whole)
    def traced(f: Any, mode: str, **options: Any) -> Any:
        return whole(f, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", traced)
    planner = load_planner(PLAIN, PAIR.steps, small.layered.depth, max_rows=24)
    jobs = planned(planner, [job(1, 1)])
    (got,) = served(small, planner, jobs, compiled=True, max_rows=24)  # nine sizes
    assert_near(got, alone(small, jobs[0]))
