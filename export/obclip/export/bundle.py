"""A device bundle from a diffusers folder or hub id: optimum's layout, a manifest, and proof that nothing was lost."""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from obclip.core.errors import InputError, ModelMissingError, RunError
from obclip.core.files import check_replaceable, sha256_file
from obclip.core.manifest import NAME as MANIFEST
from obclip.core.manifest import Component, Manifest, Variant, list_files
from obclip.core.schedule_config import ScheduleConfig, scheduler_settings
from obclip.export.completion import NEEDED, verify_completion
from obclip.export.components import load_part, load_tiny_decoder
from obclip.export.graphs import TARGETS, export_device_graphs
from obclip.export.onnx_export import EXTERNAL_ABOVE_BYTES, OPSET, export_onnx
from obclip.export.partial import Partial, Record
from obclip.export.precisions import Calibration, Wanted, add_precisions, check_precisions, check_received
from obclip.export.preview import fit_preview
from obclip.export.shapes import Shapes, shapes_of
from obclip.export.sources import Source, model_digest, open_source
from obclip.export.tokenizer import export_tokenizer
from obclip.export.verify import check, reference

Progress = Callable[[str, str, float], None]
_TOOLS = ("obclip", "torch", "diffusers", "transformers", "onnx", "onnxscript")
_INDEX = (
    "unet", "text_encoder", "text_encoder_2", "vae", "tokenizer", "tokenizer_2", "scheduler",
    "requires_safety_checker", "force_zeros_for_empty_prompt",
)  # fmt: skip

_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class _Options:
    """As `export_bundle` takes them; what a part's files depend on."""

    weights: str
    height: int | None
    width: int | None
    min_psnr_db: float | None
    external_above_bytes: int
    targets: tuple[str, ...]
    depth: int
    tiny_decoder: str | None = None
    precisions: tuple[str, ...] = ()
    calibration: Calibration | None = None
    components: tuple[str, ...] | None = None
    verify: bool = True
    merge: int = 1


def export_bundle(
    source: str | Path,
    out: Path,
    *,
    weights: str = "fp32",
    height: int | None = None,
    width: int | None = None,
    force: bool = False,
    min_psnr_db: float | None = None,
    progress: Progress | None = None,
    external_above_bytes: int = EXTERNAL_ABOVE_BYTES,
    targets: Sequence[str] = (),
    depth: int = 1,
    tiny_decoder: Path | None = None,
    precisions: Sequence[str] = (),
    calibration: Calibration | None = None,
    components: Sequence[str] | None = None,
    verify: bool = True,
    merge: int = 1,
) -> Manifest:
    """Export text encoders, UNet, VAE decoder and encoder; returns the manifest that was written.

    source: a diffusers folder of Stable Diffusion 1.x, SDXL or one distilled from them, or a hub id. weights: "fp32",
    or "fp16" (stored so, computed in float32). height, width: pixels the bundle is meant for, by default the model's.
    targets: providers that get device graphs (obclip.export.graphs), with shallow passes of `depth` up layers.
    tiny_decoder: diffusers folder of an AutoencoderTiny for the same latents, written beside the decoder.
    precisions: further ones of the UNet and the decoders (obclip.export.quantise), for each of the targets;
    calibration: what they are calibrated with, by default the device's own trajectories on a few prompts.
    components: of the parts, those to write ("unet", ...), all by default; a device draws without "vae_encoder".
    verify: without, fp32 and fp16 parts are not compared with PyTorch, which takes half the memory; the manifest tells.
    merge: of device graphs, see `export_device_graphs`.
    progress(part, phase, seconds).

    `out` appears whole or not at all. An export that was killed, or for which the disk was too small, goes on with the
    parts that were done. InputError: `out` exists and not `force`, unknown family or option; ModelMissingError: no such
    model; VerificationError: a part is further from PyTorch than its floor; RunError: the disk, or a file.
    """
    if weights not in ("fp32", "fp16"):
        raise InputError(f"weights is {weights!r}; choose fp32 or fp16")
    check_replaceable(out, force, MANIFEST)
    found = open_source(source)
    _check_options(targets, precisions, depth, merge, tiny_decoder, calibration)
    folder = found.folder.resolve()
    if folder in (out.resolve(), *out.resolve().parents) or out.resolve() in folder.parents:
        raise InputError(f"{out} and the source {found.folder} hold one another; choose another place")
    check_precisions(precisions, targets)
    calibration = (calibration or Calibration()) if precisions else None
    tiny = str(tiny_decoder.resolve()) if tiny_decoder is not None else None
    options = _Options(
        weights, height, width, min_psnr_db, external_above_bytes, tuple(targets), depth, tiny, tuple(precisions),
        calibration, None if components is None else _wanted(components, found, precisions), verify, merge,
    )  # fmt: skip
    schedule = ScheduleConfig.of_model(found.folder)
    report = progress or (lambda part, phase, seconds: None)
    try:
        digest = model_digest(found)
        with Partial(out, _key(digest, options, found.folder), force, MANIFEST) as partial:
            return _export_all(found, digest, schedule, options, partial, report)
    except OSError as error:
        raise RunError(_said_of(error, out)) from error


def _export_all(
    source: Source, digest: str, schedule: ScheduleConfig, options: _Options, partial: Partial, report: Progress
) -> Manifest:
    building = partial.folder
    for name in (*source.tokenizers, "scheduler"):
        shutil.rmtree(building / name, ignore_errors=True)
    tokenizers = [export_tokenizer(source.folder / name, building / name) for name in source.tokenizers]
    (building / "scheduler").mkdir()
    settings = json.dumps(scheduler_settings(source.folder), indent=2) + "\n"
    (building / "scheduler" / "scheduler_config.json").write_text(settings, encoding="utf8")
    _write_index(source.index, building)
    shapes = shapes_of(source, min(tokens for tokens, _ in tokenizers), options.height, options.width)
    if options.calibration is not None:
        check_received(options.calibration, schedule, shapes)
    records = []
    for name in options.components or source.parts:
        record = partial.find(name)
        if record is not None:
            report(name, "done before", 0.0)
        records.append(record or _export_one(name, source, shapes, partial, options, report))
    if options.calibration is not None:
        wanted = Wanted(options.precisions, options.targets or ("any",), options.external_above_bytes)
        records = add_precisions(partial, records, wanted, options.calibration, shapes, report)
    completion = _check_completion(building, records, source, schedule, shapes, options, report)
    unet = next((r.component.verification for r in records if r.component.name == "unet"), {})
    manifest = Manifest(
        source=source.label,
        revision=source.revision,
        family=source.family,
        model_digest=digest,
        height=shapes.height * shapes.downscale,
        width=shapes.width * shapes.downscale,
        latent_channels=shapes.channels,
        latent_downscale=shapes.downscale,
        latent_scale=shapes.latent_scale,
        max_tokens=shapes.tokens,
        pad_token_id=tokenizers[0][1],
        prediction_type=schedule.prediction_type,
        schedule_config=schedule.to_dict(),
        conditioning=unet.get("conditioning"),
        components=tuple(r.component for r in records),
        files=tuple(f for f in list_files(building) if not f.path.startswith(".")),
        tool_versions={tool: version(tool) for tool in _TOOLS} | {"onnxruntime": onnxruntime.__version__},
        variants=tuple(v for r in records for v in r.variants),
        pad_token_id_2=tokenizers[1][1] if len(tokenizers) > 1 else None,
        preview=_fit_preview(building, records, shapes),
        completion=completion,
        zero_empty_prompt=source.family == "sdxl" and bool(source.index.get("force_zeros_for_empty_prompt", True)),
    )
    manifest.write(building)
    partial.publish()
    return manifest


def _export_one(
    name: str, source: Source, shapes: Shapes, partial: Partial, options: _Options, report: Progress
) -> Record:
    """One part in memory at a time: load, run in PyTorch, export, free, verify."""
    folder, started = partial.begin(name), time.perf_counter()
    path = folder / "model.onnx"
    part = load_part(name, source.folder, source.index, shapes)
    expected = reference(part) if options.verify else None
    export_onnx(part, path, options.weights, options.external_above_bytes)
    config = {k: v for k, v in part.config.items() if k != "_name_or_path"}  # where the source lay is nobody's business
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True, default=str) + "\n")
    report(name, "exported", time.perf_counter() - started)
    variants: tuple[Variant, ...] = ()
    if name == "unet" and options.targets:
        started = time.perf_counter()
        variants = export_device_graphs(
            part.module.model, shapes.height, shapes.width, shapes.tokens, folder, options.targets, options.depth,
            options.weights, options.external_above_bytes, options.verify, options.merge,
        )  # fmt: skip
        report(name, f"device graphs for {', '.join(options.targets)}", time.perf_counter() - started)
    if name == "vae_decoder" and options.tiny_decoder is not None:
        started = time.perf_counter()
        variants = (_tiny_decoder(Path(options.tiny_decoder), shapes, folder, options),)
        report(name, "tiny decoder", time.perf_counter() - started)
    del part
    gc.collect()
    started = time.perf_counter()
    verification: dict[str, Any] = {}
    if expected is not None:
        verification = check(expected, path, options.weights, options.min_psnr_db)
        report(name, f"verified, {verification['psnr_db']:.1f} dB", time.perf_counter() - started)
    graph = onnx.load(path, load_external_data=False).graph
    component = Component(
        name, f"{name}/model.onnx", options.weights, OPSET, _io(graph.input), _io(graph.output), verification
    )
    return partial.finish(name, component, variants)


def _check_completion(
    building: Path, records: Sequence[Record], source: Source, schedule: ScheduleConfig, shapes: Shapes,
    options: _Options, report: Progress,
) -> dict[str, Any] | None:  # fmt: skip
    """None where a part of it is not in the bundle, or nothing is to be verified."""
    if not options.verify or set(NEEDED) - {r.component.name for r in records}:
        return None
    started = time.perf_counter()
    found = verify_completion(
        building, lambda name: load_part(name, source.folder, source.index, shapes), schedule, shapes,
        options.weights, options.min_psnr_db,
    )  # fmt: skip
    report("completion", f"verified, {found['psnr_db']:.1f} dB", time.perf_counter() - started)
    return found


def _tiny_decoder(source: Path, shapes: Shapes, folder: Path, options: _Options) -> Variant:
    part = load_tiny_decoder(source, shapes)
    expected, path = reference(part) if options.verify else None, folder / "any_fp32_tiny.onnx"
    export_onnx(part, path, options.weights, options.external_above_bytes)
    graph = onnx.load(path, load_external_data=False).graph
    found = check(expected, path, options.weights, options.min_psnr_db) if expected is not None else {}
    return Variant(
        "vae_decoder", "tiny", "fp32", "any", f"vae_decoder/{path.name}", _io(graph.input), _io(graph.output), found
    )


def _said_of(error: OSError, out: Path) -> str:
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return f"cannot write {out} ({reason}); make room and start again: what is done is kept"
    where = error.filename or out
    return f"{where}: {reason}; see to that file and start again: what is done is kept"


def _wanted(components: Sequence[str], source: Source, precisions: Sequence[str]) -> tuple[str, ...]:
    """In the order of export. InputError for a part that the model does not have, none, or too few to calibrate."""
    if not components or set(components) - set(source.parts):
        raise InputError(f"components is {', '.join(components) or 'empty'}; this model has {', '.join(source.parts)}")
    if precisions and set(source.parts) - set(components) - {"vae_encoder"}:
        raise InputError("precisions are calibrated on whole completions; leave out no component but vae_encoder")
    return tuple(name for name in source.parts if name in components)


def _fit_preview(building: Path, records: Sequence[Record], shapes: Shapes) -> dict[str, Any] | None:
    """On what is cheapest to decode with: both decoders are of the same latents."""
    decoder = next((r for r in records if r.component.name == "vae_decoder"), None)
    if decoder is None:
        return None
    tiny = [v.file for v in decoder.variants if (v.role, v.precision) == ("tiny", "fp32")]
    return fit_preview(building / (tiny or [decoder.component.file])[0], shapes.channels, shapes.latent_scale)


def _check_options(
    targets: Sequence[str], precisions: Sequence[str], depth: int, merge: int, tiny_decoder: Path | None,
    calibration: Calibration | None,
) -> None:  # fmt: skip
    """What would be found wrong only after much of the work. InputError; ModelMissingError for a folder of no model."""
    if "" in (*targets, *precisions):
        raise InputError("a target or a precision has no name; write names with commas between them, or none")
    if unknown := sorted(set(targets) - set(TARGETS)):
        raise InputError(f"target is {unknown[0]!r}; choose from {', '.join(TARGETS)} (accelerators take any)")
    if depth < 1 or merge < 1:
        raise InputError(f"depth is {depth} and merge {merge}; both must be 1 or more")
    if calibration is not None and calibration.prompts < 2:
        raise InputError("calibration takes at least two prompts, one to calibrate on and one to judge by")
    floors = calibration.floor_db if calibration is not None else {}
    if isinstance(floors, Mapping) and (others := sorted(set(floors) - {*(targets or ("any",)), "qnn"})):
        raise InputError(f"a floor is given for {others[0]!r}, which is none of the targets ({', '.join(targets)})")
    needed = {
        "config.json": tiny_decoder,  # of an AutoencoderTiny
        "model_index.json": None if calibration is None else calibration.large,
    }
    for name, folder in needed.items():
        if folder is not None and not (folder / name).is_file():
            raise ModelMissingError(f"{folder} has no {name}: it is no diffusers folder of the model that is wanted")


def _key(digest: str, options: _Options, source: Path) -> str:
    """What the parts of an unfinished export must have been made from to be taken."""
    large = options.calibration.large if options.calibration else None
    others = [Path(folder) for folder in (options.tiny_decoder, large) if folder is not None]
    received = options.calibration.received if options.calibration else ()
    tools = {tool: version(tool) for tool in _TOOLS} | _judges()
    read = [source / "model_index.json", *sorted(source.glob("*/*.json"))]
    settings = [(str(p.relative_to(source)), sha256_file(p)) for p in read]
    dated = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for f in others for p in sorted(f.rglob("*.*"))]
    sent = [sha256_file(p) for p in received if p.is_file()]
    made_from = [digest, asdict(options), tools, settings, dated, sent]
    return hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode()).hexdigest()


def _judges() -> dict[str, str]:
    """Versions of the runtimes that judge graphs."""
    found = {"onnxruntime": onnxruntime.__version__}
    with contextlib.suppress(PackageNotFoundError):
        found["openvino"] = version("openvino")
    return found


def _write_index(index: dict[str, Any], building: Path) -> None:
    """model_index.json as optimum's runtime reads it: without a safety checker."""
    keep = {k: v for k, v in index.items() if (k.startswith("_") and k != "_name_or_path") or k in _INDEX}
    keep |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    (building / "model_index.json").write_text(json.dumps(keep, indent=2, sort_keys=True) + "\n")


def _io(values: Any) -> dict[str, list[int | str]]:
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
