"""What two parties' fixed-point arithmetic does to a picture: every layer's measured error, on every layer at once.

    python -m runtime_tests.benchmarks.crypto.pictures --json docs/results/crypto.json

No whole UNet was run between two parties: one picture would take hours. But every layer shape of the embedded pair's
was, and its largest error to float32 is known. Here each layer of the cloud's UNet, in the clear, gets noise uniform
within that error of its output's largest magnitude, in all steps; the pictures are judged as table2 judges. An error
that were the same in every call, rather than noise, would do more; most elements' errors are smaller than the largest.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from torch import nn

from obclip.cloud.model import CloudModel, load_model
from obclip.cloud.plans import load_planner
from obclip.core.files import atomic_write_bytes
from obclip.core.pairs import load_pair
from obclip.edge import Bundle
from obclip.export.classifier import load_classifier

from ..layers import Shape
from ..table2.devices import BundleDevice
from ..table2.draw import Setup, pictures
from ..table2.methods import SERVER, Method
from ..table2.metrics import EmojiJudge, summary
from ..table2.prompts import emoji_sets

SETS = {2: 40, 6: 16}
Errors = Mapping[tuple[str, Shape], float]


def errors_of(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, Shape], float]:
    """Largest error over the output's largest magnitude, by kind and shape, of what was measured."""
    return {(row["kind"], tuple(row["shape"])): float(row["relative_error"]) for row in rows}


@contextlib.contextmanager
def noisy(model: CloudModel, errors: Errors, seed: int = 0) -> Iterator[set[tuple[str, Shape]]]:
    """In here the model's UNet has them in every layer; gives the layers that it met. KeyError: one was not measured.

    Of several rows in a batch each has a layer's shape for itself.
    """
    random, met = torch.Generator(model.device).manual_seed(seed), set[tuple[str, Shape]]()

    def added(kind: str, shape: Sequence[int], output: torch.Tensor) -> torch.Tensor:
        key = kind, tuple(int(s) for s in shape)
        met.add(key)
        noise = torch.rand(output.shape, generator=random, device=output.device, dtype=output.dtype) * 2 - 1
        return output + noise * errors[key] * output.abs().amax(tuple(range(1, output.ndim)), keepdim=True)

    def behind(module: Any, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        x, rows = args[0], len(output)
        if isinstance(module, nn.Conv2d):
            return added(
                "conv", (module.in_channels, module.out_channels, module.kernel_size[0], *output.shape[-2:]), output
            )
        if isinstance(module, nn.Linear):
            count = output.numel() // module.out_features // rows
            return added("linear", (count, module.in_features, module.out_features), output)
        if isinstance(module, nn.GroupNorm):
            pixels = x.numel() // module.num_channels // rows
            return added("group_norm", (module.num_channels, pixels, module.num_groups), output)
        if isinstance(module, nn.LayerNorm):
            return added("layer_norm", (x.numel() // x.shape[-1] // rows, x.shape[-1]), output)
        if isinstance(module, nn.SiLU):
            return added("silu", (x.numel() // rows,), output)
        return added("geglu", (output.numel() // output.shape[-1] // rows, output.shape[-1]), output)

    def attended(attention: Any, keys: int) -> Any:
        def before(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            x = args[0]
            shape = attention.heads, x.shape[1], keys or x.shape[1], attention.inner_dim // attention.heads
            return (added("attention", shape, x),)

        return before

    kinds = (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm, nn.SiLU, GEGLU)
    hooks = []
    for name, module in model.layered.unet.named_modules():
        if isinstance(module, kinds):
            hooks.append(module.register_forward_hook(behind))
        elif isinstance(module, Attention):
            keys = model.text.max_tokens if name.endswith("attn2") else 0
            hooks.append(module.to_out[0].register_forward_pre_hook(attended(module, keys)))
    try:
        yield met
    finally:
        for hook in hooks:
            hook.remove()


def measure(errors: Errors, n: int, sets: int) -> dict[str, Any]:
    """Of the embedded pair, N candidates a set: what pictures show with the errors, and how far the server's are."""
    pair = load_pair("emoji")
    model = load_model(pair)
    device = BundleDevice(Bundle.open("emoji", threads=1), pair)
    planner = load_planner("emoji", pair.steps, model.layered.depth)
    judge, some = EmojiJudge(load_classifier()), emoji_sets(n, sets, 1)
    plain = pictures(Setup(pair, model, planner, device, some), Method("server only", SERVER))
    with noisy(model, errors) as met:
        shared = pictures(Setup(pair, model, planner, device, some), Method("server only", SERVER))
    base = judge.run(some, plain)
    found = summary(judge, some, judge.run(some, shared), base, shared, plain)
    wanted = summary(judge, some, base, base, plain, plain)
    kept = {name: found[name] for name in ("pictures", "attributes", "worst", "distance", "psnr_db")}
    return kept | {"n": n, "server_attributes": wanted["attributes"], "layers": len(met)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("docs/results/crypto.json"), help="benchmarks.crypto's")
    parser.add_argument("--n", type=int, nargs="+", choices=sorted(SETS), default=sorted(SETS))
    asked = parser.parse_args()
    result = json.loads(asked.json.read_text())
    errors = errors_of(result["semi2k"]["layers"])
    result["semi2k"]["pictures"] = []
    for n in asked.n:
        row = measure(errors, n, SETS[n])
        result["semi2k"]["pictures"].append(row)
        print(
            f"N {n}: attributes {row['attributes']} (server {row['server_attributes']}), distance {row['distance']}, "
            f"{row['psnr_db']} dB"
        )
        atomic_write_bytes(asked.json, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
