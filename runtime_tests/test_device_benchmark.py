"""The device benchmark's arithmetic, on runs made up here, and of the committed runs (the docs: `test_docs.py`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime_tests.benchmarks.device.report import peaks, summary, table
from runtime_tests.benchmarks.device.systems import EAGER, SYSTEMS, systems_of

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
OURS = next(s for s in SYSTEMS if s.ours and not s.tiny)
OURS_TINY = next(s for s in SYSTEMS if s.ours and s.tiny)
PEER = next(s for s in SYSTEMS if not s.ours and not s.tiny and s.key != EAGER)


def run(system: str, seconds: float, number: int = 0, k: int = 10) -> dict[str, Any]:
    one = {"k": k, "seconds": seconds, "steps_s": seconds - 1, "decode_s": 1.0, "cpu_s": 2 * seconds}
    return {"system": system, "repeat": number, "runs": [one], "peak_bytes": 10**9 + number}


def test_ratios_are_of_medians_and_each_table_has_its_own(tmp_path: Path):
    runs = [run(EAGER, s, i) for i, s in enumerate((90.0, 100.0, 500.0))]
    runs += [run(PEER.key, 30.0), run(OURS.key, 10.0), run(OURS_TINY.key, 5.0), {"system": "x", "failed": "no"}]
    found = summary(runs, tmp_path, {})
    assert found["ratios"]["10"]["same_decoder"] == {
        "ours": OURS.key, "peer": PEER.key, "best_peer": 3.0, "diffusers_fp32": 10.0,
    }  # fmt: skip
    assert found["ratios"]["10"]["best"]["best_peer"] == 6.0
    assert found["ratios"]["10"]["best"]["diffusers_fp32"] == 20.0
    assert found["failed"] == {"x": "no"}
    eager = next(row for row in found["rows"] if row["system"] == EAGER)
    assert (eager["seconds"], eager["runs"], eager["peak_bytes"]) == (100.0, 3, 10**9 + 2)
    assert "6.0 x the best" in table(found)


def test_without_bfloat16_float32_takes_its_place():
    found = systems_of("small-sd", bf16=False)
    assert not [s.key for s in found if "bf16" in s.key or "bf16" in s.options.values()]
    assert len({s.key for s in found}) == len(found)
    assert {"diffusers fp32, own decoder", "optimum-intel fp32, own decoder"} <= {s.key for s in found}
    assert {s.options["precision"] for s in found if s.ours and "openvino fp32" in s.name} == {"fp32"}
    assert all(s in found for s in systems_of("small-sd") if "bf16" not in s.key)


def test_fidelity_is_of_the_pictures(tmp_path: Path):
    reference = np.zeros((8, 8, 3), np.uint8)
    for key, value in ((EAGER, 0), (OURS.key, 51)):
        name = "".join(c if c.isalnum() else "-" for c in key)
        Image.fromarray(reference + np.uint8(value)).save(tmp_path / f"{name}.10.png")
    found = summary([run(EAGER, 9), run(OURS.key, 3)], tmp_path, {})
    by_system = {row["system"]: row["psnr_db"] for row in found["rows"]}
    assert by_system == {EAGER: 99.0, OURS.key: pytest.approx(20 * np.log10(5), abs=0.05)}


def test_peaks_are_of_the_quickest_way_and_the_smallest_limit():
    def row(seconds: float, peak: int, limit: int | None) -> dict[str, Any]:
        anonymous = {"steps": {"anonymous": peak // 2}}
        return {"seconds": seconds, "peak_bytes": peak, "limit_bytes": limit, "peaks": anonymous}

    rows = [row(9, 100, None), row(5, 200, None), row(9, 60, 80), row(20, 40, 50), {"limit_bytes": 10, "failed": "x"}]
    assert peaks(rows) == {"default": 200, "default_anonymous": 100, "limited": 40, "limit": 50}


def test_the_committed_runs_give_the_committed_ratios():
    found = json.loads((RESULTS / "device.json").read_text())
    again = summary(found["runs"], RESULTS, {})
    assert again["ratios"] == found["ratios"]
    assert set(found["peak_memory_bytes"]) == {"default", "default_anonymous", "limited", "limit"}
