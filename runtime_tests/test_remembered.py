"""What was found once on this machine: entries that processes side by side do not lose."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from obclip.core.errors import RunError
from obclip.edge.remembered import digest, forget, recall, remember


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OBCLIP_CACHE", str(tmp_path))
    return tmp_path


def test_an_entry_is_there_until_it_is_forgotten():
    assert recall("kind", "a") == {}
    remember("kind", "a", {"x": 1})
    assert (recall("kind", "a"), recall("kind", "b"), recall("other", "a")) == ({"x": 1}, {}, {})
    assert (forget("kind", "a"), forget("kind", "a"), recall("kind", "a")) == (True, False, {})


def test_writers_side_by_side_lose_nothing():
    keys = [str(i) for i in range(50)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: remember("kind", key, {"key": key}), keys))
    assert [recall("kind", key) for key in keys] == [{"key": key} for key in keys]


@pytest.mark.parametrize("said", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_an_entry_that_is_not_ours_is_none(cache: Path, said: bytes):
    (cache / "kind").mkdir()
    (cache / "kind" / "a.json").write_bytes(said)
    assert recall("kind", "a") == {}


def test_a_place_that_cannot_be_written_is_named(cache: Path):
    (cache / "kind").write_text("in the way")
    with pytest.raises(RunError, match="kind"):
        remember("kind", "a", {})


def test_a_digest_is_of_values_in_their_order():
    assert digest("a", 1) == digest("a", 1)
    assert len({digest("a", "b"), digest("ab"), digest("b", "a"), digest(["a", "b"])}) == 4
