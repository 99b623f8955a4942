"""How near a pass of the UNet is to the floor that this machine's own rates give, shape by shape.

    python -m runtime_tests.benchmarks.device_floor --bundle BUNDLE --json docs/results/device_floor.json

Every convolution, linear layer and attention of the UNet is run alone, in bfloat16 and in int8, by PyTorch's oneDNN
kernels on arrays that are in the cache where they fit; the least of many runs counts (attention: of one operator and of
two products), times how often the UNet has the shape. A runtime whose kernels are better than PyTorch's is below it;
`peak_floor_s` is what all of it would take at the rate of a square product of 2048. Norms, activations and what moves
data count as nothing. In int8 graphs attention's products stay float: they count as bfloat16's there. Beside it the
pass itself, on each runtime, in turns.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel

from obclip.core.files import atomic_write_bytes
from obclip.edge import Bundle
from obclip.edge.machine import machine

from .architectures import DEVICE_UNETS, TOKENS
from .layers import Layer, layers_of

WAYS = (("openvino", "bf16"), ("openvino", "int8"), ("cpu", "int8"))
SECONDS_A_SHAPE = 0.4


def least_s(function: Callable[[], Any]) -> float:
    """The least of as many runs as fit into SECONDS_A_SHAPE, five at least, after two."""
    function()
    function()
    taken: list[float] = []
    until = time.perf_counter() + SECONDS_A_SHAPE
    while len(taken) < 5 or time.perf_counter() < until:
        started = time.perf_counter()
        function()
        taken.append(time.perf_counter() - started)
    return min(taken)


def _conv(layer: Layer, kind: str) -> Callable[[], Any]:
    c_in, c_out, k, h, w = layer.shape
    x = torch.randn(1, c_in, h, w).contiguous(memory_format=torch.channels_last)
    weight, pad = torch.randn(c_out, c_in, k, k) * 0.05, [k // 2, k // 2]
    if kind == "bf16":
        a, b = x.bfloat16(), weight.bfloat16().contiguous(memory_format=torch.channels_last)
        return lambda: torch.nn.functional.conv2d(a, b, padding=pad)
    q = torch.quantize_per_tensor(x, 0.05, 128, torch.quint8)
    scales, zeros = torch.full((c_out,), 0.002, dtype=torch.double), torch.zeros(c_out, dtype=torch.long)
    packed = torch.ops.quantized.conv2d_prepack(
        torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8), None, [1, 1], pad, [1, 1], 1
    )
    return lambda: torch.ops.quantized.conv2d(q, packed, 0.1, 128)


def _linear(layer: Layer, kind: str) -> Callable[[], Any]:
    rows, c_in, c_out = layer.shape
    x, weight = torch.randn(rows, c_in), torch.randn(c_out, c_in) * 0.05
    if kind == "bf16":
        a, b = x.bfloat16(), weight.bfloat16()
        return lambda: torch.nn.functional.linear(a, b)
    q = torch.quantize_per_tensor(x, 0.05, 128, torch.quint8)
    scales, zeros = torch.full((c_out,), 0.002, dtype=torch.double), torch.zeros(c_out, dtype=torch.long)
    packed = torch.ops.quantized.linear_prepack(torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8), None)
    return lambda: torch.ops.quantized.linear(q, packed, 0.1, 128)


def _attention(layer: Layer) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Its two products, weights written out but not normalised; and as one operator, which keeps them in the cache."""
    heads, queries, keys, width = layer.shape
    q, k, v = (torch.randn(1, heads, n, width).bfloat16() for n in (queries, keys, keys))
    back = k.transpose(-1, -2)
    return lambda: (q @ back) @ v, lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)


def floor_of(layer: Layer, kind: str) -> float:
    """Least seconds of one."""
    torch.backends.quantized.engine = "onednn"
    if layer.kind == "attention":
        return min(least_s(way) for way in _attention(layer))
    return least_s(_conv(layer, kind) if layer.kind == "conv" else _linear(layer, kind))


def pass_s(folder: Path, runs: int) -> dict[str, list[float]]:
    """Seconds of whole passes of each way that this machine has, in turns: a way's session is opened once a turn."""
    taken: dict[str, list[float]] = {}
    for _ in range(runs):
        for provider, precision in WAYS:
            bundle = Bundle.open(folder, provider=provider, precision=precision)
            variant = bundle.variant("unet", "full")
            if variant is None:
                raise SystemExit(f"{folder} has no device graphs for {provider}")
            rng = np.random.default_rng(0)
            shapes = {name: [int(s) for s in shape] for name, shape in variant.inputs.items()}
            feed = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
            session = bundle.session("unet", "full")
            session.run(**feed)
            for _ in range(3):
                started = time.perf_counter()
                session.run(**feed)
                taken.setdefault(f"{provider} {precision}", []).append(time.perf_counter() - started)
            del session, bundle
            gc.collect()
    return taken


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--architecture", default="small-sd", choices=DEVICE_UNETS)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with torch.device("meta"):
        unet = UNet2DConditionModel(**DEVICE_UNETS[asked.architecture])
    layers = [x for x in layers_of(unet, (4, 64, 64), TOKENS) if x.kind in ("conv", "linear", "attention")]
    rows, total = [], dict.fromkeys(("bf16", "int8"), 0.0)
    for layer in layers:
        row: dict[str, Any] = {"kind": layer.kind, "shape": layer.shape, "count": layer.count, "macs": layer.macs}
        for kind in total:
            row[f"{kind}_s"] = row["bf16_s"] if layer.kind == "attention" and kind == "int8" else floor_of(layer, kind)
            total[kind] += row[f"{kind}_s"] * layer.count
        rows.append(row)
    passes = {way: statistics.median(taken) for way, taken in pass_s(asked.bundle, asked.runs).items()}
    square = Layer("linear", (2048, 2048, 2048), 1)
    peak = {kind: round(2 * square.macs / floor_of(square, kind) / 1e9) for kind in total}
    result: dict[str, Any] = {
        "machine": machine(),
        "architecture": asked.architecture,
        "peak_gflops": peak,
        "floor_s": total,
        "pass_s": passes,
    }
    result["over_floor"] = {way: round(s / total[way.split()[1]], 2) for way, s in passes.items()}
    result["peak_floor_s"] = {
        kind: sum(2e-9 * r["macs"] * r["count"] / peak["bf16" if r["kind"] == "attention" else kind] for r in rows)
        for kind in total
    }
    result["over_peak_floor"] = {way: round(s / result["peak_floor_s"][way.split()[1]], 2) for way, s in passes.items()}
    result["layers"] = rows
    macs = sum(x.macs * x.count for x in layers)
    for kind, seconds in total.items():
        parts = ", ".join(
            f"{k} {sum(r[f'{kind}_s'] * r['count'] for r in rows if r['kind'] == k) * 1e3:.0f}"
            for k in ("conv", "linear", "attention")
        )
        rate = f"{2 * macs / seconds / 1e9:.0f} of {peak[kind]} GFLOP/s"
        print(f"floor {kind}: {seconds * 1e3:.0f} ms, {rate} ({parts} ms)")
    for way, seconds in passes.items():
        over = f"{result['over_floor'][way]:.2f} of its floor, {result['over_peak_floor'][way]:.2f} of the peak's"
        print(f"{way:16} {seconds * 1e3:6.0f} ms, {over}")
    if asked.json:
        atomic_write_bytes(asked.json, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
