"""What phones' and laptops' accelerators take of a bundle: nodes placed, partitions, what stays on the CPU.

    python -m runtime_tests.benchmarks.targets --bundle emoji --json docs/results/targets.json

By the providers' lists of operators, on fixed shapes; for XNNPACK also after `flat_products`, for HTP on `qnn_graph`.
Beside it what ONNX Runtime's own usability checker says of mobile use. No such provider runs here; `make qnn` runs one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.tools.mobile_helpers.usability_checker import PartitioningInfo

from obclip.core.files import atomic_write_bytes
from obclip.core.manifest import Manifest
from obclip.edge.bundle import find_bundle
from obclip.export.targets.qnn import qnn_graph
from obclip.export.targets.report import PROVIDERS, placement
from obclip.export.targets.rewrite import fix_shapes, flat_products

PARTS = ("text_encoder", "unet", "vae_decoder")


def sizes(manifest: Manifest) -> dict[str, int]:
    """Free axis -> its size for one picture."""
    h, w = manifest.height // manifest.latent_downscale, manifest.width // manifest.latent_downscale
    return {
        "batch_size": 1, "height": h, "width": w, "latent_height": h, "latent_width": w,
        "sequence_length": manifest.max_tokens,
    }  # fmt: skip


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """One row a part and provider."""
    manifest = Manifest.read(folder)
    dims, rows = sizes(manifest), []
    for part in PARTS:
        exported = onnx.load(folder / manifest.component(part).file)
        fixed = fix_shapes(exported, dims)
        for provider in PROVIDERS:
            graph = {"xnnpack": lambda m: flat_products(m), "qnn": lambda m: qnn_graph(m, {})}.get(
                provider, lambda m: m
            )(fixed)
            rows.append({"part": part} | placement(graph, provider).to_dict() | {"weights": "fp32"})
        del exported, fixed
    return rows


def verdict(row: dict[str, Any]) -> str:
    """YES, MAYBE or NO, by the checker's rule: one partition of more than three quarters of the nodes, and so on."""
    info = PartitioningInfo(row["nodes"], row["placed"], row["partitions"], None, [], set(), 0, 0, 0, set())
    return str(info.suitability().name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="emoji", help="a pair's name or a bundle's folder")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = rows_of(find_bundle(args.bundle))
    print(f"{'part':14}{'provider':10}{'nodes':>7}{'placed':>8}{'partitions':>12}  {'verdict':9}stays on the CPU")
    for row in rows:
        row["verdict"] = verdict(row)
        left = ", ".join(f"{count} {op}" for op, count in sorted(row["on_cpu"].items(), key=lambda kv: -kv[1])[:5])
        print(
            f"{row['part']:14}{row['provider']:10}{row['nodes']:7}{row['placed']:8}{row['partitions']:12}  "
            f"{row['verdict']:9}{left or '-'}"
        )
    if args.json:
        result = {"bundle": Path(args.bundle).name, "rows": rows}
        atomic_write_bytes(args.json, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
