"""The benchmark of faults, in short: real processes, real clients, and complaints that do come."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from runtime_tests.benchmarks.server_faults import SCENARIOS, Load, Scenario, Seen, play


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    load = Load(count=12, at_once=6)
    at_peace = play("nothing", load, tmp_path_factory.mktemp("peace"))
    assert SCENARIOS["nothing"].complaints(at_peace) == []
    assert len(load.reference) == 12
    return load


@pytest.mark.parametrize("name", ["a number is not finite in float32 either", "out of memory"])
def test_clients_see_what_is_promised(load: Load, tmp_path: Path, name: str):
    seen = play(name, load, tmp_path)
    assert SCENARIOS[name].complaints(seen) == []
    assert sum(seen.plain.values()) == sum(seen.device.values()) == 6


def test_what_is_not_promised_is_complained_about():
    allowed = Scenario(plain=("500 internal",), hit=2, exit_code=0)
    seen = Seen("x", Counter({"200": 3, "500 internal": 1, "503 draining": 1}), Counter(picture=4), 0.5, False, 1)
    assert allowed.complaints(seen) == [
        "1 x 503 draining", "an answer is 0.5 off", "the server does not go on", "exit code 1"
    ]  # fmt: skip
    assert "1 clients saw the fault, at least 2 should" in allowed.complaints(Seen("x", Counter({"500 internal": 1})))
