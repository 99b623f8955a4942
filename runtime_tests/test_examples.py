"""The files in examples/ do what their heads say."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from processes import cloud_process

from obclip.core.pairs import load_pair

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def embedded_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with cloud_process(tmp_path_factory.mktemp("cloud")) as (url, _):
        yield url


def test_private_picture(embedded_cloud: str, tmp_path: Path):
    out = tmp_path / "picture.png"
    done = run(EXAMPLES / "private_picture.py", "noto style emoji of a woman with dark skin tone", out, embedded_cloud)
    assert done.returncode == 0, done.stderr
    assert "one of 10 candidates" in done.stdout
    assert Image.open(out).size == (64, 64)
    refused = run(EXAMPLES / "private_picture.py", "Mrs Smith", tmp_path / "none.png", embedded_cloud)
    assert (refused.returncode, (tmp_path / "none.png").exists()) == (6, False)
    assert "nothing was sent" in refused.stderr


def test_check_prompts(tmp_path: Path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a portrait of an old man\na castle\nMrs Smith\n\n")
    done = run(EXAMPLES / "check_prompts.py", prompts)
    assert done.returncode == 0, done.stderr
    assert "N =  6   a portrait of an old man: gender, age" in done.stdout
    assert done.stdout.endswith("1 hidden, 1 public, 1 refused\n")


def test_a_pair_of_ones_own():
    assert load_pair(str(EXAMPLES / "my_pair.toml")).latent_shape == (4, 64, 64)


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_export_and_bench(small_folder: Path, tmp_path: Path):
    import os

    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [EXAMPLES / "export_and_bench.sh", small_folder, tmp_path / "bundle", "emoji"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "end to end, steps 10..24" in done.stdout
    assert (tmp_path / "bundle-bench.svg").stat().st_size > 1000
