"""Models that were opened here before are opened while the cloud works; others before it is asked."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from obclip.core.errors import BundleError, CloudError
from obclip.core.received import Received
from obclip.edge import Bundle, Client, generate
from obclip.edge.job import prepare
from obclip.edge.readiness import Readying, ready

PROMPT = "noto style emoji of a woman cook"
ASKED = dict(seed=3, steps=6, handoff=3)


@pytest.fixture
def large(bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle run as large ones are: by phases, with what providers make of its graphs kept."""
    monkeypatch.setattr("obclip.edge.bundle.PHASED_FROM_BYTES", 0)
    monkeypatch.setattr("obclip.edge.graph_cache.LARGE_BYTES", 0)
    monkeypatch.setenv("OBCLIP_CACHE", str(tmp_path / "cache"))
    shutil.copytree(bundle_folder, tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle")


def test_the_second_start_opens_beside_the_cloud(large: Bundle, cloud_url: str):
    with Client(cloud_url) as client:
        first, second = (generate(PROMPT, bundle=large, client=client, **ASKED) for _ in range(2))
    assert "open" not in first.timings_s
    assert "open" in second.timings_s
    np.testing.assert_array_equal(first.image, second.image)


def test_candidates_leave_while_the_models_open(large: Bundle, cloud_url: str, monkeypatch: pytest.MonkeyPatch):
    with Client(cloud_url) as client:
        generate(PROMPT, bundle=large, client=client, **ASKED)
        left = threading.Event()

        def slow(*given):
            assert left.wait(60), "the candidates waited for the models"
            return ready(*given)

        monkeypatch.setattr("obclip.edge.readiness.ready", slow)
        generate(PROMPT, bundle=large, client=client, sending=left.set, **ASKED)


def test_a_first_start_opens_before_anything_is_sent(large: Bundle, monkeypatch: pytest.MonkeyPatch):
    def broken(*_):
        raise BundleError("no such graph")

    monkeypatch.setattr("obclip.edge.readiness.ready", broken)
    with Client("http://127.0.0.1:9") as client, pytest.raises(BundleError):  # nobody is there: not even asked
        generate(PROMPT, bundle=large, client=client, **ASKED)


def test_what_fails_beside_the_cloud_is_said_and_its_answer_is_kept(
    large: Bundle, cloud_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    saved = tmp_path / "latents"
    with Client(cloud_url) as client:
        generate(PROMPT, bundle=large, client=client, **ASKED)
        left = threading.Event()

        def broken(*_):
            assert left.wait(60)
            raise BundleError("no such graph")

        monkeypatch.setattr("obclip.edge.readiness.ready", broken)
        with pytest.raises(BundleError, match="no such graph"):
            generate(PROMPT, bundle=large, client=client, sending=left.set, save_latents=saved, **ASKED)
    assert Received.load(saved).response.latents.shape[0] == 2


def test_what_has_failed_by_then_stops_the_candidates(large: Bundle, monkeypatch: pytest.MonkeyPatch):
    job = prepare(PROMPT, large, **ASKED)
    ready(job, large)
    large.release()
    began, fail = threading.Event(), threading.Event()

    def broken(*_):
        began.set()
        assert fail.wait(60)
        raise BundleError("no such graph")

    monkeypatch.setattr("obclip.edge.readiness.ready", broken)
    with Readying(job, large, beside=True) as readying:
        assert readying.ahead
        assert began.wait(60)
        readying.check()
        fail.set()
        with pytest.raises(BundleError):
            readying.result()
        with pytest.raises(BundleError):
            readying.check()


def test_a_cloud_that_fails_leaves_a_bundle_that_works(large: Bundle, cloud_url: str):
    with Client(cloud_url) as client:
        wanted = generate(PROMPT, bundle=large, client=client, **ASKED)
    with Client("http://127.0.0.1:9") as nobody, pytest.raises(CloudError):
        generate(PROMPT, bundle=large, client=nobody, **ASKED)
    with Client(cloud_url) as client:
        np.testing.assert_array_equal(generate(PROMPT, bundle=large, client=client, **ASKED).image, wanted.image)


@pytest.mark.parametrize("options", [{"cache": False}, {"threads": 1}])
def test_opened_otherwise_counts_as_not_opened(large: Bundle, options: dict):
    job = prepare(PROMPT, large, **ASKED)
    assert not large.opened_before()
    ready(job, large)
    assert large.opened_before()
    assert not Bundle.open(large.folder, **options).opened_before()
