"""From measured redundancy to a plan's numbers, and that the embedded pair's are these."""

from __future__ import annotations

import json
import tomllib
from importlib import resources
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from obclip.core.pairs import load_pair
from runtime_tests.benchmarks.redundancy import choose

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "redundancy.json"


def test_steady_change_and_latents_that_part():
    change = np.tile(np.r_[np.nan, np.full(9, 0.02)], (3, 1))
    apart = np.linspace(0.03, 0.3, 10)  # 0.03 a step
    # 0.2 holds all nine steps, 0.125 the last six; features may be held over two more steps within 0.05, not over three
    assert choose(change, apart, 10) == {"cache_from": 1, "skip_from": 4, "refresh": 3, "prefix": 3}


def test_what_changes_much_is_not_held():
    change = np.full((3, 10), 0.5)
    assert choose(change, np.ones(10), 10) == {"cache_from": 10, "skip_from": 10, "refresh": 1, "prefix": 0}


@given(
    arrays(float, (4, 12), elements=st.floats(0, 0.1)), arrays(float, 12, elements=st.floats(0, 0.3)),
    st.integers(2, 12), st.integers(0, 11),
)  # fmt: skip
def test_more_change_never_reuses_more(change: np.ndarray, apart: np.ndarray, k: int, at: int):
    less, more = choose(change, apart, k), change.copy()
    more[:, at] += 0.05
    found = choose(more, apart + 0.01, k)
    assert found["cache_from"] >= less["cache_from"]
    assert found["skip_from"] >= less["skip_from"] >= less["cache_from"]
    assert found["refresh"] <= less["refresh"]
    assert found["prefix"] <= less["prefix"]


def test_the_embedded_pairs_plan_is_what_was_measured():
    chosen = json.loads(RESULTS.read_text())["chosen"]
    pair = load_pair("emoji")
    plan = tomllib.loads((resources.files("obclip.cloud.plans") / "emoji.toml").read_text())["class"][0]
    assert (chosen["cache_from"], chosen["skip_from"]) == (pair.cache_from, pair.skip_from)
    assert (chosen["prefix"], chosen["refresh"]) == (plan["prefix"], plan["deep_cache"]["every"])
