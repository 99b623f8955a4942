"""The rows as Markdown, CSV and plots."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from obclip.edge.image import contact_sheet, save_png

from .costs import LINK_BITS_S

Row = dict[str, Any]
_DASH = "–"


def value(row: Row, name: str) -> float | None:
    """A metric's value, without its interval."""
    found = row.get(name)
    return found[0] if isinstance(found, list) else found


def _interval(row: Row, name: str, digits: int = 3) -> str:
    found = row.get(name)
    if found is None:
        return _DASH
    if not isinstance(found, list):
        return f"{found:.{digits}f}"
    return f"{found[0]:.{digits}f} ({found[1]:.{digits}f}–{found[2]:.{digits}f})"


def _number(found: float | None, form: str) -> str:
    return _DASH if found is None else format(found, form)


def _seconds(found: float | None) -> str:
    return _number(found, ".3g" if found is not None and found < 100 else ",.0f")


def _bytes(found: float | None) -> str:
    if found is None:
        return _DASH
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if found >= size:
            return f"{found / size:.3g} {unit}"
    return f"{found:.0f} B"


def table2(rows: Sequence[Row], n: int, photographs: bool = False) -> str:
    """One N's rows in Markdown."""
    middle = ("FID", "IS", "CLIP") if photographs else ("Fréchet",)
    heads = ("method", "attributes shown", "worst candidate", *middle, "distance to server", "cloud TMAC", "+ device",
             "× server", "cloud s", "device s", "up", "down")  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in (r for r in rows if r["n"] == n):
        quality = (
            [_number(row.get("fid"), ".2f"), _number(row.get("is"), ".2f"), _interval(row, "clip_score", 4)]
            if photographs
            else [_number(row.get("frechet"), ".1f")]
        )
        cells = [
            row["key"], _interval(row, "attributes"), _interval(row, "worst"), *quality, _interval(row, "distance", 2),
            _number(_tera(row.get("macs_cloud_published")), ".4g"),
            _number(_tera(row.get("macs_device_published")), ".4g"),
            _number(row.get("times_server"), ".2f"), _seconds(row.get("cloud_s")),
            _seconds(row.get("device_s")), _bytes(row.get("bytes_up")), _bytes(row.get("bytes_down")),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _tera(found: float | None) -> float | None:
    return None if found is None else found / 1e12


def table1(rows: Sequence[Row], n: int) -> str:
    """Privacy, the server's cost and utility of each system, as they were measured."""
    heads = ("system", "gender guessed", "prompt guessed", "effective N", "the cloud reads", "cloud MACs, × server",
             "cloud s, × server", "attributes shown", "distance to server")  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    some = [r for r in rows if r["n"] == n]
    server = next((r for r in some if r["kind"] == "server"), {})
    for row in some:
        seconds = None
        if row.get("cloud_s") is not None and server.get("cloud_s"):
            seconds = row["cloud_s"] / server["cloud_s"]
        cells = [
            row["key"], _number(row.get("attack_gender"), ".2f"), _number(row.get("attack_prompt"), ".2f"),
            _number(row.get("effective_n"), ".2f"), row["reads"], _number(row.get("times_server"), ".2f"),
            _number(seconds, ".3g"), _interval(row, "attributes"), _interval(row, "distance", 2),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def as_csv(rows: Sequence[Row]) -> bytes:
    """Every column that some row has; an interval in two further columns."""
    flat = []
    for row in rows:
        one: Row = {}
        for name, found in row.items():
            if isinstance(found, list):
                one |= {name: found[0], f"{name}_low": found[1], f"{name}_high": found[2]}
            else:
                one[name] = found
        flat.append(one)
    names = list(dict.fromkeys(name for one in flat for name in one))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue().encode()


def _canvas(columns: int = 1, width: float = 6.4, height: float = 4.2) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(1, columns, figsize=(width * columns, height), layout="constrained", squeeze=False)


def _save(figure: Any, path: Path) -> None:
    for suffix in (".svg", ".png"):
        figure.savefig(path.with_suffix(suffix), dpi=150)


_COLOURS = {
    "server": "black", "device": "tab:gray", "hybrid": "tab:orange", "oblivious": "tab:blue", "sanitized": "tab:red",
    "he": "tab:brown", "mpc": "tab:brown",
}  # fmt: skip
_SAID = {
    "server": "server only", "device": "device only", "hybrid": "Hybrid SD: the cloud reads the prompt",
    "oblivious": "oblivious: the cloud reads N candidates", "sanitized": "words replaced before they are sent",
    "he": "HE-Diffusion",
}  # fmt: skip


SHEET = ("server only", "device only", "SANTEXT", "ObCLIP, k={k}", "ObCLIP + cache + reuse, k={k}", "ours, k={k}")


def sheet(drawn: Sequence[tuple[str, Sequence[Any]]], prompts: Sequence[str], path: Path, rows: int = 6) -> None:
    """A row a set, a column a method. drawn: (method, pictures of the sets' first candidates)."""
    cells = [
        [
            ((f"{name}: {prompts[i]}" if c == 0 else name).replace("ε=", "eps "), pictures[i])
            for c, (name, pictures) in enumerate(drawn)
        ]
        for i in range(min(rows, len(prompts)))
    ]
    side = cells[0][0][1].shape[1]
    save_png(path, contact_sheet(cells, scale=max(1, 192 // side)), {})


def plot_quality(rows: Sequence[Row], path: Path) -> None:
    """Attributes shown against the cloud's cost, one panel an N. Hollow: the cloud learns more than the set of N."""
    ns = sorted({r["n"] for r in rows})
    figure, panels = _canvas(len(ns), 4.6)
    for axes, n in zip(panels[0], ns, strict=True):
        seen: set[str] = set()
        some = [r for r in rows if r["n"] == n and r.get("attributes") and r.get("times_server") is not None]
        for row in sorted(some, key=lambda r: r["kind"] == "server"):  # last, on top
            kind, mine = row["kind"], "ours" in row["key"]
            told = row.get("attack_prompt", 1.0) > 1.05 * row.get("chance", 1.0)
            x, y, colour = row["times_server"], value(row, "attributes"), _COLOURS[kind]
            said = f"{_SAID[kind]} (ours)" if mine else _SAID[kind]
            axes.scatter(
                [x], [y], facecolors="none" if told else colour, edgecolors=colour,
                label=None if said in seen else said, marker="*" if mine else "s" if kind == "server" else "o",
                s=130 if mine else 40, zorder=3 if mine or kind == "server" else 2,
            )  # fmt: skip
            seen.add(said)
            if mine and kind == "oblivious":
                axes.annotate(f"k={row['k']}", (x, y), fontsize=7, xytext=(6, 6), textcoords="offset points")
        axes.axvline(1, color="0.85", zorder=0)
        axes.set_xscale("symlog", linthresh=0.1)
        axes.set_xlim(-0.01, None)
        axes.set_title(f"N = {n} candidates", fontsize=10)
        axes.set_xlabel("cloud cost, in images without privacy (MACs)", fontsize=8)
    panels[0][0].set_ylabel("attributes that the picture shows", fontsize=9)
    figure.legend(
        *panels[0][0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=4,
        title="hollow: the cloud learns more than N candidates", title_fontsize=8,
    )  # fmt: skip
    _save(figure, path)


def plot_latency(rows: Sequence[Row], path: Path, n: int) -> None:
    """Seconds of one picture, stacked by phase."""
    some = [r for r in rows if r["n"] == n and r.get("decode_s") is not None and r["kind"] in _SAID
            and r["kind"] not in ("sanitized", "he")]  # fmt: skip
    figure, panels = _canvas(1, 7.5, 0.32 * len(some) + 1.4)
    axes, places = panels[0][0], range(len(some))
    left = [0.0] * len(some)
    for name, colour, seconds in (
        ("cloud", "tab:blue", [r.get("cloud_s") or 0.0 for r in some]),
        ("latents over 18.88 Mbit/s", "tab:cyan", [r["bytes_down"] * 8 / LINK_BITS_S for r in some]),
        ("device steps", "tab:orange", [r["device_s"] for r in some]),
        ("decoding", "tab:green", [r["decode_s"] for r in some]),
    ):
        axes.barh(places, seconds, left=left, color=colour, label=name)
        left = [a + b for a, b in zip(left, seconds, strict=True)]
    axes.set_yticks(places, [r["key"] for r in some], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"seconds of one picture, N = {n}", fontsize=9)
    axes.legend(fontsize=8)
    _save(figure, path)


def plot_sweep(rows: Sequence[Row], path: Path, steps: int) -> None:
    """What pictures show and how near they are to the server's, against k. Bands: 95 % intervals over sets."""
    figure, panels = _canvas(2, 4.8, 3.6)
    for axes, name, title in (
        (panels[0][0], "attributes", "attributes that the picture shows"),
        (panels[0][1], "distance", "distance to the server's picture (1: another candidate)"),
    ):
        for key, colour in (("ObCLIP", "tab:blue"), ("ours", "tab:green")):
            some = sorted((r for r in rows if r["method"] == key and r.get(name)), key=lambda r: r["k"])
            if not some:
                continue
            ks = [r["k"] for r in some]
            label = "ours (default plan and device savings)" if key == "ours" else "every pass run"
            axes.plot(ks, [r[name][0] for r in some], marker="o", ms=3, color=colour, label=label)
            axes.fill_between(ks, [r[name][1] for r in some], [r[name][2] for r in some], color=colour, alpha=0.15)
        axes.set_xlabel(f"k: steps in the cloud, of {steps}", fontsize=9)
        axes.set_title(title, fontsize=9)
    panels[0][0].set_ylim(min(0.8, panels[0][0].get_ylim()[0]), 1.01)
    panels[0][0].legend(fontsize=8, loc="lower right")
    figure.suptitle(f"N = {rows[0]['n']} candidates; at k = {steps} the server has drawn all of it", fontsize=9)
    _save(figure, path)
