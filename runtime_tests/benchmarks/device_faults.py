"""What a user of the device sees when things break: real processes, one fault at a time.

    python -m runtime_tests.benchmarks.device_faults --json docs/results/device_faults.json

On a small model with random weights, made on the spot. A full disk is a file system of a few hundred kB in a mount
namespace of its own (Linux, `unshare`). Exit code 1 if anybody saw what `SCENARIOS` does not allow.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx

from obclip.core.files import atomic_write_bytes, sha256_file
from obclip.core.manifest import NAME as MANIFEST
from obclip.edge.machine import machine
from obclip.export import export_bundle

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import make_sd_folder

ENVIRONMENT = os.environ | {"COLUMNS": "999"}
CLI = [sys.executable, "-c", "from obclip.edge.cli import main; main()"]
RESUMED = "nothing, then a bundle, done parts taken"
SHORT = ("--runs", "1", "--warmup", "0")
LIMIT_S = 180


@dataclass(frozen=True)
class Seen:
    """code: of exit. said: the complaint, on one line. left: what lies where the result should, or was before."""

    fault: str
    command: str
    code: int
    said: str
    left: str


@dataclass(frozen=True)
class Scenario:
    """play(folder with `model` and `bundle`); `code` and what must be said (a pattern) and left."""

    play: Callable[[Path, str], Seen]
    code: int
    said: str
    left: str = "as it was"

    def complaints(self, seen: Seen) -> list[str]:
        found = []
        if seen.code != self.code:
            found.append(f"exit code {seen.code}, not {self.code}")
        if not re.search(self.said, seen.said):
            found.append(f"said {seen.said!r}, nothing like {self.said!r}")
        if seen.left != self.left:
            found.append(f"left {seen.left}, not {self.left}")
        return found


def disk_full(work: Path, fault: str) -> Seen:
    """An export onto a file system too small; then the same again with room, which goes on with what was done."""
    place, kept = work / "full", work / "again.log"
    place.mkdir()
    steps = (
        f'mount -t tmpfs -o size=300k none {place}; "$@"; code=$?; ls {place} > {work / "left"}; '
        f'mount -o remount,size=100m {place}; "$@" 2> {kept} && ls {place} >> {work / "left"}; exit $code'
    )
    inside = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", steps, "sh")
    code, said = _run((*inside, *CLI, "export", str(work / "model"), str(place / "b")))
    resumed = "done before" in kept.read_text()
    left = "nothing, then " if (work / "left").read_text() == "b\n" else "something, then "
    return Seen(fault, "obclip export model b", code, said.replace(str(place) + "/", ""), left + _taken(resumed))


def killed(work: Path, fault: str) -> Seen:
    """SIGKILL once a part is done; the next export takes that part as it is."""
    out, done = work / "killed", work / ".killed.partial" / ".export" / "text_encoder.json"
    process = subprocess.Popen([*CLI, "export", str(work / "model"), str(out)], stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + LIMIT_S
    while not done.exists():
        if process.poll() is not None or time.monotonic() > limit:
            raise RuntimeError(f"the export ended before it could be killed: {process.communicate()[1]}")
        time.sleep(0.02)  # polling a condition, bounded above
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    left = "something, then " if out.exists() else "nothing, then "
    again = subprocess.run([*CLI, "export", str(work / "model"), str(out)], capture_output=True, text=True, check=True)
    return Seen(
        fault, "obclip export model b", process.returncode, _error(said), left + _taken("done before" in again.stderr)
    )


def damaged_data(work: Path, fault: str) -> Seen:
    bundle = _copy(work)
    data = max(bundle.rglob("*.onnx_data"), key=lambda p: p.stat().st_size)
    with data.open("r+b") as file:
        file.seek(data.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0xFF]))
    return _seen(fault, bundle, "inspect", bundle)


def truncated_data(work: Path, fault: str) -> Seen:
    bundle = _copy(work)
    data = max(bundle.rglob("*.onnx_data"), key=lambda p: p.stat().st_size)
    os.truncate(data, data.stat().st_size // 2)
    return _seen(fault, bundle, "bench", bundle, *SHORT)


def another_manifest(work: Path, fault: str) -> Seen:
    """The manifest of another export: what it lists is not what lies there."""
    bundle = _copy(work)
    values = json.loads((bundle / MANIFEST).read_text())
    next(f for f in values["files"] if f["path"] == "unet/model.onnx")["sha256"] = "0" * 64
    (bundle / MANIFEST).write_text(json.dumps(values))
    return _seen(fault, bundle, "bench", bundle, *SHORT)


def failing_graph(work: Path, fault: str) -> Seen:
    """The UNet loads, and cannot be run: it looks its step up in a table of one row."""
    bundle = _copy(work)
    path = bundle / "unet" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == "timestep":
                node.input[i] = "looked_up"
    model.graph.initializer.append(onnx.helper.make_tensor("table", onnx.TensorProto.FLOAT, [1], [0.0]))
    model.graph.node.insert(0, onnx.helper.make_node("Cast", ["timestep"], ["row"], to=onnx.TensorProto.INT64))
    model.graph.node.insert(1, onnx.helper.make_node("Gather", ["table", "row"], ["looked_up"]))
    onnx.save(model, path)
    values = json.loads((bundle / MANIFEST).read_text())
    entry = next(f for f in values["files"] if f["path"] == "unet/model.onnx")
    entry |= {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    (bundle / MANIFEST).write_text(json.dumps(values))
    return _seen(fault, bundle, "bench", bundle, *SHORT)


def too_little_memory(work: Path, fault: str) -> Seen:
    return _seen(fault, work / "bundle", "bench", work / "bundle", *SHORT, "--memory-limit", "20")


def absent_provider(work: Path, fault: str) -> Seen:
    return _seen(fault, work / "bundle", "bench", work / "bundle", *SHORT, "--provider", "coreml")


SCENARIOS = {
    "the disk is full while exporting": Scenario(disk_full, 1, r"cannot write b .*make room", RESUMED),
    "killed while exporting": Scenario(killed, -9, r"^$", RESUMED),
    "a byte of the weights is another": Scenario(damaged_data, 1, r"unet/model.onnx_data has digest .* altered"),
    "the weights are cut short": Scenario(truncated_data, 1, r"unet/model.onnx_data has \d+ bytes, wanted \d+"),
    "model and manifest disagree": Scenario(another_manifest, 1, r"unet/model.onnx has digest .* altered"),
    "the provider fails at run time": Scenario(failing_graph, 1, r"failed on this model .* try another provider"),
    "the provider is not installed": Scenario(absent_provider, 2, r"'coreml' is not installed here; choose one of cpu"),
    "the memory limit is too small": Scenario(
        too_little_memory, 2, r"needs about \d+ MB at the least, the limit is 20"
    ),
}


def play(name: str, work: Path) -> Seen:
    return SCENARIOS[name].play(work, name)


def prepare(work: Path) -> None:
    """`model`, a diffusers folder, and `bundle`, with its weights beside its graphs as large ones have them."""
    make_sd_folder(work / "model", seed=1)
    export_bundle(work / "model", work / "bundle", external_above_bytes=0)


def _copy(work: Path) -> Path:
    place = work / "damaged"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(work / "bundle", place)
    return place


def _seen(fault: str, bundle: Path, *words: str | Path) -> Seen:
    code, said = _run((*CLI, *map(str, words)))
    shown = " ".join("b" if isinstance(w, Path) else w for w in words)
    return Seen(fault, f"obclip {shown}", code, said.replace(str(bundle), "b"), "as it was")


def _run(command: tuple[str, ...]) -> tuple[int, str]:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=ENVIRONMENT)
    return ended.returncode, _error(ended.stderr)


def _error(stderr: str) -> str:
    """What the program said of itself, on one line; all of it if it complained otherwise."""
    said = " ".join(stderr.split())
    if "Traceback" in said:
        return said
    return said[said.rindex("obclip: ") :] if "obclip: " in said else ""


def _taken(resumed: bool) -> str:
    return "a bundle, done parts taken" if resumed else "a bundle made anew"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows, wrong = [], 0
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for name, scenario in SCENARIOS.items():
            seen = play(name, Path(folder))
            complaints = scenario.complaints(seen)
            wrong += len(complaints)
            print(f"{name}: {seen.command}")
            print(f"    exit code {seen.code}; {seen.said or 'says nothing'}", f"    left: {seen.left}", sep="\n")
            for complaint in complaints:
                print(f"    WRONG: {complaint}")
            rows.append(asdict(seen))
    if asked.json:
        atomic_write_bytes(asked.json, (json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n").encode())
    sys.exit(min(wrong, 1))


if __name__ == "__main__":
    main()
