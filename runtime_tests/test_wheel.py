"""The wheel as a user gets it: built, installed alone into a clean environment, and run there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import cloud_process

ROOT = Path(__file__).resolve().parent.parent
MAX_WHEEL_BYTES = 90_000_000
CAPTION = "noto style emoji of a woman with dark skin tone"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts folder of an environment that holds the wheel, its base requirements and nothing else."""
    folder = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=120)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    install = [scripts / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    done = subprocess.run(
        [*install, "-c", ROOT / "constraints.txt", wheel], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return scripts


def run(clean: Path, folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """A command of the clean environment, away from the sources."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command = [clean / words[0], *map(str, words[1:])]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_the_wheel_holds_what_it_needs_and_no_more(wheel: Path):
    assert wheel.stat().st_size <= MAX_WHEEL_BYTES
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (n for n in names if n.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    notices = {n.rpartition("/")[2] for n in names if ".dist-info/licenses/" in n}
    assert notices == {"LICENSE", "NOTICE", "THIRD_PARTY_NOTICES.md"}
    for package in ("core", "edge", "cloud", "export"):
        assert f"obclip/{package}/py.typed" in names
    assert "obclip/edge/pairs/emoji/unet/model.onnx" in names
    assert "obclip/cloud/pairs/emoji/unet/diffusion_pytorch_model.safetensors" in names
    assert "obclip/cloud/pairs/emoji/README.md" in names  # the model card travels with the weights
    assert "obclip/export/classifier/classifier.safetensors" in names
    assert "obclip/edge/policies/english.toml" in names
    assert "obclip/__init__.py" not in names
    assert {n.split("/")[0] for n in names} == {"obclip", metadata.split("/")[0]}
    assert "License-Expression: Apache-2.0" in text
    base = [line for line in text.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert not any(word in line for line in base for word in ("torch", "diffusers", "transformers"))


def test_the_base_install_has_no_training_framework_and_names_the_missing_extra(clean: Path, tmp_path: Path):
    packages = "import importlib.util as u; print([m for m in ('torch','diffusers','transformers') if u.find_spec(m)])"
    assert run(clean, tmp_path, "python", "-c", packages).stdout.strip() == "[]"
    doctor = run(clean, tmp_path, "obclip", "doctor", "--json")
    assert doctor.returncode == 0, doctor.stderr
    report = json.loads(doctor.stdout)
    assert (report["bundle"], report["problems"]) == ("whole", [])
    assert "torch" in report["extras"]["cloud"]
    for words, extra in (
        (("serve",), "obclip[cloud]"),
        (("demo",), "obclip[cloud]"),
        (("export", "a", "b"), "export]"),
    ):
        done = run(clean, tmp_path, "obclip", *words)
        assert (done.returncode, extra in done.stderr) == (3, True), done.stderr


def test_a_device_without_torch_draws_with_a_real_cloud(clean: Path, tmp_path: Path):
    """The embedded pair on both sides: this environment's cloud, the clean one's device."""
    with cloud_process(tmp_path) as (url, _):
        words = ("generate", CAPTION, "--cloud", url, "--seed", "7", "--out", "picture.png", "--json")
        done = run(clean, tmp_path, "obclip", *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["candidates"] == 10
    picture = np.asarray(Image.open(tmp_path / "picture.png").convert("RGB")).astype(float)
    assert picture.shape == (64, 64, 3)
    assert picture[:4].mean() > 200  # drawn on white, as all of the pair's drawings are
    assert picture[24:48, 20:44].mean() < 170  # a dark face in the middle
