"""`python -m obclip.export.audit_recipe`: train the audit model, calibrate it, measure it, write it with its card."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from obclip.export.audit_recipe.train import train_audit


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m obclip.export.audit_recipe", description=__doc__)
    parser.add_argument("--captions", type=Path, required=True, help="JSON lines with the text under prompt or caption")
    parser.add_argument("--out", type=Path, required=True, help="folder for model.safetensors and card.json")
    parser.add_argument("--source", default="", help="whose captions these are and their licence, for the card")
    parser.add_argument("--associations", type=Path, help="a TOML file in place of the shipped judgements")
    args = parser.parse_args()
    card = train_audit(args.captions, args.out, args.source, args.associations)
    for head in card["heads"]:
        print(json.dumps({k: head[k] for k in ("attribute", "values", "held_out") if k in head}))


if __name__ == "__main__":
    main()
