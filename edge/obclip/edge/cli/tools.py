"""`obclip export`, `bench`, `inspect` and `doctor`."""

from __future__ import annotations

from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from obclip.core.errors import InputError, ModelMissingError
from obclip.core.files import check_writable
from obclip.core.manifest import Manifest
from obclip.core.pairs import load_pair, shipped_pairs
from obclip.core.received import Received, is_safetensors
from obclip.edge.bench import Report, plot, require_plotting, run_bench
from obclip.edge.bundle import Bundle, find_bundle
from obclip.edge.cli.output import (
    Decoder,
    GuidedShare,
    Json,
    Lean,
    MemoryLimit,
    NoCache,
    Precision,
    Provider,
    Strict,
    Threads,
    WholeEvery,
    console,
    emit,
    printable,
    progress,
    saving_asked,
    say,
    session_options,
)
from obclip.edge.cli.privacy import PairName
from obclip.edge.doctor import examine
from obclip.edge.image import read_metadata
from obclip.edge.modes import HYBRID
from obclip.edge.providers.base import Opening
from obclip.edge.tuning import Tuned
from obclip.edge.tuning import tune as tune_bundle
from obclip.edge.tuning import untune as forget_tuned
from obclip.edge.verified import verify_all


def export(
    source: Annotated[str, typer.Argument(help="A diffusers folder or a hub id.")],
    out: Annotated[Path, typer.Argument(help="The bundle to write.")],
    weights: Annotated[str, typer.Option(help="fp32, or fp16: half the size, computed in float32.")] = "fp32",
    height: Annotated[int | None, typer.Option(help="Pixels; by default the model's.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels; by default the model's.")] = None,
    targets: Annotated[
        str, typer.Option(help="Providers that get device graphs, with commas: cpu, openvino, any; or none.")
    ] = "cpu",
    depth: Annotated[int, typer.Option(help="Up layers that a cached step runs.")] = 1,
    merge_tokens: Annotated[
        int,
        typer.Option(help="Keys and values of every so-manieth row and column alone, in the widest self-attentions."),
    ] = 1,
    tiny_decoder: Annotated[
        Path | None, typer.Option(help="Diffusers folder of an AutoencoderTiny, as a cheaper decoder beside the own.")
    ] = None,
    precisions: Annotated[
        str, typer.Option(help="Further precisions for each target, with commas: int8, w8, fp16, w8a16; or none.")
    ] = "none",
    calibrate_with: Annotated[
        Path | None, typer.Option(help="Diffusers folder of the cloud's model; calibration goes on from its latents.")
    ] = None,
    calibrate_from: Annotated[
        list[Path] | None,
        typer.Option(help="A file of --save-latents; calibration goes on from what a cloud sent. May be repeated."),
    ] = None,
    calibration_prompts: Annotated[
        int, typer.Option(help="Prompts, or latents at most, that int8 is calibrated on and judged by.")
    ] = 8,
    picture_psnr: Annotated[
        str,
        typer.Option(
            help="Floor in dB for pictures at further precisions; more keeps more layers in float. Or one for each "
            "target: openvino=33,cpu=36; 30 for others."
        ),
    ] = "30",
    pair: Annotated[
        str | None, typer.Option(help="The pair whose steps and guidance calibration runs; by default 25 steps, k 10.")
    ] = None,
    components: Annotated[
        str | None, typer.Option(help="Parts to write, with commas, by default all: unet, vae_decoder, ...")
    ] = None,
    min_psnr: Annotated[float | None, typer.Option(help="Floor in dB; by default 80 for fp32, 45 for fp16.")] = None,
    no_verify: Annotated[
        bool,
        typer.Option("--no-verify", help="Do not compare with PyTorch: less time and memory, nothing vouched for."),
    ] = False,
    force: Annotated[bool, typer.Option(help="Replace an existing bundle.")] = False,
    as_json: Json = False,
) -> None:
    """Export a model to an ONNX bundle for devices, verified against PyTorch."""
    try:
        from obclip.export import Calibration, export_bundle
    except ImportError as error:
        raise ModelMissingError(f"export needs {error.name}: pip install 'obclip[export]'") from error

    def tell(part: str, phase: str, seconds: float) -> None:
        typer.echo(f"{part}: {phase} ({seconds:.1f} s)", err=True)

    calibration = Calibration(
        pair=load_pair(pair) if pair is not None else None,
        large=calibrate_with,
        received=tuple(calibrate_from or ()),
        prompts=calibration_prompts,
        floor_db=_floors(picture_psnr),
    )
    manifest = export_bundle(
        source, out, weights=weights, height=height, width=width, force=force, min_psnr_db=min_psnr, progress=tell,
        targets=_listed(targets), depth=depth, tiny_decoder=tiny_decoder, precisions=_listed(precisions),
        calibration=calibration, components=None if components is None else _listed(components),
        verify=not no_verify, merge=merge_tokens,
    )  # fmt: skip
    _show_manifest(manifest, out, as_json)


def _floors(text: str) -> float | dict[str, float]:
    try:
        found = {target.strip(): float(db) for target, _, db in (p.rpartition("=") for p in text.split(","))}
    except ValueError:
        found = {}
    if not found or not all(map(isfinite, found.values())) or ("" in found and len(found) > 1):
        raise InputError(f"--picture-psnr is {text!r}; give dB, or TARGET=dB with commas: openvino=33,cpu=36")
    return found.get("", found)


def _listed(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(part.strip() for part in text.split(","))


def bench(
    bundle: Annotated[str, typer.Argument(help="A bundle folder, or a pair's name.")] = "emoji",
    pair: PairName = "emoji",
    handoff: Annotated[int | None, typer.Option(help="k for the end-to-end row, by default the pair's.")] = None,
    whole_every: WholeEvery = None,
    guided_share: GuidedShare = None,
    provider: Provider = "auto",
    threads: Threads = None,
    precision: Precision = "auto",
    decoder: Decoder = "full",
    strict: Strict = False,
    memory_limit: MemoryLimit = None,
    lean: Lean = False,
    no_cache: NoCache = False,
    runs: Annotated[
        int | None, typer.Option(help="Runs that count; by default 20, or as many as a minute holds, 3 at least.")
    ] = None,
    warmup: Annotated[int, typer.Option(help="Runs before them.")] = 3,
    tune: Annotated[
        bool, typer.Option("--tune", help="Find and keep threads, spinning and arena for this bundle here, first.")
    ] = False,
    untune: Annotated[
        bool, typer.Option("--untune", help="Forget what --tune kept for this bundle here, first.")
    ] = False,
    plot_path: Annotated[Path | None, typer.Option("--plot", help="Write a chart (.png, .svg, .pdf).")] = None,
    as_json: Json = False,
) -> None:
    """Measure a bundle on this device: each part, and the job from step k on, texts and decoding included."""
    if plot_path is not None:
        require_plotting(plot_path)
        check_writable(plot_path)
    run_as = session_options(provider, threads, precision, decoder, strict, memory_limit, lean, no_cache)
    if untune:
        count = forget_tuned(Manifest.read(find_bundle(bundle)))
        say("what was tuned is forgotten" if count else "nothing was tuned here")
    found = _tune(bundle, run_as) if tune else None
    if found is not None and not as_json:
        _show_tuned(found)
    with progress(as_json) as tell:
        settings = load_pair(pair)
        report = run_bench(
            bundle, settings, runs=runs, warmup=warmup, handoff=handoff, tell=tell, note=say,
            saving=saving_asked(settings, HYBRID, whole_every, guided_share), **run_as,
        )  # fmt: skip
    if as_json:
        emit(report.to_dict() | ({} if found is None else {"tuned": asdict(found)}))
    else:
        _show_bench(report)
    if plot_path is not None:
        plot(report, plot_path)


def _tune(source: str, run_as: dict[str, Any]) -> Tuned:
    """In the way the bundle would be run; what was found before does not count."""
    opened = Bundle.open(source, note=say, **run_as)
    o = opened.options
    if o.lean:
        raise InputError("lean sessions are not tuned; leave --lean and --memory-limit out with --tune")
    opening = Opening(o.threads, opened.arithmetic, o.strict, o.lean)
    return tune_bundle(
        opened.folder, opened.manifest, opened.variant("unet", opened.pass_role), opened.provider, opening
    )


def _show_tuned(found: Tuned) -> None:
    out = console()
    out.print("  ".join(f"{name}: {s * 1000:.2f} ms" for name, s in found.pass_s.items()))
    kept = ", ".join(found.told()) or "as it comes: no setting gained"
    out.print(f"kept: {kept} (without a change medians differ by {found.spread:.0%})")


def _show_bench(report: Report) -> None:
    out = console()
    m, s = report.machine, report.settings
    out.print(
        f"{m['cpu']}, {m['cores']} cores; onnxruntime {m['onnxruntime']}; {s['provider']} {s['precision']}, "
        f"threads {s['threads']}"
    )
    out.print(f"{s['solver']}, k = {s['handoff']} of {s['steps']}; device steps: {s['device_steps']}")
    table = Table(
        "", "runs", "median ms", "p90 ms", "min ms", title=Text(f"{report.bundle}: after {s['warmup']} runs each")
    )
    for t in report.timings:
        table.add_row(t.name, str(t.runs), *(f"{v * 1000:.2f}" for v in (t.median_s, t.p90_s, t.min_s)))
    out.print(table)
    table = Table("", "load s", "first run s", "nodes per provider")
    for name, seconds in report.load_s.items():
        nodes = ", ".join(
            f"{k.removesuffix('ExecutionProvider')} {v}" for k, v in report.nodes_per_provider[name].items()
        )
        table.add_row(name, f"{seconds:.3f}", f"{report.first_run_s[name]:.3f}", nodes)
    out.print(table)
    if report.peak_memory_bytes is not None:
        out.print(f"peak memory of the process: {report.peak_memory_bytes / 1e6:.0f} MB")


def inspect(
    what: Annotated[str, typer.Argument(help="A bundle folder, a pair's name, or a picture or latents of obclip's.")],
    as_json: Json = False,
) -> None:
    """Show what a bundle, a picture or kept latents say about themselves; a bundle's files are checked."""
    path = find_bundle(what) if what in shipped_pairs() else Path(what)
    if path.is_dir():
        manifest = Manifest.read(path)
        verify_all(path, manifest, say)
        _show_manifest(manifest, path, as_json)
    elif path.is_file():
        metadata = Received.load(path).about() if is_safetensors(path) else read_metadata(path)
        if as_json:
            emit(metadata)
        else:
            for key, value in metadata.items():
                console().print(printable(f"{key}: {value}"))
    else:
        raise InputError(f"{path} does not exist")


_SHOWN = {"psnr_db": ".1f", "max_abs": ".2g", "cosine": ".6f"}  # of a part's verification, and how


def _show_manifest(manifest: Manifest, path: Path, as_json: bool) -> None:
    files = {f.path: f.bytes for f in manifest.files}
    sizes = {path: size + files.get(f"{path}_data", 0) for path, size in files.items()}
    if as_json:
        parts: list[dict[str, Any]] = [
            {"name": c.name, "precision": c.precision, "opset": c.opset, "bytes": sizes[c.file], **c.verification}
            for c in manifest.components
        ]
        variants = [
            {"name": v.component, "role": v.role, "precision": v.precision, "target": v.target, "bytes": sizes[v.file]}
            | v.verification
            for v in manifest.variants
        ]
        emit(
            {
                "bundle": str(path),
                "source": manifest.source,
                "conditioning": manifest.conditioning,
                "completion": manifest.completion,
                "components": parts,
                "variants": variants,
            }
        )
        return
    table = Table(
        "part", "weights", "opset", "MB", "PSNR dB", "max abs", "cosine", title=Text(f"{path} from {manifest.source}")
    )
    for c in manifest.components:
        v = c.verification
        table.add_row(
            c.name, c.precision, str(c.opset), f"{sizes[c.file] / 1e6:.2f}",
            *(f"{v[key]:{form}}" if key in v else "–" for key, form in _SHOWN.items()),
        )  # fmt: skip
    for g in manifest.variants:
        v = g.verification
        name = f"{g.component}, {g.role} ({g.target})" + (f", tokens merged by {v['merge']}" if "merge" in v else "")
        psnr = f"{v['psnr_db']:.1f}" if "psnr_db" in v else "–"
        table.add_row(name, g.precision, "", f"{sizes[g.file] / 1e6:.2f}", psnr, "", "")
    out = console()
    out.print(table)
    if cost := _quantised(manifest):
        out.print(cost)
    size = f"{manifest.width}x{manifest.height} px"
    if all(c.verification for c in manifest.components):
        heard = "–" if manifest.conditioning is None else f"{manifest.conditioning:.4f}"
        out.print(f"{size}; response to text, relative to PyTorch: {heard}")
    else:
        out.print(f"{size}; not verified: exported without a comparison with PyTorch")
    if (whole := manifest.completion) is not None:
        at = "x".join(map(str, whole["size"]))
        out.print(
            f"whole completion, steps {whole['steps']}, {at} px: {whole['psnr_db']:.1f} dB to PyTorch, "
            f"floor {whole['floor_db']:.0f}"
        )


def _quantised(manifest: Manifest) -> Table | None:
    """What quantisation left in float and what it cost, of each graph; and of each choice that was tried."""
    table = Table("quantised", "layers", "in float", "PSNR dB", "text", "tried: in float, dB, text")
    for g in manifest.variants:
        v = g.verification
        if v.keys() >= {"quantised_layers", "float_layers", "psnr_db", "conditioning"}:
            tried = "; ".join(
                f"{t['float_layers']}, {t['psnr_db']:.1f}, {t['conditioning']:.3f}" for t in v.get("tries", ())
            )
            table.add_row(
                f"{g.component}, {g.role} ({g.target}, {g.precision})", str(v["quantised_layers"]),
                str(len(v["float_layers"])), f"{v['psnr_db']:.1f}", f"{v['conditioning']:.3f}", tried,
            )  # fmt: skip
    return table if table.rows else None


def doctor(as_json: Json = False) -> None:
    """Check this installation: versions, providers, clashes, the embedded bundle. Exit code 1 if something is wrong."""
    report = examine()
    if as_json:
        emit(report.to_dict())
    else:
        out = console()
        out.print(f"{report.machine['cpu']}, {report.machine['cores']} cores, {report.machine['system']}")
        out.print(", ".join(f"{k} {v}" for k, v in report.versions.items() if v))
        out.print(f"providers: {', '.join(report.providers)}")
        for extra, missing in report.extras.items():
            out.print(f"[{extra}]: " + ("installed" if not missing else f"missing {', '.join(missing)}"))
        out.print(f"embedded bundle: {report.bundle}")
        for problem in report.problems:
            out.print(f"problem: {problem}")
    raise typer.Exit(1 if report.problems else 0)
