"""What is computed twice: features from step to step and from candidate to candidate, and where words are looked at.

    python -m runtime_tests.benchmarks.redundancy --out docs/results        # the embedded pair
    python -m runtime_tests.benchmarks.redundancy --pair sd14 --model FOLDER --prompts FILE --out OUT

Writes redundancy.json and redundancy.png: (a) relative change of what enters each up layer since the step before, (b)
its relative distance between candidates, (c) cross-attention of every candidate to the words in which they differ.
(a) says which layers a cache may hold and from which step; (b) until when candidates may share. `choose` turns them
into the numbers of a plan. A model with random weights has no redundancy worth measuring: weights must be real.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from obclip.cloud.attention import cross_attention_layers
from obclip.cloud.denoising import Denoising
from obclip.cloud.engine import run_step
from obclip.cloud.model import CloudModel, load_model
from obclip.cloud.parts import Keep
from obclip.cloud.plan import Branch, Plan, Step, plain_plan
from obclip.core.files import atomic_write_bytes
from obclip.core.pairs import Pair, load_pair
from obclip.edge.machine import machine

from .server_fidelity import candidate_sets, request_for

Float64 = NDArray[np.float64]

# Relative drifts up to which something is reused. On the embedded pair these give the paper's r and s and the plan that
# server_cost found best; for another pair they are where to begin, and its own pictures decide.
ATTENTION_DRIFT = 0.2  # what attention adds, from step r to the hand-off
SKIP_DRIFT = 0.125  # the skips and deep features, from step s to the hand-off
REFRESH_DRIFT = 0.05  # deep features, from one whole pass to the next
LATENTS_APART = 0.1  # candidates' latents from their mean, behind the steps in which one neutral row stands for all


@torch.inference_mode()
def measure(model: CloudModel, pair: Pair, prompts: list[str], seed: int) -> tuple[Float64, Float64, Float64, Float64]:
    """temporal, between: float64 [up layers, T], nan at step 0 of the first. apart: [T], relative distance of the
    candidates' latents from their mean behind each step. maps: [T, N, tokens, pixels], their mean over layers of the
    coarsest attended resolution and heads."""
    request = request_for(pair, prompts, pair.steps, seed)
    depth = model.layered.depth
    keep = Keep(tuple(range(1, depth + 1)))
    plain = plain_plan(request, 4096)
    steps = tuple(Step(s.index, tuple(_keeping(p, keep) for p in s.passes)) for s in plain.steps)
    state = Denoising(model, pair, request, Plan(plain.candidates, steps))
    rows = [r for r in steps[0].rows if r.branch is Branch.CONDITIONAL]
    temporal, between = np.full((depth, pair.steps), np.nan), np.zeros((depth, pair.steps))
    apart = np.zeros(pair.steps)
    before: list[torch.Tensor] | None = None
    with Maps(model, len(steps[0].rows)) as maps:
        for step in steps:
            run_step(state, step)
            apart[step.index] = float((state.x - state.x.mean(0)).norm() / state.x.norm())
            now = [torch.stack([state.features[row, f"up.{i}"].float() for row in rows]) for i in range(depth)]
            for i, feature in enumerate(now):
                size = feature.norm()
                between[i, step.index] = float((feature - feature.mean(0)).norm() / size)
                if before is not None:
                    temporal[i, step.index] = float((feature - before[i]).norm() / size)
            before = now
    half = len(rows)  # the conditional rows come second
    return temporal, between, apart, np.stack(maps.found)[:, -half:]


def choose(temporal: Float64, apart: Float64, k: int) -> dict[str, int]:
    """The paper's r (`cache_from`) and s (`skip_from`), the interval of whole passes (`refresh`), the neutral `prefix`.

    temporal: float64 [up layers, T], whose median over layers counts; apart: [T]. r and s are the first steps from
    which the changes up to hand-off k add up to no more than what is allowed; refresh is the longest interval that
    keeps to it anywhere before k; the prefix is as long as the candidates' latents stay together.
    """
    change = np.nan_to_num(np.median(temporal[:, :k], axis=0))
    left = np.cumsum(change[::-1])[::-1]  # from a step to the hand-off

    def first(drift: float) -> int:
        return next((i for i in range(1, k) if left[i] <= drift), k)

    refresh = 1
    while refresh < k and max(change[i : i + refresh].sum() for i in range(1, k)) <= REFRESH_DRIFT:
        refresh += 1
    return {
        "cache_from": first(ATTENTION_DRIFT), "skip_from": first(SKIP_DRIFT), "refresh": refresh,
        "prefix": next((i for i in range(k) if apart[i] > LATENTS_APART), k),
    }  # fmt: skip


def _keeping(one: Any, keep: Keep) -> Any:
    from dataclasses import replace

    return replace(one, keep=keep)


class Maps:
    """Hooks that write out cross-attention at the coarsest resolution where it is used, one array a step."""

    def __init__(self, model: CloudModel, rows: int) -> None:
        self.layers = cross_attention_layers(model.unet)
        self.found: list[Float64] = []
        self.step: dict[int, list[torch.Tensor]] = {}
        self.handles: list[Any] = []
        self.last = list(self.layers)[-1]

    def __enter__(self) -> Maps:
        for name, layer in self.layers.items():
            self.handles.append(layer.register_forward_hook(self._hook(name), with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _hook(self, name: str) -> Any:
        def hook(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor) -> None:
            x, text = args[0] if args else kwargs["hidden_states"], kwargs["encoder_hidden_states"]
            q, k = (y.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for y in (layer.to_q(x), layer.to_k(text)))
            probabilities = torch.softmax(q @ k.transpose(-1, -2) * layer.scale, dim=-1).mean(1).float()
            self.step.setdefault(x.shape[1], []).append(probabilities.transpose(1, 2))
            if name == self.last:
                coarsest = min(self.step)
                self.found.append(torch.stack(self.step[coarsest]).mean(0).cpu().numpy().astype(np.float64))
                self.step = {}

        return hook


def words_of(model: CloudModel, prompts: list[str]) -> tuple[list[list[str]], list[int]]:
    """Tokens of every prompt, and the places at which they differ."""
    tokenizer = model.text.encoders[0].tokenizer
    ids = tokenizer(prompts, padding="max_length", max_length=model.text.max_tokens).input_ids
    tokens = [[t.removesuffix("</w>") for t in tokenizer.convert_ids_to_tokens(row)] for row in ids]
    longest = max(sum(i != tokenizer.pad_token_id for i in row) for row in ids)
    return tokens, [j for j in range(longest) if len({row[j] for row in tokens}) > 1]


def plot(
    temporal: Float64, between: Float64, maps: Float64, tokens: list[list[str]], places: list[int], k: int, path: Path
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    n, places = len(tokens), places[:4]
    figure = pyplot.figure(figsize=(11, 3 + 1.1 * n), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[3, 1.1 * n])
    for axes, values, title in zip(
        top.subplots(1, 2),
        (temporal, between),
        ("(a) change of an up layer's input since the step before", "(b) distance of candidates from their mean"),
        strict=True,
    ):
        image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0)
        axes.axvline(k - 0.5, color="white", linewidth=1)
        axes.set_title(title + ", relative", fontsize=9)
        axes.set_xlabel("step (white: the hand-off)", fontsize=8)
        axes.set_ylabel("up layer, innermost first", fontsize=8)
        figure.colorbar(image, ax=axes)
    shown = [0, max(k // 2, 1), k - 1]
    grid = bottom.subplots(n, len(shown) * len(places), squeeze=False)
    side = round(maps.shape[-1] ** 0.5)
    for row in range(n):
        for column, axes in enumerate(grid[row]):
            step, place = shown[column // len(places)], places[column % len(places)]
            axes.imshow(maps[step, row, place].reshape(side, -1), cmap="magma")
            axes.set_title(f"step {step}: {tokens[row][place]}", fontsize=7)
            axes.set_axis_off()
    bottom.suptitle("(c) where each candidate looks at the words that differ", fontsize=9)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", default="emoji")
    parser.add_argument("--model", type=Path, help="a diffusers folder in place of the pair's cloud model")
    parser.add_argument("--prompts", type=Path, help="one candidate a line")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    pair = load_pair(args.pair)
    model = load_model(pair, source=args.model)
    prompts = (
        sorted(set(args.prompts.read_text().split("\n")) - {""})
        if args.prompts
        else list(candidate_sets(6, 1, 1)[0].prompts)
    )
    temporal, between, apart, maps = measure(model, pair, prompts, args.seed)
    tokens, places = words_of(model, prompts)
    args.out.mkdir(parents=True, exist_ok=True)
    result = {
        "machine": machine(), "pair": pair.name, "prompts": prompts, "k": pair.handoff,
        "temporal": [[None if np.isnan(v) else round(float(v), 4) for v in row] for row in temporal],
        "between": np.round(between, 4).tolist(), "apart": np.round(apart, 4).tolist(),
        "chosen": choose(temporal, apart, pair.handoff),
    }  # fmt: skip
    atomic_write_bytes(args.out / "redundancy.json", (json.dumps(result) + "\n").encode())
    plot(temporal, between, maps, tokens, places, pair.handoff, args.out / "redundancy.png")
    print(f"{pair.name}, {len(prompts)} candidates, steps 1 to {pair.handoff - 1}, medians over the up layers:")
    for i in range(1, pair.handoff):
        change, features = np.median(temporal[:, i]), np.median(between[:, i])
        print(
            f"step {i:2}: since the step before {change:.3f}, between candidates {features:.3f}, latents {apart[i]:.3f}"
        )
    print("by these: " + ", ".join(f"{name} {value}" for name, value in result["chosen"].items()))
    print(f"the pair's file: cache_from {pair.cache_from}, skip_from {pair.skip_from}")


if __name__ == "__main__":
    main()
