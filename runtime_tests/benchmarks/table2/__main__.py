"""The paper's tables on any pair: every compared system run, its quality, its cost, and what the cloud learns.

    python -m runtime_tests.benchmarks.table2 --pair emoji --out docs/results          # embedded: CPU, an hour
    python -m runtime_tests.benchmarks.table2 --pair realistic-vision --macs-only      # a shape, in seconds
    python -m runtime_tests.benchmarks.table2 --pair sdxl --macs-only --seconds bfloat16 --rows 2  # random weights
    python -m runtime_tests.benchmarks.table2 --pair realistic-vision --clip openai/clip-vit-large-patch14 \\
        --reference PICTURES --out results                                             # real weights, a GPU, a night

Pictures: every candidate of every set is drawn as if it were the real prompt, one noise a set. Of the emoji pair the
sets are emoji captions and the shipped classifier judges; of others, portraits from ten templates or captions of one's
own, and CLIP judges; captions of photographs drawn by the emoji pair are judged by the classifier, gender alone.
Multiply-accumulates are counted as the paper counts (costs.macs). What was drawn is kept in --work, so that a run that
was cut off goes on. Writes table2.json, .csv, .md and plots.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel

from obclip.cloud.cost import Profile, profile_unet
from obclip.cloud.model import load_model
from obclip.cloud.plans import default_plan, load_planner
from obclip.cloud.unet import LayeredUNet
from obclip.core.files import atomic_write_bytes
from obclip.core.pairs import Pair, load_pair
from obclip.edge import Bundle
from obclip.edge.machine import machine
from obclip.export.classifier import load_classifier

from ..architectures import CLOUD_UNETS, DEVICE_UNETS, TOKENS
from ..server_cost import random_model
from ..server_time import Made
from . import report
from .composed import DevicePasses, composed_cloud_seconds
from .costs import cloud_seconds, device_seconds, macs, wire_bytes
from .devices import BundleDevice, Device, TorchDevice
from .draw import ROWS, Setup, pictures
from .he_diffusion import PYTHON as CRYPTO_PYTHON
from .he_diffusion import Encryption, encrypted_latents
from .methods import DEVICE, HE, MPC, OBLIVIOUS, READS, SERVER, Method, methods
from .metrics import ClipJudge, EmojiJudge, Judge, Scores, fidelity, summary
from .observer import Sanitizers, learns
from .prompts import choose, flat

SETS = {2: 40, 6: 16, 30: 4}
_DEVICE_SHAPE = {
    "realistic-vision": "small-sd", "sd14": "bk-sdm-small", "sd14-tiny": "bk-sdm-tiny", "sdxl": "koala-700m",
    "lcm-sdxl": "koala-700m",
}  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="emoji", help="a shipped pair, or a pair file")
    parser.add_argument("--n", type=int, nargs="+", choices=sorted(SETS), default=[2, 6, 30])
    parser.add_argument("--k", type=int, nargs="+", help="default: 5 and 10, or the pair's own if it has few steps")
    parser.add_argument("--shifts", type=int, nargs="+", default=[], help="further Δt, for a device with its own steps")
    parser.add_argument("--epsilons", type=float, nargs="+", default=[4.0, 8.0, 16.0], help="of the sanitizers")
    parser.add_argument("--sets", type=int, help="candidate sets drawn for each N; default 40, 16 and 4")
    parser.add_argument("--prompts", choices=["emoji", "templates", "captions"], help="default: by the pair")
    parser.add_argument("--captions", type=Path, help="a text file, one caption a line")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cloud", type=Path, help="a diffusers folder in place of the pair's cloud model")
    parser.add_argument("--device", type=Path, help="a diffusers folder in place of the pair's device model")
    parser.add_argument("--bundle", type=Path, help="an exported bundle: the device's half then runs on it")
    parser.add_argument("--plan", help="a pair's name or a TOML file; default: the pair's own")
    parser.add_argument("--clip", help="a CLIP folder or hub id that judges photographs")
    parser.add_argument("--reference", type=Path, help="a folder of pictures, for FID")
    parser.add_argument("--inception", type=Path, help="torch-fidelity's Inception weights, in a file")
    parser.add_argument(
        "--crypto", type=Path, default=Path("docs/results/crypto.json"), help="benchmarks.crypto's results"
    )
    parser.add_argument("--sweep", type=int, nargs="*", default=[6], help="N of the sweep over k; none to leave it out")
    parser.add_argument("--runs", type=int, default=3, help="timed ones; 0 for none")
    parser.add_argument("--macs-only", action="store_true", help="no weights: costs and bytes alone")
    parser.add_argument(
        "--seconds",
        metavar="DTYPE",
        help="with --macs-only: seconds too, of random weights of full size "
        "in this dtype, from timed passes; the device's from --bundle on --provider",
    )
    parser.add_argument(
        "--cloud-from", type=Path, help="with --macs-only: an earlier table2_PAIR.json, whose cloud seconds are taken"
    )
    parser.add_argument("--rows", type=int, default=8, help="of a timed pass at most; a CPU gains nothing by more")
    parser.add_argument("--provider", default="auto", help="of the device's timed passes")
    parser.add_argument("--work", type=Path, help="keeps pictures; default out/table2/PAIR")
    parser.add_argument("--out", type=Path, default=Path("out"))
    return parser.parse_args()


def shape_profiles(pair: Pair) -> tuple[Profile, Profile, LayeredUNet]:
    """Of the pair's published shapes, on the meta device."""
    with torch.device("meta"):
        layered = LayeredUNet(UNet2DConditionModel(**CLOUD_UNETS[pair.name]))
        small = LayeredUNet(UNet2DConditionModel(**DEVICE_UNETS[_DEVICE_SHAPE[pair.name]]))
    return profile_unet(layered, pair.latent_shape, TOKENS), profile_unet(small, pair.latent_shape, TOKENS), layered


def unet_of(folder: Path) -> LayeredUNet:
    with torch.device("meta"):
        return LayeredUNet(UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet")))


class Pictures:
    """Scores and pictures of one group of methods and one N, drawn once and kept in a file."""

    def __init__(self, work: Path, setup: Setup, judge: Judge, sanitizers: Sanitizers | None) -> None:
        self.work, self.setup, self.judge, self.sanitizers = work, setup, judge, sanitizers
        p = setup.pair
        made_of = [p.digest, setup.model.digest, flat(setup.sets), judge.name]
        self._of = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:12]

    def of(self, method: Method) -> tuple[Scores, list[np.ndarray]]:
        n = len(self.setup.sets[0].prompts)
        name = "".join(c if c.isalnum() else "-" for c in method.pictures)
        path = self.work / f"{name}.n{n}.{self._of}.npz"
        if path.is_file():
            with np.load(path) as kept:
                images = list(kept["images"].reshape(len(self.setup.sets), n, *kept["images"].shape[1:]))
        else:
            started = time.perf_counter()
            images = pictures(self.setup, method, self.sanitizers)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".part.npz")
            np.savez_compressed(partial, images=np.concatenate(images))
            partial.replace(path)
            print(f"N {n}, {method.pictures}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        return self.judge.run(self.setup.sets, images), images


def rows_of(
    asked: argparse.Namespace, setup: Setup, judge: Judge, cloud: Profile, device: Profile, chosen: Sequence[Method],
    sanitizers: Sanitizers | None, timed: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    """One N's rows."""
    drawn = Pictures(asked.work, setup, judge, sanitizers)
    server, base = drawn.of(Method("server only", SERVER))
    prompts, n = setup.sets[0].prompts, len(setup.sets[0].prompts)
    seconds = cloud_seconds(setup, chosen, prompts, asked.runs) if timed and asked.runs else {}
    here = device_seconds(setup, chosen, prompts, asked.runs) if timed and asked.runs else {}
    rows, known = [], dict[str, dict[str, Any]]()
    for method in chosen:
        if method.pictures not in known and method.kind != MPC:  # whose layers were run, not its pictures
            scores, images = drawn.of(method)
            found = summary(judge, setup.sets, scores, server, images, base, asked.seed)
            if asked.reference is not None or asked.inception is not None:
                found |= fidelity(images, asked.reference, asked.inception)
            known[method.pictures] = found
        row = head(method, n) | known.get(method.pictures, {}) | macs(setup, method, prompts, cloud, device)
        row |= wire_bytes(setup, method, prompts) | seconds.get(method.key, {}) | here.get(method.key, {})
        if sanitizers is not None:
            row |= learns(method, sanitizers)
        rows.append(row)
    return rows


def head(method: Method, n: int) -> dict[str, Any]:
    reads = READS[method.kind].replace("N candidates", f"{n} candidates, not which")
    return {"method": method.name, "key": method.key, "kind": method.kind, "n": n, "k": method.k, "reads": reads}


def add_ratios(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        server = next(r for r in rows if r["kind"] == SERVER and r["n"] == row["n"])
        row["times_server"] = round(row["macs_cloud"] / server["macs_cloud"], 4)


def add_crypto(rows: list[dict[str, Any]], setup: Setup | None, pair: Pair, crypto: dict[str, Any]) -> None:
    """Time and bytes of the cryptographic rows: HE-Diffusion's run here, MPC's as benchmarks.crypto composed it."""
    for row in rows:
        if row["kind"] == HE and setup is not None:
            told: list[Encryption] = []
            encrypted_latents(setup.model, pair, setup.sets[0].prompts[0], 0, told)
            e = told[0]
            server = next((r.get("cloud_s") or 0.0 for r in rows if r["kind"] == SERVER and r["n"] == row["n"]), 0.0)
            row["cloud_s"] = round(server + e.seconds["update_s"], 4)
            row["device_s"] = round(e.seconds["encrypt_s"] + e.seconds["decrypt_s"], 4)
            row["bytes_up"] = row["bytes_down"] = e.sent_bytes
        if row["kind"] == MPC:
            for name in ("cloud_s", "cloud_s_min", "cloud_s_max", "device_s", "macs_cloud_published", "times_server"):
                row.pop(name, None)  # of a run in the clear: shares are another arithmetic
            found = crypto.get("semi2k", {}).get("whole", {}).get(pair.name)
            if found:
                row |= {"cloud_s": round(found["LAN_s"], 1), "wan_s": round(found["WAN_s"], 1)}
                row["bytes_up"] = row["bytes_down"] = int(found["bytes"] / 2)


def macs_only(asked: argparse.Namespace, pair: Pair, ks: Sequence[int], result: dict[str, Any]) -> list[dict[str, Any]]:
    cloud, device, layered = shape_profiles(pair)
    distilled = pair.solver == "lcm"
    planner, timed = (
        load_planner(asked.plan or default_plan(pair.name), pair.steps, layered.depth, rows, distilled)
        for rows in (ROWS, asked.rows)
    )
    model: Any = type("Shape", (), {"layered": layered, "guidance_distilled": distilled})
    known = earlier_seconds(asked, pair, result)
    if asked.seconds:
        model = random_model(pair, asked.seconds)
    timed_too = asked.seconds or asked.cloud_from
    here = DevicePasses(asked.bundle, asked.provider, asked.runs) if timed_too and asked.bundle else None
    if here is not None:
        result["settings"]["device"] = here.told
    made: Made = {}
    rows: list[dict[str, Any]] = []
    for n in asked.n:
        sets = choose(asked.prompts, n, 1, asked.seed, asked.captions)
        nobody: Any = None
        setup, narrow = (
            Setup(pair, model, planner, nobody, sets),
            Setup(pair, model, timed, nobody, sets, rows=asked.rows),
        )
        for method in methods(ks, (), False, asked.shifts):
            one = macs(setup, method, sets[0].prompts, cloud, device)
            if asked.seconds:
                one |= {"cloud_s": composed_cloud_seconds(narrow, method, sets[0].prompts, asked.runs, made)}
                print(f"N {n}, {method.key}: {one['cloud_s']} s", file=sys.stderr, flush=True)
            if asked.cloud_from:
                one |= known.get((n, method.key), {"cloud_s": None})
                if one["cloud_s"] is None and method.kind != DEVICE:
                    print(f"N {n}, {method.key}: no seconds of the cloud in {asked.cloud_from}", file=sys.stderr)
            one |= here.of(setup, method) if here is not None else {}
            rows.append(head(method, n) | one | wire_bytes(setup, method, sets[0].prompts))
    add_ratios(rows)
    return rows


def earlier_seconds(
    asked: argparse.Namespace, pair: Pair, result: dict[str, Any]
) -> dict[tuple[int, str], dict[str, Any]]:
    """By N and the method's key. The settings say that the device's are of a run of their own."""
    if not asked.cloud_from:
        return {}
    earlier = json.loads(asked.cloud_from.read_text())
    if earlier["pair"] != pair.name or asked.seconds:
        raise SystemExit(f"{asked.cloud_from} is of {earlier['pair']}, this of {pair.name}; and --seconds times anew")
    theirs, ours = earlier["settings"], result["settings"]
    if "dtype" not in theirs:
        raise SystemExit(f"{asked.cloud_from} has no seconds; make it with --seconds")
    if other := [name for name in ("steps", "guidance", "solver", "prompts", "seed") if theirs[name] != ours[name]]:
        raise SystemExit(f"{asked.cloud_from} was made with other {', '.join(other)}")
    told = {name: theirs[name] for name in ("weights", "dtype", "rows_of_a_pass")}
    machine_there = {name: earlier["machine"][name] for name in ("cpu", "cores")}
    result["settings"] |= told | {"cloud_s": {"runs": theirs["runs"], "of an earlier run on": machine_there}}
    return {(r["n"], r["key"]): {"cloud_s": r.get("cloud_s")} for r in earlier["rows"]}


def judge_of(asked: argparse.Namespace) -> Judge:
    if asked.pair == "emoji" and asked.clip is None:
        return EmojiJudge(load_classifier())
    if asked.clip is None:
        raise SystemExit("photographs are judged by CLIP: give --clip, a folder or a hub id (or --macs-only)")
    return ClipJudge(asked.clip)


def device_of(asked: argparse.Namespace, pair: Pair) -> tuple[Device, LayeredUNet]:
    if asked.bundle is not None or asked.pair == "emoji":
        threads = None if asked.runs else 1  # nothing is timed then, and threads of small models mostly wait
        bundle = Bundle.open(str(asked.bundle) if asked.bundle is not None else "emoji", threads=threads)
        return BundleDevice(bundle, pair), unet_of(bundle.folder)
    small = TorchDevice(pair, asked.device)
    return small, small.model.layered


def main() -> None:
    asked = arguments()
    pair, started = load_pair(asked.pair), time.perf_counter()
    asked.prompts = asked.prompts or ("emoji" if pair.name == "emoji" else "templates")
    if asked.prompts != "emoji" and pair.name == "emoji":
        pair = replace(pair, policy="default")  # photographs' captions are not written in the emoji's words
    asked.work = asked.work or Path("out") / "table2" / pair.name
    ks = asked.k or ([5, 10] if pair.steps > 10 else [pair.handoff])
    result: dict[str, Any] = {"machine": machine(), "pair": pair.name, "settings": {
        "steps": pair.steps, "k": ks, "n": asked.n, "guidance": pair.guidance, "solver": pair.solver,
        "prompts": asked.prompts, "seed": asked.seed, "runs": asked.runs, "counting": "guidance included; "
        "of attention's two products the cloud's column has one and the device's none, as the paper's do",
    }}  # fmt: skip
    if asked.macs_only:
        if asked.seconds:
            result["settings"] |= {"weights": "random", "dtype": asked.seconds, "rows_of_a_pass": asked.rows}
        result["rows"] = macs_only(asked, pair, ks, result)
        write(asked, pair, result)
        return
    crypto = json.loads(asked.crypto.read_text()) if asked.crypto.is_file() else {}
    model = load_model(pair, source=asked.cloud)
    planner = load_planner(
        asked.plan or default_plan(pair.name),
        pair.steps,
        model.layered.depth,
        guidance_distilled=model.guidance_distilled,
    )
    device, small = device_of(asked, pair)
    cloud_profile = profile_unet(model.layered, pair.latent_shape, model.text.max_tokens)
    device_profile = profile_unet(small, pair.latent_shape, model.text.max_tokens)
    judge = judge_of(asked)
    chosen = methods(ks, asked.epsilons, with_crypto=CRYPTO_PYTHON.exists(), shifts=asked.shifts)
    if isinstance(device, TorchDevice):
        chosen = [m if not m.saving else Method(**(asdict(m) | {"saving": False})) for m in chosen]
    result["settings"] |= {"judge": judge.name, "epsilons": asked.epsilons, "sets": {}}
    rows, sweep = [], []
    for n in asked.n:
        sets = choose(asked.prompts, n, asked.sets or SETS[n], asked.seed, asked.captions)
        result["settings"]["sets"][n] = len(sets)
        setup = Setup(pair, model, planner, device, sets)
        sanitizers = Sanitizers.of(sets, pair.policy, known_sentences(asked))
        some = rows_of(asked, setup, judge, cloud_profile, device_profile, chosen, sanitizers, timed=True)
        add_ratios(some)
        add_crypto(some, setup, pair, crypto)
        rows += some
        if n == sheet_of(asked.n):
            write_sheet(asked, setup, judge, sanitizers, chosen, ks)
        if n in asked.sweep:
            saves = isinstance(device, BundleDevice)
            every = [Method("ObCLIP", OBLIVIOUS, k) for k in range(1, pair.steps)]
            every += [Method("ours", OBLIVIOUS, k, "ours", saves) for k in range(1, pair.steps)]
            sweep += rows_of(asked, setup, judge, cloud_profile, device_profile, every, None, timed=False)
            for k, row in ((0, next(r for r in some if r["method"] == "device only")), (pair.steps, some[0])):
                sweep += [row | {"method": name, "k": k} for name in ("ObCLIP", "ours")]
    result |= {"rows": rows, "sweep": sweep, "seconds": round(time.perf_counter() - started)}
    if crypto:
        result["he_bound_s"] = crypto["he"]["bounds"].get(pair.name, {}).get("seconds")
    write(asked, pair, result)


def sheet_of(ns: Sequence[int]) -> int:
    """The N that pictures and seconds are shown of."""
    return max((n for n in ns if n <= 6), default=min(ns))


def write_sheet(
    asked: argparse.Namespace, setup: Setup, judge: Judge, sanitizers: Sanitizers, chosen: Sequence[Method],
    ks: Sequence[int],
) -> None:  # fmt: skip
    drawn, columns = Pictures(asked.work, setup, judge, sanitizers), []
    for name in report.SHEET:
        method = next((m for m in chosen if m.key.startswith(name.format(k=max(ks)))), None)
        if method is not None:
            columns.append((method.key, [images[0] for images in drawn.of(method)[1]]))
    asked.out.mkdir(parents=True, exist_ok=True)
    stem = stem_of(setup.pair, asked.prompts)
    report.sheet(columns, [one.prompts[0] for one in setup.sets], asked.out / f"{stem}_sheet.png")


def stem_of(pair: Pair, prompts: str) -> str:
    if pair.name == "emoji":
        return "table2" if prompts == "emoji" else f"table2_{prompts}"
    return f"table2_{pair.name}"


def known_sentences(asked: argparse.Namespace) -> list[str]:
    """What the sanitizers' language model and vocabulary are made from, beside the sets themselves."""
    from ..emoji_captions import built_in_captions

    if asked.captions is not None:
        return [line for line in asked.captions.read_text(encoding="utf8").splitlines() if line.strip()]
    return list(built_in_captions()) if asked.prompts == "emoji" else []


def write(asked: argparse.Namespace, pair: Pair, result: dict[str, Any]) -> None:
    out, rows = asked.out, result["rows"]
    out.mkdir(parents=True, exist_ok=True)
    stem = stem_of(pair, asked.prompts)
    here = result["machine"]
    lines = [f"{pair.name}: {here['cpu']}, {here['cores']} cores; `{json.dumps(result['settings'])}`"]
    for n in asked.n:
        lines += [
            f"\n## N = {n}\n",
            report.table2(rows, n, photographs=asked.clip is not None or asked.pair != "emoji"),
        ]
        if not asked.macs_only:
            lines += ["\n### Privacy, cost and utility\n", report.table1(rows, n)]
    text = "\n".join(lines) + "\n"
    print(text)
    atomic_write_bytes(out / f"{stem}.json", (json.dumps(result, indent=1) + "\n").encode())
    atomic_write_bytes(out / f"{stem}.csv", report.as_csv(rows))
    atomic_write_bytes(out / f"{stem}.md", text.encode())
    if asked.macs_only:
        return
    report.plot_quality(rows, out / f"{stem}_quality")
    report.plot_latency(rows, out / f"{stem}_latency", sheet_of(asked.n))
    if result.get("sweep"):
        report.plot_sweep(result["sweep"], out / f"{stem}_sweep", pair.steps)


if __name__ == "__main__":
    main()
