"""A device bundle from a diffusers folder or hub id: optimum's layout, a manifest, and proof that nothing was lost."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from obclip.core.errors import InputError, ModelMissingError
from obclip.core.files import atomic_folder, sha256_file
from obclip.core.manifest import NAME as MANIFEST
from obclip.core.manifest import Component, Manifest, list_files
from obclip.core.schedule_config import ScheduleConfig
from obclip.export.components import NAMES, Shapes, load_part
from obclip.export.onnx_export import EXTERNAL_ABOVE_BYTES, OPSET, export_onnx
from obclip.export.tokenizer import export_tokenizer
from obclip.export.verify import verify_conditioning, verify_part

Progress = Callable[[str, str, float], None]
_TOOLS = ("obclip", "torch", "diffusers", "transformers", "onnx", "onnxscript")


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
) -> Manifest:
    """Export text encoder, UNet, VAE decoder and encoder; returns the manifest that was written.

    source: a Stable Diffusion 1.x-like diffusers folder, or a hub id. weights: "fp32", or "fp16" (stored so, computed
    in float32). height, width: pixels the bundle is meant for, by default the model's. progress(part, phase, seconds).

    `out` appears whole or not at all. InputError: `out` exists and not `force`, unknown family or option;
    ModelMissingError: no such model; VerificationError: a part is further from PyTorch than its floor.
    """
    if weights not in ("fp32", "fp16"):
        raise InputError(f"weights is {weights!r}; choose fp32 or fp16")
    if out.exists() and not force:
        raise InputError(f"{out} exists; pass --force to replace it")
    folder, revision = _source_folder(source)
    if force and (
        folder.resolve() in (out.resolve(), *out.resolve().parents) or out.resolve() in folder.resolve().parents
    ):
        raise InputError(f"{out} and the source {folder} hold one another; choose another place")
    index = _check_family(folder)
    schedule = ScheduleConfig.from_file(folder / "scheduler" / "scheduler_config.json")
    digest = _model_digest(folder)
    report = progress or (lambda part, phase, seconds: None)
    with atomic_folder(out, force, mark=MANIFEST) as building:
        max_tokens, pad = export_tokenizer(folder / "tokenizer", building / "tokenizer")
        shutil.copytree(folder / "scheduler", building / "scheduler")
        _write_index(index, building)
        shapes = _shapes(folder, index, max_tokens, height, width)
        components, conditioning = [], 1.0
        for name in NAMES:
            component, ratio = _export_one(
                name, folder, index, shapes, building, weights, min_psnr_db, report, external_above_bytes
            )
            components.append(component)
            conditioning = ratio if ratio is not None else conditioning
        manifest = Manifest(
            source=Path(source).name if Path(source).is_dir() else str(source),
            revision=revision,
            family="sd",
            model_digest=digest,
            height=shapes.height * shapes.downscale,
            width=shapes.width * shapes.downscale,
            latent_channels=shapes.channels,
            latent_downscale=shapes.downscale,
            latent_scale=float(_json(folder / "vae" / "config.json").get("scaling_factor", 1.0)),
            max_tokens=max_tokens,
            pad_token_id=pad,
            prediction_type=schedule.prediction_type,
            schedule_config=schedule.to_dict(),
            conditioning=conditioning,
            components=tuple(components),
            files=list_files(building),
            tool_versions={tool: version(tool) for tool in _TOOLS} | {"onnxruntime": onnxruntime.__version__},
        )
        manifest.write(building)
    return manifest


def _export_one(
    name: str,
    folder: Path,
    index: dict[str, Any],
    shapes: Shapes,
    building: Path,
    weights: str,
    min_psnr_db: float | None,
    report: Progress,
    external_above_bytes: int,
) -> tuple[Component, float | None]:
    """One part in memory at a time: load, export, verify, free."""
    path, started = building / name / "model.onnx", time.perf_counter()
    part = load_part(name, folder, index, shapes)
    export_onnx(part, path, weights, external_above_bytes)
    config = {k: v for k, v in part.config.items() if k != "_name_or_path"}  # where the source lay is nobody's business
    (path.parent / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True, default=str) + "\n")
    report(name, "exported", time.perf_counter() - started)
    started = time.perf_counter()
    verification = verify_part(part, path, weights, min_psnr_db)
    conditioning = verify_conditioning(part, path) if name == "unet" else None
    report(name, f"verified, {verification['psnr_db']:.1f} dB", time.perf_counter() - started)
    model = onnx.load(path, load_external_data=False)
    component = Component(
        name, f"{name}/model.onnx", weights, OPSET, _io(model.graph.input), _io(model.graph.output), verification
    )
    del part, model
    gc.collect()
    return component, conditioning


def _source_folder(source: str | Path) -> tuple[Path, str | None]:
    if Path(source).is_dir():
        return Path(source), None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*/*.json", "*/*.txt", "*/*.safetensors"]
    try:
        folder = Path(snapshot_download(str(source), allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelMissingError(
            f"{source} is neither a folder nor to be had from the hub ({type(error).__name__}); pass a diffusers folder"
        ) from error
    return folder, folder.name


def _check_family(folder: Path) -> dict[str, Any]:
    if not (folder / "model_index.json").is_file():
        raise ModelMissingError(f"{folder} has no model_index.json: it is no diffusers folder")
    index = _json(folder / "model_index.json")
    if (kind := index.get("_class_name")) != "StableDiffusionPipeline":
        raise InputError(f"the model is a {kind}; only StableDiffusionPipeline folders can be exported yet")
    for part in ("unet", "text_encoder", "vae", "tokenizer", "scheduler"):
        if not (folder / part).is_dir():
            raise ModelMissingError(f"{folder} has no {part}/: it is incomplete")
    return index


def _shapes(folder: Path, index: dict[str, Any], tokens: int, height: int | None, width: int | None) -> Shapes:
    unet, vae = _json(folder / "unet" / "config.json"), _json(folder / "vae" / "config.json")
    blocks = vae.get("block_out_channels") or vae["decoder_block_out_channels"]
    if not unet.get("sample_size"):
        raise InputError(f"{folder}/unet/config.json has no sample_size; pass a Stable Diffusion 1.x-like model")
    downscale, side = 2 ** (len(blocks) - 1), unet["sample_size"]
    # The graph halves latents at every level but the innermost; verification also runs at half the size
    multiple = downscale * 2 ** len(unet["block_out_channels"])
    for pixels in (height, width):
        if pixels is not None and (pixels <= 0 or pixels % multiple):
            raise InputError(f"the size is {pixels} px; for this model it must be a positive multiple of {multiple}")
    return Shapes(
        channels=unet["in_channels"],
        height=height // downscale if height else side,
        width=width // downscale if width else side,
        tokens=tokens,
        text_width=unet["cross_attention_dim"],
        downscale=downscale,
    )


def _write_index(index: dict[str, Any], building: Path) -> None:
    """model_index.json as optimum's runtime reads it: without a safety checker."""
    parts = ("unet", "text_encoder", "vae", "tokenizer", "scheduler", "requires_safety_checker")
    keep = {k: v for k, v in index.items() if k.startswith("_") or k in parts}
    keep |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    (building / "model_index.json").write_text(json.dumps(keep, indent=2, sort_keys=True) + "\n")


def _model_digest(folder: Path) -> str:
    files = sorted(folder.rglob("*.safetensors"))
    if not files:
        raise ModelMissingError(f"{folder} has no .safetensors weights")
    return hashlib.sha256("".join(sha256_file(p) for p in files).encode()).hexdigest()


def _io(values: Any) -> dict[str, list[int | str]]:
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}


def _json(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
        return values
    except (OSError, ValueError) as error:
        raise ModelMissingError(f"{path} cannot be read: {error}") from error
