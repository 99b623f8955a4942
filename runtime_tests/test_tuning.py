"""`bench --tune`: what it tries, what it keeps, and that bundles are opened with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest

from obclip.core.errors import InputError
from obclip.edge import Bundle
from obclip.edge.cli import main
from obclip.edge.providers.base import Opening
from obclip.edge.tuning import Tuned, recall, search, tune


def machine_where(seconds: Callable[[Opening], float]) -> tuple[Tuned, list[Opening]]:
    tried: list[Opening] = []

    def measure(opening: Opening) -> float:
        tried.append(opening)
        return seconds(opening)

    return search("cpu", Opening(), measure), tried


def test_each_setting_is_kept_if_it_gains_and_tried_on_top_of_those_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("obclip.edge.tuning.usable_cores", lambda: 4)
    found, tried = machine_where(lambda o: 1.0 - 0.2 * (o.threads == 3) - 0.1 * (not o.spinning) + 0.3 * (not o.arena))
    assert (found.threads, found.spinning, found.arena) == (3, False, True)
    assert [o.threads for o in tried] == [None, 4, 3, 2, 1, 3, 3]
    assert [(o.spinning, o.arena) for o in tried[-2:]] == [(False, True), (False, False)]
    assert min(found.pass_s.values()) == pytest.approx(0.7)


def test_a_gain_that_could_be_noise_is_none():
    found, _ = machine_where(lambda o: 1.0 if o.threads is None and o.spinning and o.arena else 0.98)
    assert (found.threads, found.spinning, found.arena) == (None, True, True)


def test_other_providers_have_threads_alone():
    seen: list[Opening] = []
    search("openvino", Opening(), lambda o: float(not seen.append(o)))
    assert all(o.spinning and o.arena for o in seen)


def test_what_was_asked_for_stands():
    found = Tuned(3, False, False, {})
    assert found.apply(Opening(threads=2)).threads == 2
    assert found.apply(Opening()) == Opening(threads=3, spinning=False, arena=False)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OBCLIP_CACHE", str(tmp_path))
    return tmp_path


def test_the_command_keeps_what_it_finds_and_the_next_bundle_is_opened_with_it(cache: Path, capsys, monkeypatch):
    with pytest.raises(SystemExit) as end:
        main(["bench", "emoji", "--provider", "cpu", "--tune", "--runs", "1", "--warmup", "0", "--json"])
    assert end.value.code == 0
    (kept,) = json.loads((cache / "tuned.json").read_text()).values()
    assert "as it comes" in kept["pass_s"]
    assert "threads 1" in kept["pass_s"]
    kept["threads"], kept["spinning"] = 1, False
    stored = json.loads((cache / "tuned.json").read_text())
    (cache / "tuned.json").write_text(json.dumps(dict.fromkeys(stored, kept)))
    bundle = Bundle.open("emoji")
    opened = bundle._opening("unet", "full", "unet/cpu_fp32_full.onnx")
    assert (opened.threads, opened.spinning) == (1, False)
    options = bundle.session("unet", "full")._session.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert isinstance(options, onnxruntime.SessionOptions)


@pytest.mark.parametrize(("usable", "threads"), [(4, 0), (8, 0), (1, 1), (3, 3)])
def test_a_session_has_no_more_threads_than_cores_are_left(usable: int, threads: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr("obclip.core.cores.usable_cores", lambda: usable)
    session = Bundle.open("emoji", provider="cpu", verify=False).session("unet", "full")
    assert session._session.get_session_options().intra_op_num_threads == threads


def test_a_store_that_is_not_ours_is_as_if_there_were_none(cache: Path):
    bundle = Bundle.open("emoji")
    full = bundle.variant("unet", "full")
    for said in ("", "[]", "{}", '{"a": 1}'):
        (cache / "tuned.json").write_text(said)
        assert recall(bundle.manifest, full, bundle.provider, "fp32") is None


def test_a_bundle_without_device_graphs_cannot_be_tuned(cache: Path):
    bundle = Bundle.open("emoji")
    with pytest.raises(InputError, match="--targets"):
        tune(bundle.folder, bundle.manifest, None, bundle.provider, Opening())
