"""Fixtures that several test files share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # tests import their helpers (tiny.py) by name


settings.register_profile("patient", deadline=None)  # how long an example takes is the machine's business
settings.load_profile("patient")


def _take_a_core(worker: str) -> None:
    """Of several workers each has a core of its own: threads that wait awake would take the others' time.

    Before torch is imported, which makes as many threads as it finds cores: two on one core wait for each other.
    """
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    assert "torch" not in sys.modules
    _take_a_core(os.environ["PYTEST_XDIST_WORKER"])

from processes import cloud_process  # noqa: E402
from tiny import make_sd_folder  # noqa: E402

if TYPE_CHECKING:
    from obclip.cloud.model import CloudModel


@pytest.fixture(scope="session")
def large_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sd_folder(tmp_path_factory.mktemp("large"), layers=2, seed=0)


@pytest.fixture(scope="module")
def model(large_folder: Path) -> CloudModel:
    """The large folder as the emoji pair's cloud model; of a file's own, for some tests break it."""
    from obclip.cloud.model import load_model
    from obclip.core.pairs import load_pair

    return load_model(load_pair("emoji"), "cpu", "float32", large_folder)


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sd_folder(tmp_path_factory.mktemp("small"), layers=1, mid=False, seed=1)


@pytest.fixture(scope="session")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """From here on each model is traced once a session (traces.py), whichever worker needs it first."""
    from traces import kept

    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "traces"
    folder.mkdir(exist_ok=True)
    with kept(folder):
        yield


@pytest.fixture(scope="session")
def bundle_folder(small_folder: Path, traces: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small folder's device bundle, weights stored as float16 like the embedded one's."""
    from obclip.export import export_bundle

    out = tmp_path_factory.mktemp("bundle") / "small"
    export_bundle(small_folder, out, weights="fp16")
    return out


@pytest.fixture(scope="session")
def cloud_url(large_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real cloud process that runs the large folder as the emoji pair's cloud model."""
    with cloud_process(tmp_path_factory.mktemp("cloud"), "--model", str(large_folder)) as (url, _):
        yield url


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Run the command line in this process: exit code, stdout, stderr."""

    from obclip.edge.cli import main

    def call(*words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(w) for w in words])
        said = capsys.readouterr()
        return end.value.code, said.out, said.err

    return call
