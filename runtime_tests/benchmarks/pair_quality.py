"""How well the embedded pair draws what captions say: cloud alone, device alone, and hybrid at several hand-offs.

    python -m runtime_tests.benchmarks.pair_quality --data DRAWINGS --out docs/results

Captions are those of held-out drawings; the shipped classifier says what a picture shows. Writes pair_quality.json
(`rows`: one a method and split) and pair_quality.svg (quality against k).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from obclip.cloud.denoising import Denoising
from obclip.cloud.engine import run_step
from obclip.cloud.model import CloudModel, load_model
from obclip.cloud.plan import plain_plan
from obclip.core.files import atomic_write_bytes
from obclip.core.noise import initial_noise
from obclip.core.pairs import Pair, load_pair
from obclip.core.schedule import Schedule
from obclip.core.wire import Request
from obclip.edge import Bundle
from obclip.edge.machine import machine
from obclip.edge.sessions import scalar
from obclip.export.classifier import HEADS, Classifier, load_classifier
from obclip.export.classifier.measure import bootstrap, hits, score, worst
from obclip.export.recipe.data import Drawings, load_drawings

SPLITS = ("test_iid", "test_triple", "test_act_gender", "test_act_skin")
HANDOFFS = (2, 5, 10, 15, 20)
GUIDANCES = (1.0, 2.0, 3.5, 5.0, 7.5)
BATCH = 40

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Setting:
    """history: whether the device also gets the cloud's last x0."""

    solver: str
    history: bool
    guidance: float


@dataclass(frozen=True)
class Sides:
    pair: Pair
    cloud: CloudModel
    bundle: Bundle


def choose(drawings: Drawings, split: str, count: int, seed: int) -> list[dict[str, Any]]:
    """`count` rows of a split with different captions, and every child and older portrait besides."""
    rows = list({row["caption"]: row for row in drawings.split(split).rows}.values())
    rare = [row for row in rows if row["age"] != "adult" and row["activity"] == "portrait"]
    others = [row for row in rows if row not in rare]
    picked = np.random.default_rng(seed).permutation(len(others))[:count]
    return rare + [others[i] for i in sorted(picked)]


def cloud_steps(
    sides: Sides, setting: Setting, prompts: list[str], seeds: list[int], keep: tuple[int, ...]
) -> dict[int, tuple[Float32, Float32 | None]]:
    """k -> latents and x0 after k steps, float32 [M, 4, h, w], rounded as on the wire; one noise a prompt."""
    pair, schedule = sides.pair, sides.bundle.schedule(setting.solver, sides.pair.steps)
    request = Request(
        pair=pair.digest, candidates=tuple(prompts), negative_prompt="", seed=0, height=pair.height, width=pair.width,
        steps=pair.steps, handoff=max(keep), guidance=setting.guidance, solver=setting.solver,
    )  # fmt: skip
    plan = plain_plan(request, 64)
    with torch.inference_mode():
        state = Denoising(sides.cloud, pair, request, plan)
        state.x = torch.from_numpy(first(schedule, seeds, pair))
        kept: dict[int, tuple[Float32, Float32 | None]] = {}
        for step in plan.steps:
            run_step(state, step)
            if step.index + 1 in keep:
                assert state.x0 is not None
                kept[step.index + 1] = (state.x.half().float().numpy(), state.x0.half().float().numpy())
    return kept


def first(schedule: Schedule, seeds: list[int], pair: Pair) -> Float32:
    noises = np.stack([initial_noise(seed, pair.latent_shape) for seed in seeds])
    return (np.float32(schedule.initial_scale) * noises).astype(np.float32)


def device_steps(
    bundle: Bundle, steps: int, setting: Setting, prompts: Sequence[str], x: Float32, start: int, x0: Float32 | None
) -> Float32:
    """The device's steps from `start` of `steps` on, for many pictures at once; latents of the last step."""
    schedule = bundle.schedule(setting.solver, steps)
    text = np.concatenate([bundle.encode(prompt)["encoder_hidden_states"] for prompt in prompts])
    empty = np.repeat(bundle.encode("")["encoder_hidden_states"], len(prompts), axis=0)
    unet = bundle.session("unet")
    for i in range(start, schedule.steps):
        t = scalar(float(schedule.timesteps[i]))
        output = unet.run(sample=x, timestep=t, encoder_hidden_states=text)["out_sample"]
        if setting.guidance != 1.0:
            negative = unet.run(sample=x, timestep=t, encoder_hidden_states=empty)["out_sample"]
            output = negative + np.float32(setting.guidance) * (output - negative)
        x, x0 = schedule.step(i, x, output, x0, None)
    return x


def pictures(sides: Sides, setting: Setting, rows: list[dict[str, Any]], methods: list[str]) -> dict[str, np.ndarray]:
    """method -> uint8 [M, H, W, 3] for the captions of `rows`."""
    order = sorted(range(len(rows)), key=lambda i: rows[i]["caption"])
    drawn: dict[str, np.ndarray] = {}
    steps = sides.pair.steps
    handoffs = {m: int(m.split("-")[1]) for m in methods if m.startswith("hybrid")}
    keep = tuple(sorted({*handoffs.values(), *([steps] if "server" in methods else [])}))
    for part in [order[i : i + BATCH] for i in range(0, len(order), BATCH)]:
        prompts, seeds = [rows[i]["caption"] for i in part], [1000 + i for i in part]
        kept = cloud_steps(sides, setting, prompts, seeds, keep) if keep else {}
        for method in methods:
            if method == "server":
                x = kept[steps][0]
            elif method == "device":
                schedule = sides.bundle.schedule(setting.solver, steps)
                x = device_steps(sides.bundle, steps, setting, prompts, first(schedule, seeds, sides.pair), 0, None)
            else:
                latents, x0 = kept[handoffs[method]]
                x = device_steps(
                    sides.bundle, steps, setting, prompts, latents, handoffs[method], x0 if setting.history else None
                )
            images = np.stack([sides.bundle.decode(latent) for latent in x])
            drawn.setdefault(method, np.empty((len(rows), *images.shape[1:]), np.uint8))[part] = images
    return drawn


def measured(judge: Classifier, rows: list[dict[str, Any]], images: np.ndarray) -> dict[str, Any]:
    """Accuracy by attribute with 95 % bootstrap intervals, the worst value of each, and the Fréchet distance."""
    features, odds = judge.run(images)
    said = {name: [judge.labels[name][i] for i in p.argmax(-1)] for name, p in odds.items()}
    result: dict[str, Any] = {"images": len(rows), "frechet": round(judge.distance(features), 3)}
    for head in HEADS:
        right = hits(rows, said, head)
        if np.isnan(right).all():
            continue
        low, high = bootstrap(rows, right, head, np.random.default_rng(0), 200)
        name, lowest = worst(rows, right, head)
        result |= {
            head: _round(score(rows, right, head)),
            f"{head}_low": _round(low),
            f"{head}_high": _round(high),
            f"{head}_worst": [name, _round(lowest)],
        }
    return result


def _round(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 4)


def report(sides: Sides, judge: Classifier, drawings: Drawings, count: int, seed: int) -> list[dict[str, Any]]:
    main = Setting(sides.pair.solver, sides.pair.handoff_history, sides.pair.guidance)
    every = ["server", "device", *(f"hybrid-{k}" for k in HANDOFFS)]
    few = ["server", "device", "hybrid-10"]
    runs = [(main, every), (replace(main, history=not main.history), ["hybrid-5", "hybrid-10"])]
    runs.append((Setting("ddim" if main.solver != "ddim" else "dpm++2m", False, main.guidance), few))
    chosen = {split: choose(drawings, split, count, seed) for split in SPLITS}
    place = {row["id"]: i for i, row in enumerate(drawings.rows)}
    rows = []
    for split, captions in chosen.items():
        real = drawings.images[[place[row["id"]] for row in captions]]
        rows.append({"method": "drawings", "split": split, **measured(judge, captions, real)})
    for setting, methods in runs:
        together: dict[str, list[np.ndarray]] = {}
        for split, captions in chosen.items():
            started = time.perf_counter()
            for method, images in pictures(sides, setting, captions, methods).items():
                together.setdefault(method, []).append(images)
                rows.append({"method": method, "split": split, **vars(setting), **measured(judge, captions, images)})
            print(f"{split}, {setting}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        captions = [row for split in SPLITS for row in chosen[split]]
        for method, parts in together.items():
            images = np.concatenate(parts)
            rows.append({"method": method, "split": "all", **vars(setting), **measured(judge, captions, images)})
    return rows


def sweep(sides: Sides, judge: Classifier, drawings: Drawings, count: int, seed: int) -> list[dict[str, Any]]:
    """Server only, over guidance scales: attributes rise, then pictures leave the drawings' distribution."""
    captions = choose(drawings, "test_triple", count, seed)
    rows = []
    for guidance in GUIDANCES:
        setting = Setting(sides.pair.solver, False, guidance)
        images = pictures(sides, setting, captions, ["server"])["server"]
        rows.append({"method": "server", "split": "test_triple", **vars(setting), **measured(judge, captions, images)})
    return rows


def plot(rows: list[dict[str, Any]], pair: Pair, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    main = [r for r in rows if r.get("solver") == pair.solver and r.get("history") == pair.handoff_history]
    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
    ks = {"device": 0, **{f"hybrid-{k}": k for k in HANDOFFS}, "server": pair.steps}
    for axes, split in zip(panels, ("test_iid", "test_triple"), strict=True):
        found = {r["method"]: r for r in main if r["split"] == split}
        for head in ("gender", "skin", "age", "activity"):
            points = [(k, found[m][head]) for m, k in ks.items() if m in found and found[m].get(head) is not None]
            axes.plot(*zip(*points, strict=True), marker="o", label=head)
        axes.set_title(f"captions of {split}", fontsize=9)
        axes.set_xlabel("k: steps in the cloud, of 25 (0 is device only, 25 server only)", fontsize=8)
    panels[0].set_ylabel("share of pictures that show it")
    panels[0].legend(fontsize=8)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of drawings")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cloud", type=Path, help="a diffusers folder in place of the embedded cloud model")
    parser.add_argument("--bundle", default="emoji", help="a bundle folder in place of the embedded one")
    parser.add_argument("--classifier", type=Path, help="a folder in place of the shipped classifier")
    parser.add_argument("--per-split", type=int, default=80)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    pair = load_pair("emoji")
    sides = Sides(pair, load_model(pair, source=args.cloud), Bundle.open(args.bundle))
    judge, drawings = load_classifier(args.classifier), load_drawings(args.data, pair.height)
    started = time.perf_counter()
    rows = report(sides, judge, drawings, args.per_split, args.seed)
    guidance = sweep(sides, judge, drawings, args.per_split, args.seed)
    result = {
        "machine": machine(),
        "settings": {"per_split": args.per_split, "seed": args.seed, "steps": pair.steps, "pair": pair.name},
        "seconds": round(time.perf_counter() - started),
        "rows": rows,
        "guidance": guidance,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(args.out / "pair_quality.json", (json.dumps(result, indent=1) + "\n").encode())
    plot(rows, pair, args.out / "pair_quality.svg")
    show(rows, guidance, pair)


def show(rows: list[dict[str, Any]], guidance: list[dict[str, Any]], pair: Pair) -> None:
    heads = ("gender", "skin", "age", "activity", "style", "frechet")
    for title, some in (("methods", rows), ("guidance, server only", guidance)):
        print(f"\n{title}\n{'':44}" + "".join(f"{h:>10}" for h in heads))
        for r in some:
            how = f"{r.get('solver', '')} {'+x0' if r.get('history') else ''} g={r.get('guidance', '')}"
            values = "".join(f"{'' if r.get(h) is None else r[h]:>10}" for h in heads)
            print(f"{r['method']:10} {r['split']:16} {how:17}" + values)


if __name__ == "__main__":
    main()
