"""Resolve the base install for platforms other than this one, from wheels alone. Run: `make platforms`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLATFORMS = {
    "macOS arm64": ["macosx_14_0_arm64", "macosx_13_0_arm64", "macosx_12_0_arm64", "macosx_11_0_arm64"],
    "Windows x86-64": ["win_amd64"],
    "Linux arm64": [
        "manylinux_2_28_aarch64",
        "manylinux_2_27_aarch64",
        "manylinux_2_17_aarch64",
        "manylinux2014_aarch64",
    ],
}


def resolve(tags: list[str], requirements: list[str], python: str) -> tuple[int, str]:
    """pip's exit code, and the wheels chosen or the end of its error. Environment markers stay the host's."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "-q", "--dry-run"]
        command += ["--ignore-installed", "--only-binary=:all:", "--target", folder, "--report", str(report)]
        command += ["--python-version", python, "--implementation", "cp"]
        command += [word for tag in tags for word in ("--platform", tag)]
        done = subprocess.run([*command, *requirements], capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            return done.returncode, done.stderr.strip()[-400:]
        items = json.loads(report.read_text())["install"]
        return 0, " ".join(sorted(f"{i['metadata']['name']}=={i['metadata']['version']}" for i in items))


def main() -> int:
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    failures = 0
    for name, tags in PLATFORMS.items():
        code, text = resolve(tags, requirements, "3.12")
        failures += code != 0
        print(f"{name}: {'ok' if code == 0 else 'FAILED'}\n  {text}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
