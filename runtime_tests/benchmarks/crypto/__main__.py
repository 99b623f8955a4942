"""The cryptographic rows, measured: CKKS operations and two-party layers, composed over whole UNets.

    make crypto      # TenSEAL and SecretFlow SPU, in an environment of their own
    python -m runtime_tests.benchmarks.crypto --json docs/results/crypto.json

HE: a lower bound for running the UNet on encrypted latents, and what one known packing takes (compose says what they
leave out). MPC: layers between two processes on loopback. With Semi2k every layer shape of both UNets; with Cheetah,
which takes up to eighty times as long, every one of the embedded pair and those of Stable Diffusion that are small
enough, the rest from fits, so that its whole is an estimate. LAN and WAN add bytes over bandwidth and one round trip a
message. MPCViT's attention without softmax is measured beside softmax.
"""

from __future__ import annotations

import argparse
import json
import math
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
from .compose import NETWORKS, Fit, he_bound_s, measured_as, two_parties

HERE = Path(__file__).parent
# what a layer that is measured may have: multiply-accumulates for each pixel of the kernel (that is what Cheetah's
# convolutions go with; one of 640 channels takes more than 20 GB), elements. Of the embedded pair every one is in it
LARGEST = {"semi2k": (math.inf, math.inf), "cheetah": (100_000_000, 90_000)}
ONE_HEAD = 10_000_000  # elements of an attention from which on one head is measured instead of all: gigabytes a tensor
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
    """Distinct shapes that are small enough, smallest first, and the block with each kind of attention."""
    macs, elements = LARGEST[protocol]
    chosen: dict[tuple[str, tuple[int, ...]], float] = {}
    for layer in (measured_as(layer, ONE_HEAD) for some in layers.values() for layer in some):
        cost = layer.macs / (layer.shape[2] ** 2 if layer.kind == "conv" else 1)
        if cost <= macs and layer.elements <= elements:
            chosen[layer.kind, layer.shape] = cost + layer.elements
    extra = [(kind, list(BLOCK)) for kind in ("attention", "attention relu", "attention scaled")]
    ordered = [(kind, list(shape)) for kind, shape in sorted(chosen, key=chosen.__getitem__)]
    return [one for one in ordered if one not in extra] + extra


def run_in(python: Path, script: str, *words: str) -> None:
    ended = subprocess.run([str(python), str(HERE / script), *words], stdout=subprocess.PIPE, text=True)
    if ended.returncode != 0:
        raise SystemExit(f"{script} ended with {ended.returncode}; `make crypto` makes its environment")


def same_machine(result: dict[str, Any]) -> bool:
    here, there = machine(), result.get("machine", {})
    return all(here[name] == there.get(name) for name in ("cpu", "cores"))


def known(
    wanted: list[tuple[str, list[int]]], measured: list[dict[str, Any]]
) -> tuple[dict[tuple[str, tuple[int, ...]], dict[str, Any]], list[tuple[str, list[int]]]]:
    """Of what is wanted the rows that are there, by kind and shape, and what is not."""
    keys = {(kind, tuple(shape)) for kind, shape in wanted}
    rows = {_key(r): r for r in measured if _key(r) in keys}
    return rows, [(kind, shape) for kind, shape in wanted if (kind, tuple(shape)) not in rows]


def laid_over(
    earlier: list[dict[str, Any]], made: list[dict[str, Any]], wanted: list[tuple[str, list[int]]]
) -> list[dict[str, Any]]:
    """What was measured now over what was; once all that is wanted is there, nothing else."""
    rows = {_key(r): r for r in (*earlier, *made)}
    keys = {(kind, tuple(shape)) for kind, shape in wanted}
    return [r for k, r in rows.items() if k in keys or not keys <= rows.keys()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, default=Path(".venv-crypto/bin/python"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=["he", "semi2k", "cheetah"], help="none: fits and totals anew")
    parser.add_argument("--add", action="store_true", help="measure only shapes that the file lacks")
    parser.add_argument("--json", type=Path, help="what was there of the parts left out is kept")
    asked = parser.parse_args()
    before: dict[str, Any] = json.loads(asked.json.read_text()) if asked.json and asked.json.is_file() else {}
    if asked.add and not same_machine(before):
        raise SystemExit("what the file has was measured on another machine; leave --add out to measure everything")
    networks = {name: {"bits_s": bandwidth, "trip_s": trip} for name, (bandwidth, trip) in NETWORKS.items()}
    result = before | {"networks": networks} | ({"machine": machine()} if asked.only else {})
    layers = unets()
    passes = {name: 2 * load_pair(name).steps for name in layers}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        if "he" in asked.only:
            run_in(asked.python, "he.py", "ops", str(out))
            operations = json.loads(out.read_text())
            bounds = {name: he_bound_s(some, operations, passes[name]) for name, some in layers.items()}
            result["he"] = {"operations": operations, "bounds": bounds}
            out.unlink()
        for protocol in [p for p in ("semi2k", "cheetah") if p in asked.only]:
            wanted = to_measure(layers, protocol)
            earlier = before.get(protocol, {}).get("layers", []) if same_machine(before) else []
            _, lacking = known(wanted, earlier if asked.add else [])
            spec = Path(folder) / "spec.json"
            runs = asked.runs if protocol == "semi2k" else 1
            spec.write_text(json.dumps({"protocol": protocol, "runs": runs, "layers": lacking}))
            try:
                if lacking:
                    run_in(asked.python, "mpc.py", str(spec), str(out))
            finally:  # what was measured before something failed is kept
                made = json.loads(out.read_text()) if out.is_file() else []
                out.unlink(missing_ok=True)
                result[protocol] = {"layers": laid_over(earlier, made, wanted)}
                if made and (same_machine(before) or len(made) == len(lacking)):
                    save(result, asked.json)
    for found in (result[p] for p in ("semi2k", "cheetah") if p in result):
        fit = Fit.of(found["layers"])
        found["fit_error"] = fit.error
        found["whole"] = {name: two_parties(some, fit, found["layers"], passes[name]) for name, some in layers.items()}
    show(result)
    save(result, asked.json)


def save(result: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        atomic_write_bytes(path, (json.dumps(result, indent=1) + "\n").encode())


def _key(row: dict[str, Any]) -> tuple[str, tuple[int, ...]]:
    return row["kind"], tuple(row["shape"])


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
