"""`bench --tune`: what it tries, what it keeps, and that bundles are opened with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from obclip.core.errors import InputError
from obclip.core.files import atomic_write_bytes
from obclip.core.manifest import Variant
from obclip.edge import Bundle
from obclip.edge.providers.base import Opening, Provider
from obclip.edge.remembered import remember
from obclip.edge.timing import time_passes
from obclip.edge.tuning import Tuned, _key, recall, search, tune


def machine_where(passes: Callable[[Opening], Sequence[float]]) -> tuple[Tuned, list[Opening]]:
    tried: list[Opening] = []

    def measure(opening: Opening) -> Sequence[float]:
        tried.append(opening)
        return passes(opening)

    return search("cpu", Opening(), measure), tried


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("obclip.edge.tuning.usable_cores", lambda: 4)


@pytest.mark.usefixtures("four_cores")
def test_each_setting_is_kept_if_it_gains_and_tried_on_top_of_those_kept():
    found, tried = machine_where(
        lambda o: [1.0 - 0.2 * (o.threads == 3) - 0.1 * (not o.spinning) + 0.3 * (not o.arena)] * 5
    )
    assert (found.threads, found.spinning, found.arena) == (3, False, True)
    assert [o.threads for o in tried] == [None, 4, 3, 2, 1, 3, 3, None, 3]
    assert [(o.spinning, o.arena) for o in tried[-4:]] == [(False, True), (False, False), (True, True), (False, True)]
    assert min(found.pass_s.values()) == pytest.approx(0.7)
    assert found.spread == 0


@pytest.mark.usefixtures("four_cores")
def test_threads_that_were_asked_for_are_no_finding():
    assert search("cpu", Opening(threads=2), lambda _: [1.0] * 5).told() == []
    found = search("cpu", Opening(threads=2), lambda o: [1.0 - 0.2 * (o.threads == 3)] * 5)
    assert found.told() == ["tuned (threads 3)"]


def test_what_was_tuned_on_more_cores_is_not_taken_up_on_fewer(monkeypatch: pytest.MonkeyPatch):
    bundle, keys = Bundle.open("emoji"), set()
    variant = bundle.variant("unet", "full")
    assert variant is not None
    for cores in (2, 4):
        monkeypatch.setattr("obclip.edge.tuning.usable_cores", lambda cores=cores: cores)
        keys.add(_key(bundle.manifest, variant, bundle.provider, "fp32"))
    assert len(keys) == 2


def test_a_gain_that_could_be_noise_is_none():
    found, _ = machine_where(lambda o: [1.0 if o == Opening() else 0.98] * 5)
    assert found.told() == []


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_is_never_kept(seed: int):
    """Passes of a millisecond on a busy machine, whose settings differ in nothing."""
    random = np.random.default_rng(seed)
    found, _ = machine_where(lambda o: list(0.001 * random.lognormal(0.05 * random.standard_normal(), 0.2, 50)))
    assert found.told() == []
    assert found.spread > 0.03


@pytest.mark.usefixtures("four_cores")
def test_a_cold_start_is_no_gain_of_what_comes_after():
    count = iter(range(100))
    found, _ = machine_where(lambda o: [2.0 if next(count) == 0 else 1.0] * 5)
    assert found.told() == []
    assert found.pass_s["as it comes"] == 1.0


@pytest.mark.usefixtures("four_cores")
def test_a_gain_beyond_the_spread_is_kept():
    random = np.random.default_rng(0)
    found, _ = machine_where(lambda o: list((0.5 if o.threads == 2 else 1.0) * random.lognormal(0, 0.1, 50)))
    assert found.threads == 2


def test_other_providers_have_threads_alone():
    seen: list[Opening] = []
    search("openvino", Opening(), lambda o: [float(not seen.append(o))])
    assert all(o.spinning and o.arena for o in seen)


def test_what_was_asked_for_stands():
    found = Tuned(3, False, False, {}, 0.0)
    assert found.apply(Opening(threads=2)).threads == 2
    assert found.apply(Opening()) == Opening(threads=3, spinning=False, arena=False)
    assert found.told() == ["tuned (threads 3, no spinning, no arena)"]
    assert found.told(threads=2) == ["tuned (no spinning, no arena)"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OBCLIP_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def quicker(monkeypatch: pytest.MonkeyPatch) -> dict[Opening, float]:
    """Seconds of a pass in settings that are not 1.0."""
    seconds: dict[Opening, float] = {}

    def passes(path: Path, variant: Variant, provider: Provider, opening: Opening, runs: int, s: float) -> list[float]:
        assert (runs >= 5, s >= 1) == (True, True)
        return [seconds.get(opening, 1.0)] * runs

    monkeypatch.setattr("obclip.edge.tuning.time_passes", passes)
    return seconds


BENCH = ("bench", "emoji", "--provider", "cpu", "--runs", "1", "--warmup", "0")


def test_the_command_keeps_what_it_finds_names_it_and_forgets_it(cache: Path, run, quicker: dict):
    quicker[Opening(threads=1)] = 0.5
    quicker[Opening(threads=1, spinning=False)] = 0.4
    code, said, _ = run(*BENCH, "--tune", "--json")
    found = json.loads(said)["tuned"]
    assert (code, found["threads"], found["spinning"], found["arena"]) == (0, 1, False, True)
    assert {"as it comes", "threads 1"} <= set(found["pass_s"])
    bundle = Bundle.open("emoji")
    opened = bundle._opening("unet", "full", "unet/cpu_fp32_full.onnx")
    assert (opened.threads, opened.spinning) == (1, False)
    options = bundle.session("unet", "full")._session.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert bundle.told == "cpu fp32, tuned (threads 1, no spinning)"
    code, said, error = run(*BENCH, "--untune", "--json")
    assert (code, error, "tuned" in json.loads(said)) == (0, "what was tuned is forgotten\n", False)
    assert Bundle.open("emoji").told == "cpu fp32"
    assert run(*BENCH, "--untune")[2] == "nothing was tuned here\n"


def test_where_nothing_gains_what_was_kept_before_goes(cache: Path, run, quicker: dict):
    quicker[Opening(threads=1)] = 0.5
    assert "kept: tuned (threads 1) " in run(*BENCH, "--tune")[1]
    quicker.clear()
    assert "kept: as it comes: no setting gained " in run(*BENCH, "--tune")[1]
    assert Bundle.open("emoji").told == "cpu fp32"


def test_short_passes_are_many():
    bundle = Bundle.open("emoji", provider="cpu")
    full = bundle.variant("unet", "full")
    taken = time_passes(bundle.folder / full.file, full, bundle.provider, Opening(), 2, 0.2)
    assert (sum(taken) >= 0.2, len(taken) >= 2) == (True, True)
    assert len(time_passes(bundle.folder / full.file, full, bundle.provider, Opening(), 2)) == 2


@pytest.mark.parametrize(("usable", "threads"), [(4, 0), (8, 0), (1, 1), (3, 3)])
def test_a_session_has_no_more_threads_than_cores_are_left(usable: int, threads: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr("obclip.core.cores.usable_cores", lambda: usable)
    session = Bundle.open("emoji", provider="cpu", verify=False).session("unet", "full")
    assert session._session.get_session_options().intra_op_num_threads == threads


def test_a_store_that_is_not_ours_is_as_if_there_were_none(cache: Path):
    bundle = Bundle.open("emoji")
    full = bundle.variant("unet", "full")
    key = _key(bundle.manifest, full, bundle.provider, "fp32")
    good = asdict(Tuned(1, True, True, {}, 0.0))
    for said in (None, [], {}, {"a": 1}, good | {"threads": "two"}, good | {"threads": 0}, good | {"arena": 1}):
        atomic_write_bytes(cache / "tuned" / f"{key}.json", json.dumps(said).encode())
        assert recall(bundle.manifest, full, bundle.provider, "fp32") is None
    remember("tuned", key, good)
    assert recall(bundle.manifest, full, bundle.provider, "fp32") == Tuned(1, True, True, {}, 0.0)


def test_a_bundle_without_device_graphs_cannot_be_tuned(cache: Path):
    bundle = Bundle.open("emoji")
    with pytest.raises(InputError, match="--targets"):
        tune(bundle.folder, bundle.manifest, None, bundle.provider, Opening())
