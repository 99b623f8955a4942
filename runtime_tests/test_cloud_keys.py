"""API keys, and what each may use: files, hashes, buckets. Time is the tests' own."""

from __future__ import annotations

import hashlib
import json
import math
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obclip.cloud import auth
from obclip.cloud.auth import ANONYMOUS, Authenticator
from obclip.cloud.keys import Key, add_key, read_keys, remove_key
from obclip.cloud.limits import Rate, RateLimiter, TokenBucket, retry_after
from obclip.core.errors import InputError
from obclip.edge.cli import main


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_key_is_random_and_only_its_hash_is_kept(tmp_path: Path):
    path = tmp_path / "keys.json"
    first, second = add_key(path, "phone-app"), add_key(path, "web.app", Rate(30, 5000))
    assert first != second
    assert min(len(first), len(second)) >= 43  # 256 bits in base64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert first not in text
    assert [hashlib.sha256(k.encode()).hexdigest() in text for k in (first, second)] == [True, True]
    assert [(k.name, k.rate) for k in read_keys(path)] == [("phone-app", Rate()), ("web.app", Rate(30, 5000))]
    assert [p.name for p in tmp_path.iterdir()] == ["keys.json"]


@pytest.mark.parametrize("name", ["", "a b", "é", "x" * 65, "a\nb", "phone-app"])
def test_names_that_cannot_be(tmp_path: Path, name: str):
    add_key(tmp_path / "keys.json", "phone-app")
    with pytest.raises(InputError):
        add_key(tmp_path / "keys.json", name)


ENTRY = {"name": "a", "sha256": "0" * 64}
BAD = {
    "not json": "{",
    "a list": "[]",
    "other version": json.dumps({"version": 2, "keys": []}),
    "no hash": json.dumps({"version": 1, "keys": [{"name": "a"}]}),
    "a key instead of its hash": json.dumps({"version": 1, "keys": [{**ENTRY, "sha256": "obclip_secret"}]}),
    "a rate of nothing": json.dumps({"version": 1, "keys": [{**ENTRY, "requests_per_minute": 0}]}),
    "two of a name": json.dumps({"version": 1, "keys": [ENTRY, ENTRY]}),
    "bytes": "\udcff",
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_none_are_refused_and_not_quoted(tmp_path: Path, name: str):
    path = tmp_path / "keys.json"
    path.write_bytes(BAD[name].encode("utf8", "surrogateescape"))
    with pytest.raises(InputError) as refused:
        read_keys(path)
    assert "secret" not in str(refused.value)
    with pytest.raises(InputError):
        read_keys(tmp_path / "absent.json")


def test_who_is_asking(tmp_path: Path):
    path = tmp_path / "keys.json"
    app = add_key(path, "app", Rate(7, None))
    reader = add_key(path, "prometheus", metrics=True)
    auth = Authenticator("tok", path)
    client = auth.client(f"Bearer {app}")
    assert client is not None
    assert (client.name, client.rate, client.denoise, client.metrics) == ("app", Rate(7, None), True, False)
    watcher = auth.client(f"bearer {reader}")
    assert watcher is not None
    assert (watcher.denoise, watcher.metrics) == (False, True)
    named = add_key(path, "token")
    clients = [Authenticator("tok", path).client(f"Bearer {secret}") for secret in ("tok", named)]
    assert [c and c.name for c in clients] == ["(token)", "token"]  # or they would share a rate and a turn
    for wrong in ("", "Bearer", "Bearer ", f"Basic {app}", app, f"Bearer {app}x", "Bearer töken", "Bearer \udcff"):
        assert auth.client(wrong) is None, wrong
    assert Authenticator().client("") is ANONYMOUS
    assert Authenticator(None, path).client("") is None


def test_keys_come_and_go_while_the_server_runs(tmp_path: Path):
    path, clock = tmp_path / "keys.json", Clock()
    old = add_key(path, "old")
    auth = Authenticator(None, path, clock)
    new = add_key(path, "new")
    remove_key(path, "old")
    assert auth.client(f"Bearer {new}") is None  # looked at most once a second
    clock.now += 1
    assert auth.client(f"Bearer {new}") is not None
    assert auth.client(f"Bearer {old}") is None
    path.write_text("{")
    clock.now += 1
    assert auth.client(f"Bearer {new}") is not None  # a slip of the operator's locks nobody out
    with pytest.raises(InputError, match="no key old"):
        add_key(tmp_path / "other.json", "x")
        remove_key(tmp_path / "other.json", "old")


def test_a_key_that_was_revoked_is_refused_once_the_file_can_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    path, clock = tmp_path / "keys.json", Clock()
    key = add_key(path, "gone")
    guard = Authenticator(None, path, clock)
    remove_key(path, "gone")

    def busy(_: Path) -> None:
        raise InputError("too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(auth, "read_keys", busy)
        for _ in range(3):
            clock.now += 1
            assert guard.client(f"Bearer {key}") is not None
    clock.now += 1
    assert guard.client(f"Bearer {key}") is None
    assert caplog.text.count("keys_unreadable") == 1


def test_a_bucket_says_when_there_is_room_again():
    clock = Clock()
    bucket = TokenBucket(60, clock)  # one a second
    assert [bucket.take(1) for _ in range(60)] == [0.0] * 60
    assert bucket.take(1) == pytest.approx(1.0)
    clock.now += 0.75
    assert bucket.take(1) == pytest.approx(0.25)
    clock.now += 0.25
    assert bucket.take(1) == 0.0
    clock.now += 1e6
    assert [bucket.take(1) for _ in range(61)].count(0.0) == 60  # never more than a minute's worth


def test_a_cost_over_the_whole_bucket_leaves_a_debt():
    clock = Clock()
    bucket = TokenBucket(60, clock)
    assert bucket.take(90) == 0.0
    assert bucket.take(1) == pytest.approx(31.0)
    assert bucket.take(90) == pytest.approx(90.0)
    bucket.give_back(90)
    assert bucket.take(60) == 0.0


@given(
    st.integers(1, 600),
    st.lists(st.tuples(st.floats(0, 100), st.integers(1, 900)), min_size=1, max_size=60),
)
def test_buckets_keep_the_rate_and_their_word(per_minute: int, moves: list[tuple[float, int]]):
    """Never more than the rate allows; and whoever comes back when told is served."""
    clock = Clock()
    bucket, start, taken = TokenBucket(per_minute, clock), clock.now, 0.0
    for pause, cost in moves:
        clock.now += pause
        wait = bucket.take(cost)
        if wait:
            clock.now += int(retry_after(wait)["Retry-After"])
            assert bucket.take(cost) == 0.0
        taken += cost
        most = per_minute + (clock.now - start) * per_minute / 60 + max(0, cost - per_minute)
        assert taken <= most + 1e-6


@given(st.floats(0, 1e6))
def test_retry_after_is_whole_seconds_and_never_too_early(wait: float):
    said = int(retry_after(wait)["Retry-After"])
    assert said >= 1
    assert wait - 1e-6 <= said <= max(1, math.ceil(wait))


def test_clients_do_not_share_buckets_and_new_limits_count_at_once():
    clock = Clock()
    limiter = RateLimiter(clock)
    assert limiter.take_request("a", Rate(1)) == 0.0
    assert limiter.take_request("a", Rate(1)) == pytest.approx(60.0)
    assert limiter.take_request("b", Rate(1)) == 0.0
    assert limiter.take_request("a", Rate(2)) == 0.0
    assert limiter.take_rows("a", Rate(2), 10**9) == 0.0  # no limit on rows


def test_what_is_given_back_can_be_taken_again_by_nobody_else_and_once():
    limiter, rate = RateLimiter(Clock()), Rate(1, 8)
    for client in ("a", "b"):
        assert (limiter.take_request(client, rate), limiter.take_rows(client, rate, 8)) == (0.0, 0.0)
    limiter.give_back_request("a", rate)
    limiter.give_back_rows("a", rate, 8)
    assert [limiter.take_request("a", rate) > 0 for _ in range(2)] == [False, True]
    assert [limiter.take_rows("a", rate, 8) > 0 for _ in range(2)] == [False, True]
    assert limiter.take_request("b", rate) > 0


def test_giving_back_under_limits_of_before_does_not_bring_them_back():
    """A key's file changes while a request is in flight: the bucket of the new limits stays as used as it is."""
    limiter, before, now = RateLimiter(Clock()), Rate(9, 9), Rate(1, 1)
    assert limiter.take_request("a", before) == 0.0
    assert (limiter.take_request("a", now), limiter.take_rows("a", now, 1)) == (0.0, 0.0)
    limiter.give_back_request("a", before)
    limiter.give_back_rows("a", before, 9)
    assert limiter.take_request("a", now) > 0
    assert limiter.take_rows("a", now, 1) > 0


def test_a_request_given_back_from_many_threads_is_never_lost_or_doubled():
    limiter, rate = RateLimiter(Clock()), Rate(4)

    def use() -> None:
        for _ in range(300):
            if limiter.take_request("a", rate) == 0.0:
                limiter.give_back_request("a", rate)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [limiter.take_request("a", rate) for _ in range(5)].count(0.0) == 4


def test_a_key_added_while_the_file_is_first_read_counts_a_second_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, clock, added = tmp_path / "keys.json", Clock(), list[str]()
    add_key(path, "first")

    def read_and_be_overtaken(of: Path) -> tuple[Key, ...]:
        keys = read_keys(of)
        added.append(add_key(of, "second"))
        return keys

    with monkeypatch.context() as patch:
        patch.setattr(auth, "read_keys", read_and_be_overtaken)
        guard = Authenticator(None, path, clock)
    assert guard.client(f"Bearer {added[0]}") is None
    clock.now += 1.5
    client = guard.client(f"Bearer {added[0]}")
    assert client is not None
    assert client.name == "second"


def test_the_command_shows_a_key_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "keys.json"

    def run(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(["keys", *words, "--file", str(path)])
        return int(ended.value.code or 0), capsys.readouterr().out

    code, said = run("add", "phone-app", "--requests-per-minute", "30", "--rows-per-minute", "6000")
    assert code == 0
    client = Authenticator(None, path).client(f"Bearer {said.strip()}")
    assert client is not None
    assert client.rate == Rate(30, 6000)
    code, said = run("list", "--json")
    assert json.loads(said)["keys"] == [
        {"name": "phone-app", "requests_per_minute": 30, "rows_per_minute": 6000, "metrics": False}
    ]
    assert run("add", "phone-app")[0] == 2
    assert run("add", "other", "--requests-per-minute", "0")[0] == 2
    assert run("remove", "phone-app")[0] == 0
    assert run("remove", "phone-app")[0] == 2
