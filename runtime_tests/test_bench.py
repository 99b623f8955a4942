"""`obclip bench`: every part timed, as `generate` would run it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from obclip.core.pairs import load_pair
from obclip.edge import bench as bench_module
from obclip.edge.steps import PLAIN, default_saving

pytestmark = pytest.mark.usefixtures("traces")


def test_bench_measures_every_part(run, bundle_folder: Path, tmp_path: Path):
    chart = tmp_path / "new" / "chart.svg"
    code, said, _ = run(
        "bench", bundle_folder, "--runs", "2", "--warmup", "1", "--plot", chart, "--threads", "1", "--json"
    )
    report = json.loads(said)
    assert code == 0
    names = [t["name"] for t in report["timings"]]
    assert names == ["text_encoder", "unet step, one branch", "vae_decoder", "end to end, steps 10..24"]
    assert all(0 < t["min_s"] <= t["median_s"] <= t["p90_s"] for t in report["timings"])
    assert set(report["load_s"]) == set(report["first_run_s"]) == {"text_encoder", "unet", "vae_decoder"}
    assert all(set(nodes) == {"CPUExecutionProvider"} for nodes in report["nodes_per_provider"].values())
    assert report["peak_memory_bytes"] > 10**7
    assert "<svg" in chart.read_text()
    code, said, _ = run("bench", bundle_folder, "--runs", "1", "--warmup", "0")
    assert (code, "peak memory" in said) == (0, True)
    assert run("bench", bundle_folder, "--runs", "0")[0] == 2


def test_bench_runs_what_generate_would(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch):
    """The device's own solver and steps, behind the shift, with what the pair leaves out by default."""
    ran = []

    def noted(bundle, schedule, guidance, x, start, seed, saving):
        ran.append((schedule.solver, schedule.steps, start, saving))
        return iter(())

    monkeypatch.setattr(bench_module, "denoise", noted)
    emoji = load_pair("emoji")
    shifted = replace(emoji, solver="lcm", steps=8, handoff=4, timestep_shift=8, device_solver="ddim", device_steps=20)
    for pair, last in ((emoji, "10..24"), (shifted, "12..19"), (replace(emoji, name="own"), "10..24")):
        report = bench_module.run_bench(bundle_folder, pair, runs=1, warmup=0)
        assert report.timings[-1].name == f"end to end, steps {last}"
        assert report.settings["device_steps"] == str(ran[-1][3])
    report = bench_module.run_bench(bundle_folder, emoji, runs=1, warmup=0, handoff=25)
    assert report.timings[-1].name == "end to end, no steps"
    assert report.settings["device_steps"] == "no steps on this device"
    usual = replace(default_saving(load_pair("emoji")), every=1)  # the bundle has no graphs for cached steps
    assert usual != PLAIN
    assert ran == [("dpm++2m", 25, 10, usual), ("ddim", 20, 12, PLAIN), ("dpm++2m", 25, 10, PLAIN)]


def test_bench_refuses_jobs_that_are_none(run, bundle_folder: Path, tmp_path: Path):
    for words, part in (
        (["--handoff", "100"], "handoff"),
        (["--handoff", "0"], "handoff"),
        (["--pair", "sd14"], "--pair"),
        (["--plot", str(tmp_path)], ".png"),
        (["--plot", str(tmp_path / "chart.foo")], "name a file that ends in .png, .svg, .pdf"),
        (["--guided-share", "1.5"], "--guided-share) is 1.5; wanted 0 to 1"),
        (["--whole-every", "0"], "--whole-every) is 0; wanted 1 or more"),
    ):
        code, _, error = run("bench", bundle_folder, *words)
        assert (code in (1, 2), part in error) == (True, True), error


@pytest.mark.parametrize(
    ("seconds", "asked", "counted", "before"),
    [(0.01, None, 20, 3), (8.0, None, 8, 3), (55.0, None, 3, 2), (900.0, None, 3, 1), (55.0, 5, 5, 3)],
)
def test_what_takes_long_runs_less_often(monkeypatch: pytest.MonkeyPatch, seconds, asked, counted, before):
    calls: list[tuple[str, int, int]] = []
    ran = iter(range(1000))

    def timed(call):
        next(ran)
        return seconds, None

    monkeypatch.setattr(bench_module, "_timed", timed)
    timing = bench_module._measure("step", lambda: None, asked, 3, lambda *told: calls.append(told))
    assert timing.runs == len(calls) == counted
    assert next(ran) == counted + before
    assert calls[-1] == ("step", counted, asked or 20)
