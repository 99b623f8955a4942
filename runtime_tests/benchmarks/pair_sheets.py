"""Contact sheets of the embedded pair: server only, hybrid at two hand-offs, device only, one prompt a column.

    python -m runtime_tests.benchmarks.pair_sheets --out docs/pictures

Every cloud picture goes through a real cloud process and the whole candidate set, as a user's would.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from obclip.core.pairs import load_pair
from obclip.edge import Bundle, Client, generate
from obclip.edge.demo import device_picture, local_cloud
from obclip.edge.image import contact_sheet, save_png
from obclip.edge.machine import machine

PROMPTS = (
    "noto style emoji of a woman with dark skin tone",
    "fluent style emoji of a man with light skin tone, red hair",
    "twemoji style emoji of an older woman with medium skin tone",
    "noto style emoji of an older man with medium-dark skin tone",
    "fluent 3d style emoji of a girl with medium-light skin tone",
    "noto classic style emoji of a boy with dark skin tone",
    "noto style emoji of a woman firefighter with medium skin tone",
    "fluent 3d style emoji of a man cook with dark skin tone",
    "twemoji style emoji of a woman astronaut with light skin tone",
    "fluent style emoji of a man farmer with medium-dark skin tone",
    "noto style emoji of a woman teacher with light skin tone",
    "fluent flat style emoji of a man artist with medium skin tone",
    "blob style emoji of a woman police officer with dark skin tone",
    "noto style emoji of a man detective with medium skin tone",
    "twemoji style emoji of a man judge with dark skin tone",
    "fluent style emoji of a woman scientist with medium-light skin tone",
    "noto classic style emoji of a woman singer with medium-dark skin tone",
    "fluent flat style emoji of a woman pilot with light skin tone",
    "noto style emoji of a woman health worker with dark skin tone",
    "fluent 3d style emoji of a man superhero with medium skin tone",
    "twemoji style emoji of a woman mage with medium-light skin tone",
    "noto style emoji of a man running with dark skin tone",
    "fluent style emoji of a woman swimming with medium skin tone",
    "emojitwo style emoji of a man with light skin tone, beard",
)
HANDOFFS = (5, 10)
ROWS = ("server only", *(f"hybrid k={k}" for k in HANDOFFS), "device only")


def draw(bundle: Bundle, client: Client, prompt: str, seed: int, guidance: float) -> list[NDArray[np.uint8]]:
    """One picture per row of ROWS, from one seed."""
    steps = load_pair("emoji").steps
    results = [
        generate(prompt, bundle=bundle, client=client, seed=seed, handoff=k, guidance=guidance)
        for k in (steps, *HANDOFFS)
    ]
    return [*(r.image for r in results), device_picture(results[0].job, bundle)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--guidance", type=float, default=load_pair("emoji").guidance)
    args = parser.parse_args()
    bundle, columns, seconds = Bundle.open("emoji"), [], []
    with local_cloud("emoji") as url, Client(url) as client:
        for i, prompt in enumerate(PROMPTS):
            started = time.perf_counter()
            columns.append(draw(bundle, client, prompt, args.seed + i, args.guidance))
            seconds.append(time.perf_counter() - started)
    rows = []
    for start in range(0, len(PROMPTS), 12):
        for r, name in enumerate(ROWS):
            rows.append(
                [(f"{name} {start + c + 1}", column[r]) for c, column in enumerate(columns[start : start + 12])]
            )
    save_png(args.out / "pair_sheet.png", contact_sheet(rows, scale=2), {})
    here = machine()
    print(f"{here['cpu']}, {here['cores']} cores, onnxruntime {here['onnxruntime']}; guidance {args.guidance}")
    print(f"{len(PROMPTS)} prompts, median {statistics.median(seconds):.1f} s for four pictures of each")
    for i, prompt in enumerate(PROMPTS, 1):
        print(f"{i:2} {prompt}")


if __name__ == "__main__":
    main()
