"""A bundle's further precisions: calibrated on trajectories, mixed by measurement, refused below the floor."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from obclip.core.errors import InputError, VerificationError
from obclip.core.manifest import Variant
from obclip.core.pairs import Pair
from obclip.core.schedule import Schedule
from obclip.export.external import EXTERNAL_ABOVE_BYTES
from obclip.export.graphs.shared_data import SharedData
from obclip.export.quantise.graph import Feed, every, layers, load_graph
from obclip.export.quantise.qdq import tensors_to_range
from obclip.export.quantise.ranges import Range, activation_ranges
from obclip.export.quantise.run import PRECISIONS, apply, quantise
from obclip.export.quantise.sensitivity import Choice, Damage, choose, damage
from obclip.export.quantise.trajectories import (
    Trajectory,
    decoder_inputs,
    device_inputs,
    device_schedule,
    trajectories,
    unet_inputs,
)
from obclip.export.quantise.unets import DeviceUnet, Graph, Pass, Unet, WholeUnet
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
    measured: dict[tuple[object, ...], tuple[list[str], list[Damage]]] = field(default_factory=dict, compare=False)


def prepare(
    pair: Pair,
    bundle: Path,
    prompts: Sequence[str],
    latent_scale: float,
    *,
    large: Path | None = None,
    floor_db: float = FLOOR_DB,
    external_above_bytes: int = EXTERNAL_ABOVE_BYTES,
) -> Setting:
    """Trajectories of `prompts`, seeds 0, 1, ...; every fourth judges and is not calibrated on.

    large: diffusers folder of the cloud's model. InputError for fewer than two prompts.
    """
    if len(prompts) < 2:
        raise InputError(f"{len(prompts)} prompts: at least two are needed, one to calibrate on and one to judge by")
    found = trajectories(pair, bundle, prompts, range(len(prompts)), large=large)
    held = set(range(1, len(found), 4))
    return Setting(
        pair, bundle, device_schedule(pair, bundle),
        tuple(t for i, t in enumerate(found) if i not in held), tuple(t for i, t in enumerate(found) if i in held),
        latent_scale, floor_db, external_above_bytes,
    )  # fmt: skip


def quantise_unet(
    setting: Setting, given: Sequence[Variant], precision: str, target: str, tell: Progress = lambda text: None
) -> tuple[Variant, ...]:
    """Variants of the UNet at `precision`: of the target's device graphs where `given` has them, else a whole one.

    Files are `unet/TARGET_PRECISION_ROLE.onnx`. VerificationError: the finished picture is below the floor, or the
    response to the text more than 5 % off, with half of the work in float32 already.
    """
    _check(precision)
    folder = setting.bundle / "unet"
    passes = [v for v in given if v.component == "unet" and v.precision == "fp32" and v.target == target]
    full = next((v for v in passes if v.role == "full"), None)
    source = folder / "model.onnx" if full is None else setting.bundle / full.file
    feeds = every(_feeds(setting, target, full is not None), CALIBRATION_FEEDS)
    pictures = Pictures(setting.bundle / "vae_decoder" / "model.onnx", setting.latent_scale)

    def unet(graph: Graph) -> Unet:
        return WholeUnet(graph, setting.schedule) if full is None else DeviceUnet(folder, graph, setting.schedule)

    def judge(graph: Graph) -> Verdict:
        return of_unet(unet(graph), setting.judge, setting.schedule, setting.pair.guidance, pictures)

    notes: dict[str, Any] = {}
    excluded: tuple[str, ...] = ()
    data, ranges = _shared(folder), None
    if precision == "int8":
        ranges, choice = _mixed(setting, source, feeds, every(feeds, SENSITIVITY_FEEDS), target, judge, tell)
        excluded, notes = choice.excluded, choice.to_dict()
    role = "whole" if full is None else "full"
    out = folder / f"{target}_{precision}_{role}.onnx"
    options: dict[str, Any] = {"target": target, "data": data, "external_above_bytes": setting.external_above_bytes}
    report = quantise(source, out, precision, feeds, exclude=excluded, ranges=ranges, **options)
    report = replace(report, verdict=judge(out))
    _hold(report.verdict, setting.floor_db, out.name, precision)
    tell(f"{out.name}: {report.verdict.psnr_db:.1f} dB")
    found = [_variant("unet", role, precision, target, out, report.to_dict() | notes)]
    shallow = next((v for v in passes if v.role == "shallow"), None)
    if full is not None and shallow is not None:
        path, out = setting.bundle / shallow.file, folder / f"{target}_{precision}_shallow.onnx"
        same = _same_weights(source, excluded, path)
        made = quantise(path, out, precision, feeds, exclude=same, **options)
        found.append(_variant("unet", "shallow", precision, target, out, made.to_dict()))
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
    notes: dict[str, Any] = {}
    excluded: tuple[str, ...] = ()
    ranges = None
    if precision == "int8":
        parts = [_middle(feeds[0])]
        ranges, choice = _mixed(setting, source, feeds, parts, target, lambda g: of_graph(g, source, tests), tell)
        excluded, notes = choice.excluded, choice.to_dict()
    report = quantise(
        source, out, precision, feeds, target=target, exclude=excluded, ranges=ranges, data=_shared(folder),
        external_above_bytes=setting.external_above_bytes,
    )  # fmt: skip
    verdict = of_graph(out, source, tests)
    _hold(verdict, setting.floor_db, out.name, precision)
    tell(f"{out.name}: {verdict.psnr_db:.1f} dB")
    return _variant("vae_decoder", role, precision, target, out, replace(report, verdict=verdict).to_dict() | notes)


def _mixed(
    setting: Setting,
    source: Path,
    feeds: Sequence[Feed],
    probes: Sequence[Feed],
    target: str,
    judge: Callable[[Graph], Verdict],
    tell: Progress,
) -> tuple[dict[str, Range], Choice]:
    ranges = activation_ranges(source, tensors_to_range(load_graph(source), target), feeds)
    tell(f"{source.name}: calibrated on {len(feeds)} inputs")
    table, names = _sensitivity(setting, source, ranges, probes, target)
    tell(f"{source.name}: sensitivity of {len(names)} layers, by groups")

    def measured(excluded: tuple[str, ...]) -> Verdict:
        chosen = [name for name in names if name not in excluded]
        verdict = judge((apply(source, "int8", chosen, target, ranges), source.parent))
        tell(f"{source.name}: {len(excluded)} layers float, {verdict.psnr_db:.1f} dB")
        return verdict

    return ranges, choose(table, measured, setting.floor_db)


def _sensitivity(
    setting: Setting, source: Path, ranges: dict[str, Range], probes: Sequence[Feed], target: str
) -> tuple[list[Damage], list[str]]:
    """Damage of the graph's groups, as measured on this or another graph of the same layers; names of its layers."""
    model = load_graph(source)
    found = layers(model)
    names, key = [layer.name for layer in found], (source.parent, *(_key(model, layer.weight) for layer in found))
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
            f"{verdict.conditioning:.3f} of its response to the text (wanted 1 within 5 %); leave {precision} out"
        )


def _check(precision: str) -> None:
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; choose one of {', '.join(PRECISIONS)}")
