"""`python -m obclip.export.recipe`: train the embedded pair, stage by stage, from where the last run stopped."""

from __future__ import annotations

import argparse
import shutil
import tomllib
from pathlib import Path

from .data import load_drawings
from .train import pick_device

STAGES = ("vae", "unet", "small", "save")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m obclip.export.recipe", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of drawings (person.jsonl and its sheets)")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints, log, sheets and the finished folders")
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("emoji.toml"))
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument(
        "--init", type=Path, help="a finished large model's folder that the first two stages go on from, or are left to"
    )
    args = parser.parse_args()

    config = tomllib.loads(args.config.read_text())
    device, seed = pick_device(args.device), config["seed"]
    drawings = load_drawings(args.data, config["px"])
    args.out.mkdir(parents=True, exist_ok=True)
    if args.init is not None:
        for stage, parts in (("vae", ["vae"]), ("unet", ["tokenizer", "text_encoder", "unet"])):
            for part in [] if stage in args.stages else parts:
                shutil.copytree(args.init / part, args.out / part, dirs_exist_ok=True)
    if "vae" in args.stages:
        from .vae import train_vae

        train_vae(config["vae"], seed, drawings, args.out, device, args.init).save_pretrained(args.out / "vae")
    if "unet" in args.stages:
        from .diffusion import train_large

        train_large(config, seed + 1, drawings, args.out, device, args.init)
    if "small" in args.stages:
        from .distill import train_small

        train_small(config, seed + 2, drawings, args.out, device)
    if "save" in args.stages:
        from .save import save_pair

        save_pair(config, args.out)


if __name__ == "__main__":
    main()
