"""The service against its own description: schemathesis makes requests from it, good ones and bad ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from openapi_hooks import MAX_STEPS
from serving import serving

from obclip.cloud.app import create_app
from obclip.cloud.limits import Limits
from obclip.cloud.model import CloudModel
from obclip.cloud.openapi import document
from obclip.core.pairs import load_pair
from obclip.core.problems import KINDS

PAIR = load_pair("emoji")
TOKEN = "t" * 20
LIMITS = Limits(max_candidates=3, max_steps=MAX_STEPS)


def test_every_operation_does_what_its_description_says(model: CloudModel, tmp_path: Path):
    """All of schemathesis' checks, on examples, boundary values, unknown methods and random requests."""
    with serving(create_app(model, PAIR, LIMITS, TOKEN)) as server:
        command = [
            sys.executable, "-m", "schemathesis.cli", "run", server.url + "/v1/openapi.json",
            "--header", f"Authorization: Bearer {TOKEN}", "--phases", "examples,coverage,fuzzing",
            "--max-examples", "40", "--seed", "1", "--generation-deterministic", "--continue-on-failure",
            "--no-color", "--report", "json", "--report-json-path", str(tmp_path / "report.json"),
        ]  # fmt: skip
        environment = {**os.environ, "SCHEMATHESIS_HOOKS": "openapi_hooks", "PYTHONPATH": str(Path(__file__).parent)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["complete"], report["failures"], report["operations"]["tested"]) == (True, [], 5)
    rates = report["valid_rates"]["POST /v1/denoise"]
    assert sum(r["accepted"] for r in rates.values()) >= 30  # good requests were among them, and were served


def test_the_description_names_every_kind_of_problem(model: CloudModel):
    described = json.loads(document(create_app(model, PAIR).state.service.capabilities(), guarded=True))
    responses = described["paths"]["/v1/denoise"]["post"]["responses"]
    assert set(responses) == {"200", *["401", "403", "408", "409", "413", "415", "422", "429", "500", "503", "504"]}
    named = json.dumps(responses)
    missing = [k for k in KINDS if f"/{k}" not in named]
    assert missing == ["not-found", "method-not-allowed"]  # those belong to no operation
    assert all("Retry-After" in responses[status]["headers"] for status in ("429", "503"))


def test_the_description_is_that_of_this_server(model: CloudModel):
    offer = create_app(model, PAIR, LIMITS).state.service.capabilities()
    described = json.loads(document(offer, guarded=False, metrics_here=False))
    assert "/metrics" not in described["paths"]
    assert "securitySchemes" not in described["components"]
    fields = described["components"]["schemas"]["Request"]["properties"]
    assert (fields["candidates"]["maxItems"], fields["steps"]["maximum"]) == (3, MAX_STEPS)
    assert (fields["pair"]["const"], fields["height"]["const"]) == (PAIR.digest, 64)
