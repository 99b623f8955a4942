"""`python -m obclip.export.lexicon`: build the device's word lists from WordNet, SCOWL and the US Census."""

from __future__ import annotations

import argparse
from pathlib import Path

from .build import build_lists
from .wordnet import WordNet


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m obclip.export.lexicon", description=__doc__)
    parser.add_argument("--wordnet", type=Path, required=True, help="WordNet 3.0's dict folder (data.noun, index.noun)")
    parser.add_argument("--scowl", type=Path, nargs="+", required=True, help="SCOWL word lists, one word a line")
    parser.add_argument("--rare", type=Path, nargs="+", required=True, help="SCOWL's huge lists")
    parser.add_argument("--common", type=Path, required=True, help="SCOWL's small list: words that typos are tried on")
    parser.add_argument(
        "--names", type=Path, nargs="+", required=True, help="US Census 1990 first names, most used first"
    )
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, lines in build_lists(WordNet(args.wordnet), args.scowl, args.rare, args.common, args.names).items():
        (args.out / f"{name}.txt").write_text("\n".join(lines) + "\n", "utf8")
        print(f"{name}.txt: {len(lines)} words")


if __name__ == "__main__":
    main()
