"""`obclip serve` as a process: TLS, metrics on a port of their own, logs, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import trustme
from processes import START_LIMIT_S, cloud_process
from serving import LIMIT_S, serving, until

from obclip.cloud.app import create_app
from obclip.cloud.keys import add_key
from obclip.cloud.model import load_model
from obclip.cloud.ray_app import with_absolute_paths
from obclip.cloud.serial import SerialEngine
from obclip.cloud.serve import ServeOptions, run_server
from obclip.cloud.server import Server, listen
from obclip.cloud.tracing import configured_tracer
from obclip.core.errors import InputError, ModelMissingError, RunError
from obclip.core.pairs import load_pair
from obclip.core.schedule import build_schedule
from obclip.core.wire import Request
from obclip.edge import Client

PAIR = load_pair("emoji")
REQUEST = Request(
    pair=PAIR.digest, candidates=("a man", "a woman"), negative_prompt="", seed=5, height=64, width=64, steps=6,
    handoff=2, guidance=3.5, solver="dpm++2m",
)  # fmt: skip
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA, tmp_path: Path) -> tuple[Path, Path]:
    issued = authority.issue_cert("127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    return cert, key


def test_over_tls_the_device_gets_its_latents(large_folder: Path, authority: trustme.CA, tls: tuple[Path, Path]):
    model = load_model(PAIR, "cpu", "float32", large_folder)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with serving(create_app(model, PAIR, token="secret"), tls) as server:
        assert server.url.startswith("https://127.0.0.1:")
        schedule = build_schedule(model.schedule_config, REQUEST.solver, REQUEST.steps)
        with Client(server.url, token="secret", transport=httpx.HTTPTransport(verify=trusting)) as client:
            client.check(PAIR, schedule, 2)
            assert client.denoise(REQUEST, schedule, PAIR.latent_shape).latents.shape == (2, 4, 16, 16)
        with pytest.raises(httpx.ConnectError, match="certificate"):
            httpx.get(server.url + "/healthz")
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(server.url.replace("https", "http") + "/healthz")


def test_certificates_that_are_none_are_refused_before_the_model_is_loaded(tls: tuple[Path, Path], tmp_path: Path):
    cert, key = tls
    for options, said in (
        ({"tls_cert": cert}, "both"),
        ({"tls_key": key}, "both"),
        ({"tls_cert": cert, "tls_key": cert}, "PEM"),
        ({"tls_cert": cert, "tls_key": tmp_path / "absent.pem"}, "PEM"),
    ):
        with pytest.raises(InputError, match=said):
            run_server(ServeOptions(model=tmp_path / "no-model", **options))


def test_options_that_cannot_be_are_refused_before_the_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OBCLIP_TOKEN", raising=False)
    (tmp_path / "keys.json").write_text("{")
    for options in (
        {"keys": tmp_path / "absent.json"},
        {"keys": tmp_path / "keys.json"},
        {"log_level": "loud"},
        {"log_format": "xml"},
        {"queue_timeout_s": 0.0},
        {"body_timeout_s": float("nan")},
        {"max_waiting_rows": 0},
        {"max_held_rows": 32},
        {"plan": "emojy"},
        {"plan": str(tmp_path / "absent.toml")},
    ):
        with pytest.raises(InputError):
            run_server(ServeOptions(model=tmp_path / "no-model", **options))  # type: ignore[arg-type]
    add_key(tmp_path / "good.json", "app")
    with pytest.raises(ModelMissingError):  # keys are enough to be seen from outside
        run_server(ServeOptions(host="0.0.0.0", port=0, model=tmp_path / "no-model", keys=tmp_path / "good.json"))


def test_spans_are_made_only_where_an_endpoint_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)
    assert configured_tracer("1")._provider is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    tracer = configured_tracer("1")
    assert tracer._provider.resource.attributes["service.version"] == "1"
    tracer.close()
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ModelMissingError, match=r"obclip\[otel\]"):
        configured_tracer("1")


def test_a_process_with_keys_serves_drains_and_ends_with_0(large_folder: Path, tmp_path: Path):
    keys = tmp_path / "keys.json"
    bearer = {"authorization": f"Bearer {add_key(keys, 'phone-app')}"}
    arguments = ("--model", str(large_folder), "--keys", str(keys), "--metrics-port", "0", "--log-format", "json")
    with cloud_process(tmp_path, *arguments) as (url, process):
        assert process.stdout is not None
        metrics_url = next(line for line in process.stdout if line.startswith("metrics on")).split()[-1]
        long = replace(REQUEST, steps=100, handoff=100).encode()
        with httpx.Client(base_url=url, headers=bearer, timeout=LIMIT_S) as client:
            with client.stream("POST", "/v1/denoise", content=REQUEST.encode(), headers=JSON) as answer:
                assert answer.status_code == 200
            assert httpx.post(url + "/v1/denoise", content=long, headers=JSON).status_code == 401
            assert client.get("/metrics").status_code == 403
        assert 'obclip_requests_total{outcome="ok"} 1.0' in httpx.get(metrics_url).text
        slow = subprocess.Popen(
            [sys.executable, "-c", ASK, url, bearer["authorization"]],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert slow.stdin is not None
        slow.stdin.write(long)
        slow.stdin.close()
        until(lambda: "obclip_requests_running 1.0" in httpx.get(metrics_url).text)
        process.send_signal(signal.SIGTERM)
        assert slow.stdout is not None
        assert slow.stdout.read() == b"200"
        slow.stdout.close()
        assert (slow.wait(LIMIT_S), process.wait(LIMIT_S)) == (0, 0)
        lines = [json.loads(line) for line in process.stdout if line.startswith("{")]
    assert (lines[0]["pair"], lines[0]["plan"]) == ("emoji", "emoji")
    assert [line["event"] for line in lines] == ["ready", "listening", "denoise", "draining", "denoise", "stopped"]


ASK = """
import sys, httpx
headers = {"content-type": "application/json", "authorization": sys.argv[2]}
print(httpx.post(sys.argv[1] + "/v1/denoise", content=sys.stdin.buffer.read(), headers=headers, timeout=60).status_code,
      end="")
"""

DYING = """
import sys
from pathlib import Path
import torch
whole, flag = torch.nn.Conv2d.forward, Path(sys.argv.pop())
def forward(self, x):
    if flag.exists():
        raise RuntimeError("CUDA error: an illegal memory access was encountered; a woman")
    return whole(self, x)
torch.nn.Conv2d.forward = forward
from obclip.cloud.serve import main
sys.exit(main())
"""


def test_a_process_whose_device_dies_tells_its_client_and_ends_with_1(large_folder: Path, tmp_path: Path):
    flag, ready = tmp_path / "flag", tmp_path / "ready"
    words = ["--port", "0", "--device", "cpu", "--model", str(large_folder), "--ready-file", str(ready), str(flag)]
    process = subprocess.Popen(
        [sys.executable, "-c", DYING, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        until(lambda: ready.exists() or process.poll() is not None)
        flag.touch()
        answer = httpx.post(ready.read_text() + "/v1/denoise", content=REQUEST.encode(), headers=JSON, timeout=LIMIT_S)
        assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (503, "engine-dead")
        said, _ = process.communicate(timeout=LIMIT_S)
        assert process.returncode == RunError.exit_code == 1
        assert "Start the server anew" in said
        assert "woman" not in said
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


FAILING = """
import sys
import torch
def forward(self, x):
    raise MemoryError("a woman")
torch.nn.Conv2d.forward = forward
from obclip.cloud.serve import main
sys.exit(main())
"""


def test_a_process_whose_model_cannot_run_says_why_and_ends_with_1(large_folder: Path, tmp_path: Path):
    ready = tmp_path / "ready"
    words = ["--port", "0", "--device", "cpu", "--model", str(large_folder), "--ready-file", str(ready)]
    ended = subprocess.run(
        [sys.executable, "-c", FAILING, *words], capture_output=True, text=True, timeout=START_LIMIT_S,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ready.exists()) == (RunError.exit_code, "", False)
    assert re.search(
        r'error obclip\.cloud warm_up_failed error=MemoryError where="<string>:\d+ forward <', ended.stderr
    )
    assert "engine_dead" not in ended.stderr  # one cause, one event
    assert "obclip serve: the model failed in its first passes (MemoryError; " in ended.stderr
    assert "lower --max-rows" in ended.stderr
    assert "woman" not in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_application_that_cannot_start_raises_its_own_error(large_folder: Path):
    class Failing(SerialEngine):
        def start(self) -> None:
            raise InputError("max_rows is 1; rows that share a pivot need passes of 2 or more")

    app = create_app(load_model(PAIR, "cpu", "float32", large_folder), PAIR, engine=Failing(lambda job, stop: None))
    with listen("127.0.0.1", 0) as listener, pytest.raises(InputError, match="share a pivot"):
        Server(app, listener).run(sockets=[listener])


def test_a_port_that_somebody_takes_while_the_model_is_loaded_is_named(large_folder: Path):
    app = create_app(load_model(PAIR, "cpu", "float32", large_folder), PAIR)
    with listen("127.0.0.1", 0) as listener, listen("127.0.0.1", listener.getsockname()[1]) as other:
        other.listen()
        with pytest.raises(RunError, match=r"cannot listen at http://127\.0\.0\.1:.*choose another port"):
            Server(app, listener).run(sockets=[listener])


def test_processes_that_start_elsewhere_get_whole_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    files = {name: Path("here") / name for name in ("model", "keys", "tls_cert", "tls_key")}
    found = with_absolute_paths(ServeOptions(pair="mine.toml", plan="plans/ours.toml", **files))
    assert (found.pair, found.plan) == (str(tmp_path / "mine.toml"), str(tmp_path / "plans" / "ours.toml"))
    assert {name: getattr(found, name) for name in files} == {name: tmp_path / path for name, path in files.items()}
    named = ServeOptions(pair="sdxl", plan="plain")
    assert with_absolute_paths(named) == named
