"""Two replicas under a local Ray, one of them killed while clients wait."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

pytest.importorskip("ray.serve", reason="Ray is an extra: `make ray` runs these")

from ray import serve

from obclip.cloud.engine import execute
from obclip.cloud.model import CloudModel, load_model
from obclip.cloud.plan import plain_plan
from obclip.cloud.ray_app import Cloud, deployment_settings, ray_cloud
from obclip.cloud.ray_replica import Replica, replicas_wanted
from obclip.cloud.serve import ServeOptions, run_server
from obclip.core.errors import InputError, ModelMissingError, RunError
from obclip.core.pairs import load_pair
from obclip.core.schedule import build_schedule
from obclip.core.wire import DENOISE_PATH, Request, Response
from obclip.edge import Client

PAIR = load_pair("emoji")
REQUEST = Request(
    pair=PAIR.digest, candidates=("a man", "a woman"), negative_prompt="", seed=0, height=64, width=64, steps=12,
    handoff=6, guidance=3.5, solver="dpm++2m",
)  # fmt: skip
TOKEN = "a-token-of-the-test"
HEADERS = {"content-type": "application/json", "authorization": f"Bearer {TOKEN}"}
CLIENTS, EACH, LIMIT_S = 6, 3, 60.0


@pytest.fixture(scope="module")
def cloud(large_folder: Path) -> Iterator[Cloud]:
    options = ServeOptions(
        model=large_folder, device="cpu", dtype="float32", port=0, plan="plain", deterministic=True, replicas=2,
        ray_cpus=0.5, drain_s=5.0,
    )  # fmt: skip
    with ray_cloud(options, TOKEN) as cloud:
        yield cloud


@pytest.fixture(scope="module")
def model(large_folder: Path) -> CloudModel:
    return load_model(PAIR, "cpu", "float32", large_folder)


def expected(model: CloudModel, request: Request) -> Response:
    """One row a pass, as the deterministic engine runs them on a CPU."""
    return execute(plain_plan(request, 1), request, model, PAIR)


def test_the_device_gets_its_latents_and_a_stranger_none(cloud: Cloud, model: CloudModel):
    assert len(cloud.processes()) == 2
    schedule = build_schedule(model.schedule_config, REQUEST.solver, REQUEST.steps)
    with Client(cloud.url, token=TOKEN) as client:
        client.check(PAIR, schedule, 2)
        answer = client.denoise(REQUEST, schedule, PAIR.latent_shape)
    assert np.array_equal(answer.latents, expected(model, REQUEST).latents)
    assert httpx.post(cloud.url + DENOISE_PATH, content=b"{}").status_code == 401
    assert httpx.get(cloud.url + "/healthz").status_code == 200
    assert httpx.get(cloud.url + "/metrics", headers=HEADERS).status_code == 404  # of which replica?


def test_a_replica_killed_under_load_loses_nothing_that_a_retry_does_not_repair(cloud: Cloud, model: CloudModel):
    requests = [replace(REQUEST, seed=seed) for seed in range(CLIENTS * EACH)]
    failures: list[tuple[int, str]] = []
    answered = threading.Semaphore(0)

    schedule = build_schedule(model.schedule_config, REQUEST.solver, REQUEST.steps)

    def ask(request: Request) -> bytes:
        if request.seed % 3 == 0:  # the device's client hides what happened
            with Client(cloud.url, token=TOKEN, patience_s=LIMIT_S) as client:
                return client.denoise(request, schedule, PAIR.latent_shape).encode()
        body, until_s = request.encode(), time.monotonic() + LIMIT_S
        while time.monotonic() < until_s:
            try:
                answer = httpx.post(cloud.url + DENOISE_PATH, content=body, headers=HEADERS, timeout=LIMIT_S)
            except httpx.TransportError as error:
                failures.append((request.seed, type(error).__name__))
            else:
                if answer.status_code == 200:
                    answered.release()
                    return answer.content
                assert answer.status_code >= 500 or answer.status_code == 429, answer.text
                failures.append((request.seed, str(answer.status_code)))
            time.sleep(0.2)  # a client's pause between tries, bounded above
        raise AssertionError(f"seed {request.seed} was never answered: {failures}")

    before = set(cloud.processes())
    with ThreadPoolExecutor(CLIENTS) as pool:
        asked = [pool.submit(ask, request) for request in requests]
        assert answered.acquire(timeout=LIMIT_S)
        until_s = time.monotonic() + LIMIT_S
        while max((busy := cloud.processes()).values()) < 2:
            assert time.monotonic() < until_s
            time.sleep(0.01)  # polling a condition, bounded above
        victim = max(busy, key=lambda process: busy[process])
        assert victim in before
        os.kill(victim, signal.SIGKILL)
        answers = [future.result(timeout=LIMIT_S) for future in asked]
    print(f"{len(answers)} answered; refused or broken on the way: {failures}")
    for request, body in zip(requests, answers, strict=True):
        got = Response.decode(body, request, PAIR.latent_shape)
        assert np.array_equal(got.latents, expected(model, request).latents)
    # whoever was in work in the killed replica heard of it
    assert failures

    until_s = time.monotonic() + LIMIT_S
    while len(now := set(cloud.processes())) < 2 or victim in now:
        assert time.monotonic() < until_s, "the replica was not replaced"
        time.sleep(0.2)  # polling a condition, bounded above
    assert before - {victim} < now


def test_draining_finishes_what_is_in_work_and_refuses_the_rest(cloud: Cloud, model: CloudModel):
    long = replace(REQUEST, steps=60, handoff=60)

    def post(request: Request) -> httpx.Response:
        return httpx.post(cloud.url + DENOISE_PATH, content=request.encode(), headers=HEADERS, timeout=LIMIT_S)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(post, long)
        until_s = time.monotonic() + LIMIT_S
        while not any(cloud.processes().values()):
            assert time.monotonic() < until_s
            time.sleep(0.01)  # polling a condition, bounded above
        cloud.drain(LIMIT_S)
        assert running.result(timeout=LIMIT_S).status_code == 200
    refused = post(REQUEST)
    assert (refused.status_code, refused.json()["type"].rpartition("/")[2]) == (503, "draining")
    assert refused.headers["retry-after"]


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModelMissingError, match=r"obclip\[cloud,ray\]"), ray_cloud(ServeOptions(port=0), None):
        pass


def test_other_hosts_are_refused_without_a_key_and_replicas_must_be_a_number(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OBCLIP_TOKEN", raising=False)
    for options, said in (
        (ServeOptions(host="0.0.0.0"), "reachable from outside"),
        (ServeOptions(replicas=0), "wanted 1"),
        (ServeOptions(replicas=3, max_replicas=2), "3 to 2"),
    ):
        with pytest.raises(InputError, match=said):
            run_server(replace(options, ray=True))


def test_ray_takes_the_settings_and_not_its_defaults():
    options = ServeOptions(replicas=2, max_replicas=4, max_held_rows=80, max_waiting=7, drain_s=90.0)
    made = serve.deployment(**deployment_settings(options, gpus=True))(serve.ingress()(Replica))
    assert (made.max_ongoing_requests, made.max_queued_requests) == (10 + 7, 7)
    assert made.ray_actor_options["num_gpus"] == 1
    config = made._deployment_config
    assert (config.autoscaling_config.min_replicas, config.autoscaling_config.max_replicas) == (2, 4)
    assert config.autoscaling_config.target_ongoing_requests == 10
    chosen = config.autoscaling_config.policy.get_policy()  # Ray unpickles a copy of it
    assert (chosen.__module__, chosen.__name__) == (replicas_wanted.__module__, replicas_wanted.__name__)
    assert config.graceful_shutdown_timeout_s == 100.0
    assert deployment_settings(ServeOptions(ray_cpus=2.0), gpus=False)["ray_actor_options"] == {"num_cpus": 2.0}


@pytest.mark.parametrize("state", ["ready", "draining", "dead"])
def test_only_a_dead_engine_makes_ray_replace_the_replica(state: str):
    replica = Replica.__new__(Replica)
    replica._service = SimpleNamespace(state=state)
    with pytest.raises(RunError) if state == "dead" else nullcontext():
        replica.check_health()


@pytest.mark.parametrize(
    ("waiting", "requests", "wanted"),
    [({}, 0, 0), ({"a": 0.0, "b": 0.0}, 25, 3), ({"a": 0.0, "b": 40.0}, 5, 3), ({"a": 8.0}, 45, 5)],
)
def test_a_replica_is_added_while_rows_wait(waiting: dict[str, float], requests: float, wanted: int):
    seen = SimpleNamespace(
        aggregated_metrics={"rows_waiting": waiting} if waiting else {}, total_num_requests=requests,
        current_num_replicas=2, config=SimpleNamespace(target_ongoing_requests=10),
    )  # fmt: skip
    assert replicas_wanted(seen) == (wanted, {})
