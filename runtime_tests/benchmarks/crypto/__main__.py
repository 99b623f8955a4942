"""The cryptographic rows, measured: CKKS operations and two-party layers, composed over whole UNets.

    make crypto      # TenSEAL and SecretFlow SPU, in an environment of their own
    python -m runtime_tests.benchmarks.crypto --json docs/results/crypto.json

HE: a lower bound for running the UNet on encrypted latents, and what one known packing takes (compose says what they
leave out). MPC: every layer shape of the embedded pair's cloud UNet between two processes on loopback; Stable
Diffusion's from fits to these and to those of its own shapes that are small enough, so they are estimates. LAN and WAN
add bytes over bandwidth and one round trip a message. MPCViT's attention without softmax is measured beside softmax.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from obclip.core.files import atomic_write_bytes
from obclip.core.manifest import Manifest
from obclip.core.pairs import load_pair
from obclip.edge.bundle import find_bundle
from obclip.edge.machine import machine

from ..architectures import CLOUD_UNETS, TOKENS
from ..layers import Layer, layers_of
from .compose import NETWORKS, Fit, he_bound_s, two_parties

HERE = Path(__file__).parent
# what one measured layer may have, so that it fits into memory and minutes: multiply-accumulates, elements
LARGEST = {"semi2k": (400_000_000, 1_100_000), "cheetah": (20_000_000, 40_000)}
PER_KIND = {"semi2k": 30, "cheetah": 6}
BLOCK = (4, 64, 64, 32)  # the attention block on which MPCViT's weights are compared with softmax


def unets() -> dict[str, list[Layer]]:
    found = {}
    tokens = {"emoji": Manifest.read(find_bundle("emoji")).max_tokens, "realistic-vision": TOKENS}
    for name in tokens:
        pair = load_pair(name)
        with torch.device("meta"):
            if name == "emoji":
                folder = Path(__file__).parents[3] / "cloud" / "obclip" / "cloud" / "pairs" / "emoji" / "unet"
                unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder))
            else:
                unet = UNet2DConditionModel(**CLOUD_UNETS[name])
        found[name] = layers_of(unet, pair.latent_shape, tokens[name])
    return found


def to_measure(layers: dict[str, list[Layer]], protocol: str) -> list[tuple[str, list[int]]]:
    """Distinct shapes that are small enough: of the embedded pair all of them, then of the other, spread over sizes."""
    macs, elements = LARGEST[protocol]
    chosen: dict[tuple[str, tuple[int, ...]], None] = {}
    for some in layers.values():
        by_kind: dict[str, list[Layer]] = {}
        for layer in some:
            if layer.macs <= macs and layer.elements <= elements:
                by_kind.setdefault(layer.kind, []).append(layer)
        for kind, candidates in by_kind.items():
            ordered = sorted(candidates, key=lambda layer: (layer.macs, layer.elements))
            count = min(len(ordered), PER_KIND[protocol])
            for i in range(count):
                chosen[kind, ordered[i * (len(ordered) - 1) // max(count - 1, 1)].shape] = None
    extra = [(kind, list(BLOCK)) for kind in ("attention", "attention relu", "attention scaled")]
    return [(kind, list(shape)) for kind, shape in chosen if (kind, list(shape)) not in extra] + extra


def run_in(python: Path, script: str, *words: str) -> None:
    ended = subprocess.run([str(python), str(HERE / script), *words], stdout=subprocess.PIPE, text=True)
    if ended.returncode != 0:
        raise SystemExit(f"{script} ended with {ended.returncode}; `make crypto` makes its environment")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, default=Path(".venv-crypto/bin/python"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=["he", "semi2k", "cheetah"], help="none: fits and totals anew")
    parser.add_argument("--json", type=Path, help="what was there of the parts left out is kept")
    asked = parser.parse_args()
    result: dict[str, Any] = {}
    if asked.json and asked.json.is_file():
        result = json.loads(asked.json.read_text())
    result |= {"machine": machine(), "networks": {k: {"bits_s": b, "trip_s": t} for k, (b, t) in NETWORKS.items()}}
    layers = unets()
    passes = {name: 2 * load_pair(name).steps for name in layers}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        if "he" in asked.only:
            run_in(asked.python, "he.py", "ops", str(out))
            operations = json.loads(out.read_text())
            bounds = {name: he_bound_s(some, operations, passes[name]) for name, some in layers.items()}
            result["he"] = {"operations": operations, "bounds": bounds}
        for protocol in [p for p in ("semi2k", "cheetah") if p in asked.only]:
            spec = Path(folder) / "spec.json"
            spec.write_text(json.dumps({
                "protocol": protocol, "runs": asked.runs if protocol == "semi2k" else 1,
                "layers": to_measure(layers, protocol),
            }))  # fmt: skip
            run_in(asked.python, "mpc.py", str(spec), str(out))
            result.setdefault(protocol, {})["layers"] = json.loads(out.read_text())
    for found in (result[p] for p in ("semi2k", "cheetah") if p in result):
        fit = Fit.of(found["layers"])
        found["fit_error"] = fit.error
        found["whole"] = {name: two_parties(some, fit, found["layers"], passes[name]) for name, some in layers.items()}
    show(result)
    if asked.json:
        atomic_write_bytes(asked.json, (json.dumps(result, indent=1) + "\n").encode())


def show(result: dict[str, Any]) -> None:
    if he := result.get("he"):
        o = he["operations"]
        ms = {k: o[f"{k}_s"] * 1e3 for k in ("multiply_plain", "add", "rotate")}
        print(f"CKKS, ring {o['ring']}, one core, ms: " + ", ".join(f"{k} {v:.3f}" for k, v in ms.items()))
        for name, b in he["bounds"].items():
            print(f"  {name}, {b['passes']} passes: at least {b['seconds']:.3g} s; a channel a ciphertext", end="")
            print(f" {b['channel_packed_s']:.3g} s")
    for protocol in ("semi2k", "cheetah"):
        if not (found := result.get(protocol)):
            continue
        print(
            f"two parties, {protocol}: "
            + ", ".join(f"{k} ±{v:.0%}" for k, v in found["fit_error"].items() if v is not None)
        )
        for name, w in found["whole"].items():
            print(
                f"  {name}: {w['passes']} passes, {w['compute_s']:.4g} s computing, {w['bytes'] / 1e9:.4g} GB, "
                f"{w['messages']:.4g} messages; LAN {w['LAN_s']:.4g} s, WAN {w['WAN_s']:.4g} s "
                f"({w['shapes_measured']} of {w['shapes']} shapes measured)"
            )
        for r in found["layers"][-3:]:
            sent = f"{r['bytes'] / 1e6:.1f} MB in {r['messages']} messages"
            print(f"  {r['kind']:17} {r['shape']}: {r['seconds']:.3f} s, {sent}")


if __name__ == "__main__":
    main()
