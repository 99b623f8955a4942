"""A bundle's further precisions: calibrated on trajectories, mixed by measurement, refused below the floor."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from obclip.core.errors import InputError, VerificationError
from obclip.core.manifest import Variant
from obclip.core.pairs import Pair
from obclip.core.schedule import Schedule
from obclip.export.external import EXTERNAL_ABOVE_BYTES, SharedData
from obclip.export.quantise.begun import Begun
from obclip.export.quantise.graph import Feed, every, layers, load_graph
from obclip.export.quantise.measured import Measured
from obclip.export.quantise.qdq import tensors_to_range
from obclip.export.quantise.ranges import Range, activation_ranges
from obclip.export.quantise.run import PRECISIONS, apply, quantise
from obclip.export.quantise.runtimes import Graph
from obclip.export.quantise.sensitivity import Choice, Damage, choose, damage
from obclip.export.quantise.trajectories import (
    Trajectory,
    decoder_inputs,
    device_inputs,
    device_schedule,
    finished,
    trajectories,
    unet_inputs,
)
from obclip.export.quantise.unets import DeviceUnet, Pass, Unet, WholeUnet, denoise
from obclip.export.quantise.verdict import FLOOR_DB, Pictures, Verdict, of_graph, of_unet

Progress = Callable[[str], None]
CALIBRATION_FEEDS = 32
SENSITIVITY_FEEDS = 2


@dataclass(frozen=True)
class Setting:
    """What one UNet or decoder is quantised with. calibrate: trajectories that ranges come from; judge: the others.

    measured: sensitivity by the weights that a graph's layers read, in order: targets whose graphs differ in
    attention's operator alone are measured once, on the first one's. It orders layers; each target's choice is judged
    on its own graph.
    """

    pair: Pair
    bundle: Path
    schedule: Schedule
    calibrate: tuple[Trajectory, ...]
    judge: tuple[Trajectory, ...]
    latent_scale: float
    floor_db: float = FLOOR_DB
    external_above_bytes: int = EXTERNAL_ABOVE_BYTES
    measured: Measured = field(default_factory=Measured, compare=False)


def prepare(
    pair: Pair,
    bundle: Path,
    prompts: Sequence[str],
    latent_scale: float,
    *,
    large: Path | None = None,
    begun: Sequence[Begun] = (),
    floor_db: float = FLOOR_DB,
    external_above_bytes: int = EXTERNAL_ABOVE_BYTES,
    measured: Path | None = None,
) -> Setting:
    """Trajectories of `prompts`, seeds 0, 1, ...; every fourth judges and is not calibrated on.

    large: diffusers folder of the cloud's model. begun: what a cloud sent, in place of prompts. measured: file that
    keeps sensitivity. InputError for fewer than two of them.
    """
    if (count := len(begun or prompts)) < 2:
        what = "latents" if begun else "prompts"
        raise InputError(f"{count} {what}: at least two are needed, one to calibrate on and one to judge by")
    if begun:
        found = finished(pair, bundle, begun, device_schedule(pair, bundle))
    else:
        found = trajectories(pair, bundle, prompts, range(len(prompts)), large=large)
    held = set(range(1, len(found), 4))
    return Setting(
        pair, bundle, device_schedule(pair, bundle),
        tuple(t for i, t in enumerate(found) if i not in held), tuple(t for i, t in enumerate(found) if i in held),
        latent_scale, floor_db, external_above_bytes, Measured(measured),
    )  # fmt: skip


def quantise_unet(
    setting: Setting, given: Sequence[Variant], precision: str, target: str, tell: Progress = lambda text: None
) -> tuple[Variant, ...]:
    """Variants of the UNet at `precision`: of the target's device graphs where `given` has them, else a whole one.

    Files are `unet/TARGET_PRECISION_ROLE.onnx`. The shallow graph is judged in turns with the full one, on whose
    features it runs. VerificationError: the finished picture is below the floor, or the response to the text more than
    5 % off, of int8 with as much in float32 as `choose` takes.
    """
    _check(precision)
    folder = setting.bundle / "unet"
    passes = [v for v in given if v.component == "unet" and v.precision == "fp32" and v.target == target]
    full = next((v for v in passes if v.role == "full"), None)
    source = folder / "model.onnx" if full is None else setting.bundle / full.file
    feeds = every(_feeds(setting, target, full is not None), CALIBRATION_FEEDS)
    pictures = Pictures(setting.bundle / "vae_decoder" / "model.onnx", setting.latent_scale)

    def unet(graph: Graph) -> Unet:
        if full is None:
            return WholeUnet(graph, setting.schedule, target)
        return DeviceUnet(folder, graph, setting.schedule, target)

    def judge(graph: Graph) -> Verdict:
        return of_unet(unet(graph), setting.judge, setting.schedule, setting.pair.guidance, pictures)

    shallow = next((v for v in passes if v.role == "shallow"), None)
    path = None if full is None or shallow is None else setting.bundle / shallow.file
    judge_pair = None if path is None else _in_turns(setting, source, path, target, pictures)
    shallow_ranges: dict[str, Range] | None = None

    def judge_with_shallow(graph: Graph, excluded: tuple[str, ...]) -> Verdict:
        assert path is not None
        assert judge_pair is not None
        same = _same_weights(source, excluded, path)
        chosen = [layer.name for layer in layers(load_graph(path)) if layer.name not in same]
        return judge_pair(graph, (apply(path, precision, chosen, target, shallow_ranges), folder))

    notes: dict[str, Any] = {}
    excluded: tuple[str, ...] = ()
    data, ranges = _shared(folder), None
    if precision == "int8":
        if path is not None:
            shallow_ranges = activation_ranges(path, tensors_to_range(load_graph(path), target), feeds)
        also, probes = None if path is None else judge_with_shallow, every(feeds, SENSITIVITY_FEEDS)
        ranges, choice = _mixed(setting, source, feeds, probes, target, judge, tell, also)
        excluded, notes = choice.excluded, choice.to_dict()
    role = "whole" if full is None else "full"
    out = folder / f"{target}_{precision}_{role}.onnx"
    options: dict[str, Any] = {"target": target, "data": data, "external_above_bytes": setting.external_above_bytes}
    report = quantise(source, out, precision, feeds, exclude=excluded, ranges=ranges, judge=judge, **options)
    _hold(report.verdict, setting.floor_db, out.name, precision)
    tell(f"{out.name}: {report.verdict.psnr_db:.1f} dB")
    found = [_variant("unet", role, precision, target, out, report.to_dict() | notes)]
    if path is not None and judge_pair is not None:
        options |= {"exclude": _same_weights(source, excluded, path), "ranges": shallow_ranges}
        other = folder / f"{target}_{precision}_shallow.onnx"
        made = quantise(path, other, precision, feeds, judge=partial(judge_pair, out), **options)
        _hold(made.verdict, setting.floor_db, other.name, precision)
        tell(f"{other.name}: {made.verdict.psnr_db:.1f} dB")
        found.append(_variant("unet", "shallow", precision, target, other, made.to_dict()))
    depth = {} if full is None else {k: v for k, v in full.verification.items() if k in ("depth", "merge")}
    return tuple(replace(v, verification=v.verification | depth) for v in found)


def quantise_decoder(
    setting: Setting, precision: str, target: str, file: str = "model.onnx", role: str = "whole",
    tell: Progress = lambda text: None,
) -> Variant:  # fmt: skip
    """A variant of the decoder in `vae_decoder/FILE` (the tiny one has a file of its own); judged by its pictures."""
    _check(precision)
    folder = setting.bundle / "vae_decoder"
    source, out = folder / file, folder / f"{target}_{precision}_{role}.onnx"
    feeds = every(decoder_inputs(setting.calibrate, setting.latent_scale), CALIBRATION_FEEDS)
    tests = list(decoder_inputs(setting.judge, setting.latent_scale))

    def judge(graph: Graph) -> Verdict:
        return of_graph(graph, source, tests, target)

    notes: dict[str, Any] = {}
    excluded: tuple[str, ...] = ()
    ranges = None
    if precision == "int8":
        parts = [_middle(feeds[0])]
        ranges, choice = _mixed(setting, source, feeds, parts, target, judge, tell)
        excluded, notes = choice.excluded, choice.to_dict()
    report = quantise(
        source, out, precision, feeds, target=target, exclude=excluded, ranges=ranges, data=_shared(folder),
        external_above_bytes=setting.external_above_bytes, judge=judge,
    )  # fmt: skip
    _hold(report.verdict, setting.floor_db, out.name, precision)
    tell(f"{out.name}: {report.verdict.psnr_db:.1f} dB")
    return _variant("vae_decoder", role, precision, target, out, report.to_dict() | notes)


def _in_turns(
    setting: Setting, full: Path, shallow: Path, target: str, pictures: Pictures
) -> Callable[[Graph, Graph], Verdict]:
    """Judges a full and a shallow graph in turns, as the device runs them, against these float32 ones in the same."""
    schedule, guidance = setting.schedule, setting.pair.guidance
    cached = range(setting.judge[0].start + 1, schedule.steps - 1, 2)

    def unet(graphs: tuple[Graph, Graph], on: str) -> Unet:
        return DeviceUnet(full.parent, graphs[0], schedule, on, graphs[1], cached)

    wanted, exact = [], unet((full, shallow), "cpu")
    for t in setting.judge:
        seen: list[Pass] = []
        last = denoise(exact, schedule, t.x, t.start, t.branches, guidance, t.x0, t.seed, seen)
        wanted.append(replace(t, passes=tuple(seen), last=last))
    return lambda *graphs: of_unet(unet(graphs, target), wanted, schedule, guidance, pictures, cached=cached)


def _mixed(
    setting: Setting,
    source: Path,
    feeds: Sequence[Feed],
    probes: Sequence[Feed],
    target: str,
    judge: Callable[[Graph], Verdict],
    tell: Progress,
    also: Callable[[Graph, tuple[str, ...]], Verdict] | None = None,
) -> tuple[dict[str, Range], Choice]:
    """also(graph, layers left float): judges what met the floor once more, with what belongs to it."""
    ranges = activation_ranges(source, tensors_to_range(load_graph(source), target), feeds)
    tell(f"{source.name}: calibrated on {len(feeds)} inputs")
    table, names = _sensitivity(setting, source, ranges, probes, target)
    tell(f"{source.name}: sensitivity of {len(names)} layers, by groups")

    def measured(excluded: tuple[str, ...]) -> Verdict:
        chosen = [name for name in names if name not in excluded]
        graph = apply(source, "int8", chosen, target, ranges), source.parent
        verdict = judge(graph)
        if also is not None and verdict.meets(setting.floor_db):
            second = also(graph, excluded)
            verdict = verdict if second.meets(setting.floor_db) else second
        tell(f"{source.name}: {len(excluded)} layers float, {verdict.psnr_db:.1f} dB")
        return verdict

    return ranges, choose(table, measured, setting.floor_db)


def _sensitivity(
    setting: Setting, source: Path, ranges: dict[str, Range], probes: Sequence[Feed], target: str
) -> tuple[list[Damage], list[str]]:
    """Damage of the graph's groups, as measured on this or another graph of the same layers; names of its layers."""
    model = load_graph(source)
    found = layers(model)
    names = [layer.name for layer in found]
    read = (source.parent.name, *(_key(model, layer.weight) for layer in found))
    key = hashlib.sha256(repr(read).encode()).hexdigest()
    if key not in setting.measured:
        setting.measured[key] = names, damage(source, ranges, probes, target)
    theirs, table = setting.measured[key]
    mine = dict(zip(theirs, names, strict=True))
    return [replace(d, layers=tuple(mine[name] for name in d.layers)) for d in table], names


def _middle(feed: Feed) -> Feed:
    """The middle quarter of the latents, where they are at least 32 wide and high."""
    x = feed["latent_sample"]
    cut = [slice(size // 4, size // 4 + size // 2) if size >= 32 else slice(None) for size in x.shape[-2:]]
    return {"latent_sample": np.ascontiguousarray(x[..., cut[0], cut[1]])}


def _feeds(setting: Setting, target: str, device: bool) -> Sequence[Feed]:
    if not device:
        return list(unet_inputs(setting.calibrate, setting.schedule, setting.bundle))
    few = [replace(t, passes=some_passes(t)) for t in setting.calibrate]
    return list(device_inputs(few, setting.schedule, setting.bundle / "unet", target))


def some_passes(found: Trajectory, at_most: int = 5) -> tuple[Pass, ...]:
    """Passes of at most `at_most` evenly spaced steps, each with the one before it, whose features it takes."""
    steps = sorted({p.step for p in found.passes})
    picked = every(range(1, len(steps)), at_most)
    wanted = {steps[i + d] for i in picked for d in (-1, 0)}
    return tuple(p for p in found.passes if p.step in wanted)


def _same_weights(source: Path, excluded: Sequence[str], other: Path) -> list[str]:
    """Layers of `other` that read the weights which the `excluded` ones of `source` read."""
    first, second = load_graph(source), load_graph(other)
    wanted = {_key(first, layer.weight) for layer in layers(first) if layer.name in excluded}
    return [layer.name for layer in layers(second) if _key(second, layer.weight) in wanted]


def _key(model: ir.Model, name: str) -> object:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    if isinstance(tensor, ir.ExternalTensor):
        return tensor.offset
    return hashlib.sha256(np.ascontiguousarray(tensor.numpy()).tobytes()).digest()


def _shared(folder: Path) -> SharedData | None:
    """The component's file of weights, where it has one; weights that any graph of it has there are found again."""
    path = folder / "model.onnx_data"
    if not path.exists():
        return None
    data = SharedData(path)
    for precision in ("fp16", "int8", "w8"):
        for graph in sorted(folder.glob(f"*_{precision}_*.onnx")):
            data.adopt(graph)
    return data


def _variant(component: str, role: str, precision: str, target: str, path: Path, notes: dict[str, Any]) -> Variant:
    model = ir.load(path)
    io = [{str(v.name): _shape(v) for v in values} for values in (model.graph.inputs, model.graph.outputs)]
    return Variant(component, role, precision, target, f"{path.parent.name}/{path.name}", io[0], io[1], notes)


def _shape(value: ir.Value) -> list[int | str]:
    return [size if isinstance(size, int) else str(size) for size in value.shape or ()]


def _hold(verdict: Verdict, floor_db: float, name: str, precision: str) -> None:
    if not verdict.meets(floor_db):
        raise VerificationError(
            f"{name}: {precision} gives pictures {verdict.psnr_db:.1f} dB from float32 (wanted {floor_db:.0f}) and "
            f"{verdict.conditioning:.3f} of its response to the text (wanted 1 within 5 %); ask for less "
            f"(--picture-psnr), or leave {precision} out"
        )


def _check(precision: str) -> None:
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; choose one of {', '.join(PRECISIONS)}")
