"""The tables and sample sheets of every shipped pair of photographs, once their weights are at hand: one script.

    python -m runtime_tests.benchmarks.real_weights --out results                           # from the hub, on a GPU
    python -m runtime_tests.benchmarks.real_weights --weights FOLDER --clip CLIP --out results   # nothing downloaded

FOLDER holds, for each pair, `PAIR/cloud` and `PAIR/device`: diffusers folders (links will do). For each pair
`table2` runs with portraits from the ten templates, and with captions where --captions names a file; LCM-SDXL is run
with every Δt that the paper tries. Beside the tables lies a sheet of samples: one prompt a row, one method a column. A
pair whose weights are missing is said and left out; the exit code is then 3. A run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from obclip.core.pairs import Pair, load_pair

PAIRS = ("sd14", "sd14-tiny", "realistic-vision", "sdxl", "lcm-sdxl")
SHIFTS = ("0", "4", "10")  # the paper's, beside the pair's own 8


def command(asked: argparse.Namespace, name: str, pair: Pair, prompts: str, out: Path) -> list[str]:
    words = [sys.executable, "-m", "runtime_tests.benchmarks.table2", "--pair", name, "--prompts", prompts]
    words += ["--clip", str(asked.clip), "--out", str(out), "--work", str(out / "work"), "--n", *map(str, asked.n)]
    words += ["--sweep", *map(str, asked.sweep), "--runs", str(asked.runs)]
    for option, value in (
        ("--sets", asked.sets), ("--reference", asked.reference), ("--inception", asked.inception),
        ("--captions", asked.captions if prompts == "captions" else None),
    ):  # fmt: skip
        words += [option, str(value)] if value is not None else []
    if asked.weights is not None:
        words += ["--cloud", str(asked.weights / pair.name / "cloud")]
        words += ["--device", str(asked.weights / pair.name / "device")]
    return words + (["--shifts", *SHIFTS] if pair.timestep_shift else [])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), help="shipped pairs, or pair files")
    parser.add_argument("--weights", type=Path, help="a folder of PAIR/cloud and PAIR/device; default: the hub")
    parser.add_argument("--clip", default="openai/clip-vit-large-patch14", help="a folder or a hub id")
    parser.add_argument("--captions", type=Path, help="COCO-style captions, one a line")
    parser.add_argument("--reference", type=Path, help="a folder of pictures, for FID")
    parser.add_argument("--inception", type=Path, help="torch-fidelity's Inception weights, in a file")
    parser.add_argument("--n", type=int, nargs="+", default=[2, 6, 30])
    parser.add_argument("--sets", type=int)
    parser.add_argument("--sweep", type=int, nargs="*", default=[6])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args(arguments)
    missing = []
    for name in asked.pairs:
        pair = load_pair(name)
        if asked.weights is not None and not (asked.weights / pair.name / "cloud").is_dir():
            print(f"{pair.name}: no weights in {asked.weights / pair.name}; left out", file=sys.stderr)
            missing.append(pair.name)
            continue
        kinds = ["captions"] if asked.captions is not None else []
        for prompts in ("templates", *kinds):
            out = asked.out / pair.name / prompts
            ended = subprocess.run(command(asked, name, pair, prompts, out))
            if ended.returncode != 0:
                print(f"{pair.name}, {prompts}: table2 ended with {ended.returncode}", file=sys.stderr)
                missing.append(pair.name)
    if missing:
        print(f"left out: {', '.join(dict.fromkeys(missing))}", file=sys.stderr)
        sys.exit(3)


if __name__ == "__main__":
    main()
