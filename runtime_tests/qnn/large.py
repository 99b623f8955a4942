"""A UNet of Stable Diffusion's size through HTP's compiler: time and peak memory of each phase, in pieces.

    .venv-qnn/bin/python -m runtime_tests.qnn.large --bundle BUNDLE --pieces 8 --json docs/results/qnn_large.json

The UNet of an exported bundle is rewritten for HTP and cut into pieces of consecutive nodes with about equal weights;
what passes from one to another, skips among it, becomes inputs and outputs. Each is quantised to W8A16 on one seeded
pass and compiled in a process of its own, with no node on the CPU, and those of --emulate are run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from obclip.core.manifest import Manifest
from obclip.export.targets.qnn import qnn_graph, quantise_w8a16

LIMIT_S = 900


def rewritten(bundle: Path, out: Path) -> onnx.ModelProto:
    manifest = Manifest.read(bundle)
    dims = {
        "batch_size": 1, "sequence_length": manifest.max_tokens,
        "height": manifest.height // manifest.latent_downscale, "width": manifest.width // manifest.latent_downscale,
    }  # fmt: skip
    model = qnn_graph(onnx.load(bundle / manifest.component("unet").file), dims)
    onnx.save(model, out, save_as_external_data=True, location=out.name + "_data")
    return onnx.shape_inference.infer_shapes(onnx.load(out, load_external_data=False))


def cut(model: onnx.ModelProto, pieces: int) -> list[tuple[list[str], list[str]]]:
    """Inputs and outputs of pieces of consecutive nodes, of about equal bytes of weights."""
    weights = {t.name: int(np.prod(t.dims)) for t in model.graph.initializer}
    taken = [sum(weights.get(name, 0) for name in node.input) for node in model.graph.node]
    total, edges, filled = sum(taken), [0], 0
    for i, size in enumerate(taken):
        filled += size
        if filled >= total * len(edges) / pieces and len(edges) < pieces:
            edges.append(i + 1)
    edges.append(len(taken))
    constants = weights.keys() | {n.output[0] for n in model.graph.node if n.op_type == "Constant"}
    wanted_last = {o.name for o in model.graph.output}
    found = []
    for start, stop in itertools.pairwise(edges):
        inside = model.graph.node[start:stop]
        made = {name for node in inside for name in node.output}
        needed = [name for node in inside for name in node.input if name and name not in made and name not in constants]
        later = {name for node in model.graph.node[stop:] for name in node.input} | wanted_last
        found.append((list(dict.fromkeys(needed)), [name for name in dict.fromkeys(
            n for node in inside for n in node.output) if name in later and name not in constants]))  # fmt: skip
    return found


def tensors(source: Path, names: list[str], feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What these tensors hold in one float pass."""
    model = onnx.load(source, load_external_data=False)
    known = {o.name for o in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None)
        for n in names
        if n not in known | feed.keys()
    )
    probe = source.with_name("probe.onnx")
    onnx.save(model, probe)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena, options.log_severity_level = False, 3
    session = ort.InferenceSession(probe, options, providers=["CPUExecutionProvider"])
    asked = [n for n in names if n not in feed]
    return feed | dict(zip(asked, session.run(asked, feed), strict=True))


def compile_piece(folder: Path, number: int, emulate: bool) -> None:
    """In a process of its own: quantise, compile, run in the emulator; prints what it knows so far as lines of JSON."""
    from runtime_tests.qnn.htp import cpu_session, htp_session

    source, said = folder / f"piece{number}.onnx", {}
    with np.load(folder / f"piece{number}.npz") as kept:
        feed = {name: kept[name] for name in kept.files}
    started = time.perf_counter()
    quantised = folder / f"piece{number}.q.onnx"
    quantise_w8a16(source, quantised, [feed])
    said["quantise_s"] = round(time.perf_counter() - started, 1)
    started = time.perf_counter()
    context = folder / f"piece{number}.ctx.onnx"
    session = htp_session(quantised, context)
    said["compile_s"] = round(time.perf_counter() - started, 1)
    said["context_bytes"] = sum(p.stat().st_size for p in folder.glob(f"piece{number}.ctx*"))
    said["peak_bytes"] = peak_bytes()
    print(json.dumps(said), flush=True)
    if not emulate:
        return
    started = time.perf_counter()
    out = session.run(None, feed)
    said["emulated_pass_s"] = round(time.perf_counter() - started, 1)
    wanted = cpu_session(quantised).run(None, feed)
    errors = [np.linalg.norm(a - b) / (np.linalg.norm(b) + 1e-12) for a, b in zip(out, wanted, strict=True)]
    said["relative_error"] = round(float(max(errors)), 5)
    print(json.dumps(said))


def peak_bytes() -> int:
    """Of this process, since it began: what its parent had does not count, as it would in rusage."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--pieces", type=int, default=8)
    parser.add_argument("--only", type=int, nargs="+", help="these pieces")
    parser.add_argument("--emulate", type=int, nargs="*", default=[0], help="pieces that are run, too: minutes each")
    parser.add_argument("--limit-s", type=int, default=LIMIT_S, help="for a piece")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    source = asked.work / "unet.onnx"
    model = rewritten(asked.bundle, source)
    pieces = cut(model, asked.pieces)
    rng = np.random.default_rng(0)
    feed = {
        i.name: rng.standard_normal([d.dim_value for d in i.type.tensor_type.shape.dim]).astype(np.float32)
        for i in model.graph.input
    }
    feed["timestep"] = np.asarray(501.0, np.float32)
    values = tensors(source, sorted({n for inputs, _ in pieces for n in inputs}), feed)
    rows: list[dict[str, Any]] = []
    for number, (inputs, outputs) in enumerate(pieces):
        if asked.only and number not in asked.only:
            continue
        path = asked.work / f"piece{number}.onnx"
        onnx.utils.extract_model(source, path, inputs, outputs)
        np.savez(asked.work / f"piece{number}.npz", **{name: values[name] for name in inputs})
        row: dict[str, Any] = {"piece": number, "nodes": len(onnx.load(path, load_external_data=False).graph.node)}
        emulate = number in asked.emulate
        imports = "from pathlib import Path; from runtime_tests.qnn.large import compile_piece"
        command = [sys.executable, "-c", f"{imports}; compile_piece(Path({str(asked.work)!r}), {number}, {emulate})"]
        log = asked.work / f"piece{number}.log"
        with log.open("w") as out, log.with_suffix(".err").open("w") as error:
            process = subprocess.Popen(["timeout", str(asked.limit_s), *command], stdout=out, stderr=error)
            status = process.wait()
        known = [line for line in log.read_text().splitlines() if line.startswith("{")]
        row |= json.loads(known[-1]) if known else {}
        if status != 0:
            said = log.with_suffix(".err").read_text().strip().splitlines()
            row["failed"] = said[-1] if said else f"ended with {status}"
        print(json.dumps(row), flush=True)
        rows.append(row)
        for leftover in asked.work.glob(f"piece{number}.*"):
            if leftover.suffix not in (".log", ".err"):
                leftover.unlink()
    if asked.json:
        from obclip.edge.machine import machine

        result = {"machine": machine(), "pieces": asked.pieces, "rewriting_peak_bytes": peak_bytes(), "rows": rows}
        asked.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
