"""`python -m obclip.export.classifier`: train the judge on the drawings, calibrate it, measure it, write it."""

from __future__ import annotations

import argparse
from pathlib import Path

from obclip.export.classifier.train import train_classifier
from obclip.export.recipe.data import load_drawings
from obclip.export.recipe.train import pick_device


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m obclip.export.classifier", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of drawings (person.jsonl and its sheets)")
    parser.add_argument("--vae", type=Path, required=True, help="the pair's VAE folder: its blur is in the training")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=20261124)
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    args = parser.parse_args()
    train_classifier(
        load_drawings(args.data, 64), args.vae, args.out, steps=args.steps, batch=args.batch, seed=args.seed,
        device=pick_device(args.device),
    )  # fmt: skip


if __name__ == "__main__":
    main()
