"""Tables of docs/device.md against the committed results."""

from __future__ import annotations

from doc_tables import DOCS, Check, filled, of, off, results, tables

from runtime_tests.benchmarks.device.report import table as device_table
from runtime_tests.benchmarks.device_start import table as start_table


def test_device_rows_are_those_of_the_benchmarks_table():
    """The benchmark's own rows at k = 10; the docs give runs in the place of k."""
    found = results("device")
    runs = {r["system"].rpartition(",")[0] + str(r["tiny"]): r["runs"] for r in found["rows"] if r["k"] == 10}
    for tiny, rows in enumerate(tables(DOCS / "device.md", "| | runs | s | steps")):
        own = [  # the reference itself has no distance from it
            r | {"tiny": False, "psnr_db": None if r["psnr_db"] == 99.0 else r["psnr_db"]}
            for r in found["rows"]
            if r["tiny"] == bool(tiny) and r["k"] == 10
        ]
        written = device_table({"rows": own, "ratios": {}})
        made = [
            [c.strip().strip("*") for c in line[1:-1].split("|")][1:]
            for line in written.splitlines()
            if "| 10 |" in line
        ]
        assert [[r[0], *r[2:]] for r in rows] == made
        assert off((r[1], runs[r[0] + str(bool(tiny))]) for r in rows) == []


def test_starting_is_what_was_measured():
    shown = (DOCS / "device.md").read_text("utf8")
    assert start_table(results("device_start")["rows"]) in shown


def test_bk_sdm_tiny_beside_stable_diffusion_cpp():
    found = {(r["system"], r["tiny"]): r for r in results("device_bk_tiny")["rows"]}
    ours = "obclip openvino auto, "
    systems = [
        (ours + "half of the steps cached, late guidance", False), (ours + "every pass", False),
        ("obclip cpu fp32, every pass", False), ("diffusers fp32", False), ("stable-diffusion.cpp f16", False),
        ("stable-diffusion.cpp q8_0", False), (ours + "three of four cached, late", True),
        ("stable-diffusion.cpp q8_0", True),
    ]  # fmt: skip
    (rows,) = tables(DOCS / "device.md", "| system | decoder | s | steps")
    assert all(r["runs"] == 2 for r in found.values())
    for row, (name, tiny) in zip(rows, systems, strict=True):
        r = found[name + (", tiny decoder" if tiny else ", own decoder"), tiny]
        assert (row[1] == "tiny") == tiny
        told = (r["seconds"], r["steps_s"], r["cpu_s"], r["peak_bytes"] / 1e6)
        assert off(zip(row[2:], told, strict=True)) == []


def test_device_rows_of_the_xeon():
    found = results("device_xeon")
    rows = tables(DOCS / "device.md", "| system, Xeon")[0]
    assert len(rows) == len(found["rows"])
    for name, decoder, s, steps, decoding, cpu, peak, psnr in rows:
        r = of(found["rows"], system=f"{name}, {decoder} decoder")
        assert r["runs"] == 3
        told = [(s, r["seconds"]), (steps, r["steps_s"]), (decoding, r["decode_s"]), (cpu, r["cpu_s"])]
        assert off([*told, (peak, r["peak_bytes"] / 1e6), (psnr, r["psnr_db"])]) == []


def test_device_ratios():
    ratios = results("device")["ratios"]["10"]
    same, best = tables(DOCS / "device.md", "| | ours | diffusers float32 takes")[0]
    for row, name in ((same, "same_decoder"), (best, "best")):
        r = ratios[name]
        assert off([(row[2], r["diffusers_fp32"]), (row[3], r["best_peer"])]) == []
        assert r["peer"].startswith(row[3].partition("(")[2].rstrip(")"))
        assert r["ours"].removeprefix("obclip ").startswith(row[1].removesuffix(", tiny decoder"))


def test_device_memory():
    rows, wrong = results("device_memory")["rows"], []
    shown = tables(DOCS / "device.md", "| way | hard limit MB")[0]
    assert len(shown) == len(rows)
    for way, limit, s, peak, text, steps, decoding, anonymous in shown:
        if limit:  # named by what the device chose to keep to it
            row = of(rows, limit_bytes=int(limit) * 1_000_000)
            tiny, lean = row["chosen"]["decoder"] == "tiny", row["chosen"]["lean"]
            kind = row["way"].partition(",")[0] + (", tiny decoder" if tiny else ", own decoder")
            assert way == kind + (", lean" if lean else "")
        else:
            row = of(rows, way=way, limit_bytes=None)
        resident = {phase: p["resident"] / 1e6 for phase, p in row["peaks"].items()}
        most = max(p["anonymous"] for p in row["peaks"].values()) / 1e6
        wrong += off([(s, row["seconds"]), (peak, row["peak_bytes"] / 1e6), (text, resident["text"]),
                      (steps, resident["steps"]), (decoding, resident["decode"]), (anonymous, most)])  # fmt: skip
    assert wrong == []


WAYS = {
    "plain": "plain", "every 2nd step whole": "one step in 2 whole", "every 5th": "one step in 5 whole",
    "guided for 60 %": "guided for 60% of the steps",
    "both: the default": "one step in 2 whole, guided for 60% of the steps",
    "every 4th, guided for 40 %": "one step in 4 whole, guided for 40% of the steps",
}  # fmt: skip


def test_device_steps():
    rows, wrong = results("device_steps")["rows"], list[Check]()
    for k, way, passes, times, attributes, worst, psnr in filled(tables(DOCS / "device.md", "| k | way | passes")[0]):
        two = [of(rows, n=n, k=int(k), saving=WAYS[way]) for n in (2, 6)]
        plain = [of(rows, n=n, k=int(k), saving="plain") for n in (2, 6)]
        assert passes == f"{two[0]['whole']} + {two[0]['shallow']}"
        ratio = [a["seconds"] / b["seconds"] for a, b in zip(two, plain, strict=True)]
        for text, found in (
            (times, ratio), (attributes, [r["attributes"] for r in two]), (worst, [r["worst"] for r in two]),
            (psnr, [r["psnr_db"] for r in two]),
        ):  # fmt: skip
            wrong += off(zip(text.strip("*").split(", "), found, strict=False))
    assert wrong == []


def test_families():
    rows, wrong = {r["family"]: r for r in results("families")["rows"]}, list[Check]()
    shown = tables(DOCS / "device.md", "| family | checkpoint | export")[0]
    assert [row[0] for row in shown] == list(rows)
    for family, checkpoint, seconds, peak, parts, completion, optimum in shown:
        row = rows[family]
        own, bundle = row["export"], row["bundle"]
        all_parts = [c["psnr_db"] for c in bundle["components"].values()] + list(bundle["variants"].values())
        low, high = parts.split(" to ")
        wrong += off([
            (checkpoint, own["checkpoint_bytes"] / 1e9), (seconds, own["seconds"]), (peak, own["peak_bytes"] / 1e9),
            (peak.partition(", ")[2], own["peak_over_checkpoint"]), (low, min(all_parts)), (high, max(all_parts)),
            (completion, bundle["completion"]["psnr_db"]), (optimum.rpartition(" ")[2], row["optimum"]["psnr_db"]),
        ])  # fmt: skip
        assert row["optimum"]["pipeline"] in optimum
    assert wrong == []


def test_merged_tokens():
    found = results("merge_tokens")
    for merge, *cells in tables(DOCS / "device.md", "| tokens merged by")[0]:
        rows = [of(found["pictures"]["rows"], n=n, merge=int(merge)) for n in (2, 6)]
        told = zip(cells, ("attributes", "worst", "psnr_db"), strict=True)
        assert (
            off((text, row[key]) for cell, key in told for text, row in zip(cell.split(", "), rows, strict=False)) == []
        )
    seconds = [
        f"{of(found['time']['rows'], provider=p, merge=m)['median_s']:.2f}" for p in ("openvino", "cpu") for m in (2, 1)
    ]
    shown = " ".join((DOCS / "device.md").read_text("utf8").split())
    assert f"takes {seconds[0]} s instead of {seconds[1]} on OpenVINO" in shown
    assert f"and {seconds[2]} instead of {seconds[3]} on ONNX Runtime" in shown


def test_device_faults():
    rows = results("device_faults")["rows"]
    shown = tables(DOCS / "device.md", "| fault | exit code")[0]
    assert [r[0] for r in shown] == [r["fault"] for r in rows]
    assert [(int(r[1]), r[3]) for r in shown] == [(r["code"], r["left"]) for r in rows]
