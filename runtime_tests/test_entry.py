"""The script's entry: what happens before the command line is there."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

# A process started in the background may have been told to ignore interrupts
_INTERRUPTED = """import os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
os.kill(os.getpid(), signal.SIGINT)
time.sleep(30)
"""


def test_an_interrupt_while_modules_are_imported_is_130_and_no_traceback(tmp_path: Path):
    (tmp_path / "typer.py").write_text(_INTERRUPTED)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "obclip", "--version"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "obclip", "--version"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout.strip()


def test_the_script_runs_the_entry():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"obclip": "obclip.__main__:main"}
