"""The device's faults that export nothing (for the others see test_export_families), and complaints that do come."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime_tests.benchmarks.device_faults import SCENARIOS, Scenario, Seen, play, prepare


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    prepare(folder)
    return folder


@pytest.mark.parametrize("name", [n for n in SCENARIOS if "exporting" not in n])
def test_the_user_sees_what_is_promised(work: Path, name: str):
    assert SCENARIOS[name].complaints(play(name, work)) == []


def test_what_is_not_promised_is_complained_about():
    allowed = Scenario(lambda work, fault: Seen(fault, "", 0, ""), 1, "make room", "nothing")
    assert allowed.complaints(Seen("x", "", 2, "oh", "a half")) == [
        "exit code 2, not 1", "said 'oh', nothing like 'make room'", "left a half, not nothing"
    ]  # fmt: skip
    assert allowed.complaints(Seen("x", "", 1, "so make room", "nothing")) == []
