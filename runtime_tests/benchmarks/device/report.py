"""Medians, ratios, tables and the plot of what `python -m runtime_tests.benchmarks.device` ran."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .systems import EAGER, SYSTEMS, WITH_CPP, System, without_bf16

_ALL = (*SYSTEMS, *WITH_CPP)
_BY_KEY = {s.key: s for s in (*_ALL, *without_bf16(_ALL))}


def summary(runs: Sequence[dict[str, Any]], pictures: Path, where: dict[str, Any]) -> dict[str, Any]:
    """`rows`: medians by system and k. `ratios`: at each k, how often ours fits in others. `runs`: every run.

    `same_decoder` compares systems with the checkpoint's own decoder; `best` each at its best, whichever decoder.
    """
    rows = [_row(key, k, taken, pictures) for (key, k), taken in _by_system(runs).items()]
    ks = sorted({row["k"] for row in rows})
    return {
        "machine": where,
        "ratios": {str(k): _ratios([row for row in rows if row["k"] == k]) for k in ks},
        "rows": rows,
        "failed": {r["system"]: r["failed"] for r in runs if "failed" in r},
        "runs": list(runs),
    }


def _by_system(runs: Sequence[dict[str, Any]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for run in runs:
        for one in run.get("runs", ()):
            found.setdefault((run["system"], one["k"]), []).append(one | {"peak_bytes": run["peak_bytes"]})
    return found


def _row(key: str, k: int, taken: Sequence[dict[str, Any]], pictures: Path) -> dict[str, Any]:
    system = _BY_KEY[key]

    def median(name: str) -> float:
        return round(statistics.median(one[name] for one in taken), 3)

    return {
        "system": key,
        "ours": system.ours,
        "tiny": system.tiny,
        "k": k,
        "runs": len(taken),
        "seconds": median("seconds"),
        "steps_s": median("steps_s"),
        "decode_s": median("decode_s"),
        "cpu_s": median("cpu_s"),
        "peak_bytes": max(one["peak_bytes"] for one in taken),
        "psnr_db": _fidelity(system, k, pictures),
    }


def _fidelity(system: System, k: int, pictures: Path) -> float | None:
    reference = System("diffusers fp32", system.tiny)
    found = [_picture(pictures, s, k) for s in (system, reference)]
    if found[0] is None or found[1] is None:
        return None
    error = float(np.mean((found[0] - found[1]) ** 2))
    return round(10 * np.log10(255**2 / error), 1) if error else 99.0


def _picture(folder: Path, system: System, k: int) -> np.ndarray | None:
    name = "".join(c if c.isalnum() else "-" for c in system.key)
    path = folder / f"{name}.{k}.png"
    return np.asarray(Image.open(path).convert("RGB"), np.float64) if path.is_file() else None


def _ratios(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    eager = next((row["seconds"] for row in rows if row["system"] == EAGER), None)
    found: dict[str, Any] = {}
    for name, chosen in (("best", list(rows)), ("same_decoder", [row for row in rows if not row["tiny"]])):
        mine = [row for row in chosen if row["ours"]]
        others = [row for row in chosen if not row["ours"]]
        if not (mine and others):
            continue
        quickest = min(mine, key=lambda row: row["seconds"])
        peer = min(others, key=lambda row: row["seconds"])
        found[name] = {
            "ours": quickest["system"],
            "peer": peer["system"],
            "best_peer": round(peer["seconds"] / quickest["seconds"], 2),
            "diffusers_fp32": round(eager / quickest["seconds"], 2) if eager else None,
        }
    return found


def peaks(rows: Sequence[dict[str, Any]]) -> dict[str, int | None]:
    """Of `device_memory`'s rows: the quickest way (its resident memory, and the part that is not mapped files), and the
    run under the smallest limit."""
    free = [row for row in rows if row["limit_bytes"] is None and "failed" not in row]
    limited = [row for row in rows if row["limit_bytes"] is not None and "failed" not in row]
    quickest = min(free, key=lambda row: row["seconds"])
    least = min(limited, key=lambda row: row["limit_bytes"], default=None)
    return {
        "default": quickest["peak_bytes"],
        "default_anonymous": max(p["anonymous"] for p in quickest["peaks"].values()),
        "limited": None if least is None else least["peak_bytes"],
        "limit": None if least is None else least["limit_bytes"],
    }


def table(found: dict[str, Any]) -> str:
    """Markdown: one table with the checkpoint's own decoder, one with the tiny one."""
    lines = []
    for tiny, title in ((False, "The checkpoint's own decoder"), (True, "The tiny decoder")):
        lines += [f"{title}:", "", "| k | | s | steps | decoding | CPU s | peak MB | PSNR dB |", "|" + "---|" * 8]
        for row in sorted(found["rows"], key=lambda r: (r["k"], r["seconds"])):
            if row["tiny"] is not tiny:
                continue
            name = row["system"].rpartition(",")[0]
            shown = f"**{name}**" if row["ours"] else name
            psnr = "" if row["psnr_db"] is None else f"{row['psnr_db']:.1f}"
            lines.append(
                f"| {row['k']} | {shown} | {row['seconds']:.1f} | {row['steps_s']:.1f} | {row['decode_s']:.2f} "
                f"| {row['cpu_s']:.0f} | {row['peak_bytes'] / 1e6:.0f} | {psnr} |"
            )
        lines.append("")
    for k, ratios in found["ratios"].items():
        for name, r in ratios.items():
            lines.append(
                f"k {k}, {name.replace('_', ' ')}: {r['diffusers_fp32']} x diffusers fp32, {r['best_peer']} x the best "
                f"peer ({r['peer']}), by {r['ours']}"
            )
    return "\n".join(lines)


def plot(found: dict[str, Any], path: Path) -> None:
    """Seconds of every system at the largest k, steps and decoding stacked; ours in another colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    k = max(row["k"] for row in found["rows"])
    rows = sorted((row for row in found["rows"] if row["k"] == k), key=lambda row: (row["tiny"], row["seconds"]))
    figure, axes = pyplot.subplots(figsize=(9, 0.32 * len(rows) + 1.6), layout="constrained")
    names = [row["system"] for row in rows]
    colours = [("#1b6ca8", "#8ec1e3") if row["ours"] else ("#777777", "#c4c4c4") for row in rows]
    axes.barh(names, [row["steps_s"] for row in rows], color=[c[0] for c in colours])
    axes.barh(
        names, [row["decode_s"] for row in rows], left=[row["steps_s"] for row in rows], color=[c[1] for c in colours]
    )
    for i, row in enumerate(rows):
        psnr = "" if row["system"].startswith(EAGER.partition(",")[0]) else f", {row['psnr_db']:.0f} dB"
        axes.text(row["seconds"], i, f" {row['seconds']:.1f} s{psnr}", va="center", fontsize=8)
    axes.axhline(sum(not row["tiny"] for row in rows) - 0.5, color="0.6", linewidth=0.8)
    axes.invert_yaxis()
    figure.supxlabel(
        "seconds from received latents to the PNG: steps dark, decoding light; dB to diffusers float32, same decoder\n"
        "half of the steps cached, late guidance: every 2nd step runs the whole UNet, the last 40 % without guidance;\n"
        "three of four cached, late: every 4th, the last 60 %", fontsize=8,
    )  # fmt: skip
    on = f"{found['machine']['cores']} cores of {found['machine']['cpu']}"
    title = f"small-sd's size, 512 px, from step {k} of 25 on, {on}; blue: this project"
    figure.suptitle(title, fontsize=10)
    axes.tick_params(axis="y", labelsize=8)
    axes.margins(x=0.12)
    figure.savefig(path)
    pyplot.close(figure)
