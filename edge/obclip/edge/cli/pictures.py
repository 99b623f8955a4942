"""`obclip demo` and `obclip generate`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from obclip.core.errors import InputError
from obclip.core.files import check_writable
from obclip.core.noise import draw_seed
from obclip.core.pairs import load_pair
from obclip.core.received import Received
from obclip.edge.bundle import Bundle
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
    progress,
    saving_asked,
    say,
    session_options,
)
from obclip.edge.cli.privacy import (
    Allow,
    Hide,
    Pad,
    PairName,
    PolicyName,
    Protect,
    Tie,
    make_options,
    show_candidates,
)
from obclip.edge.client import Client
from obclip.edge.demo import PROMPT, local_cloud, run_demo
from obclip.edge.generate import Result, resume
from obclip.edge.generate import generate as generate_picture
from obclip.edge.image import check_png, save_png
from obclip.edge.job import prepare
from obclip.edge.modes import DEVICE, OBLIVIOUS, check_mode
from obclip.edge.oblivious.history import changed_marks, history_path, remember_marks
from obclip.edge.oblivious.marks import protect as mark
from obclip.edge.preview import preview_to

Seed = Annotated[int | None, typer.Option(help="0 to 2^53-1; drawn and printed when not given.")]


def demo(
    prompt: Annotated[str, typer.Argument(help="What to draw.")] = PROMPT,
    out: Annotated[Path, typer.Option(help="The finished picture; a sheet is written beside it.")] = Path("demo.png"),
    seed: Seed = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Draw one private picture with a cloud process on this machine, and a sheet that shows each stage."""
    started = time.perf_counter()
    check_writable(out)  # a folder has no sheet beside it
    sheet_path = out.with_name(out.stem + "_sheet.png")
    _check_files({"--out": out, "the sheet": sheet_path}, {})
    bundle = Bundle.open("emoji", threads=threads)
    job = prepare(prompt, bundle, seed=seed)
    if not as_json:
        show_candidates(job.candidates)
    with local_cloud("emoji") as url, Client(url) as client, progress(as_json) as tell:
        if not as_json:
            console().print(f"cloud: {url}, up after {time.perf_counter() - started:.1f} s")
        result, sheet = run_demo(prompt, job, bundle, client, tell)
    save_png(sheet_path, sheet, {})
    result.save(out)
    _report(result, out, as_json, {"sheet": str(sheet_path), "total_s": round(time.perf_counter() - started, 2)})


def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    cloud: Annotated[str, typer.Option(help="Address of the cloud, https or loopback.")] = "http://127.0.0.1:8250",
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("obclip.png"),
    mode: Annotated[
        str,
        typer.Option(
            help="oblivious; or what hides nothing: hybrid (the prompt alone), server (all steps there); or device (no "
            "cloud)."
        ),
    ] = OBLIVIOUS,
    pair: PairName = "emoji",
    bundle: Annotated[str | None, typer.Option(help="A bundle folder, by default the pair's.")] = None,
    policy: PolicyName = None,
    negative: Annotated[str, typer.Option(help="Negative prompt; sent as it is, so it may not describe people.")] = "",
    seed: Seed = None,
    steps: Annotated[int | None, typer.Option(help="T, by default the pair's.")] = None,
    handoff: Annotated[
        int | None, typer.Option(help="k: steps in the cloud, by default the pair's share of T, 1 at least.")
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance scale.")] = None,
    solver: Annotated[str | None, typer.Option(help="ddim, euler, dpm++2m or lcm.")] = None,
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
    allow: Allow = None,
    protect: Protect = None,
    tie: Tie = False,
    pad: Pad = None,
    hide: Hide = None,
    warn_below: Annotated[
        float | None, typer.Option(help="Warn if the other words leave fewer candidates than this (effective N).")
    ] = None,
    allow_public: Annotated[bool, typer.Option(help="Send a prompt in which nothing is hidden.")] = False,
    preview: Annotated[Path | None, typer.Option(help="A PNG that shows the picture in the making.")] = None,
    preview_every: Annotated[int, typer.Option(help="Device steps from one preview to the next.")] = 1,
    save_latents: Annotated[
        Path | None, typer.Option(help="Keep what the cloud sent, all candidates', so that it can be finished again.")
    ] = None,
    from_latents: Annotated[
        Path | None, typer.Option(help="Finish what --save-latents kept; no cloud is asked.")
    ] = None,
    save_prompt: Annotated[bool, typer.Option(help="Write the prompt into the PNG's metadata.")] = False,
    as_json: Json = False,
) -> None:
    """Draw one picture: the first steps in the cloud for every candidate, the rest here."""
    check_mode(mode)
    settings = load_pair(pair)
    saving = saving_asked(settings, mode, whole_every, guided_share)
    options = make_options(allow, protect, tie, pad, hide)
    if mode != OBLIVIOUS and (allow or protect or tie or pad or hide or warn_below is not None):
        raise InputError(f"--mode {mode} makes no candidates; leave out what is said about them")
    if from_latents is not None and save_latents is not None:
        raise InputError("--from-latents sends nothing, so there is nothing for --save-latents to keep; leave it out")
    _check_files({"--out": out, "--preview": preview}, {"--save-latents": save_latents, "--from-latents": from_latents})
    received = None if from_latents is None else Received.load(from_latents)
    if seed is None:
        seed = draw_seed() if received is None else received.request.seed
    marked, history = mark(prompt, options.protect), history_path()
    if mode == OBLIVIOUS and received is None:
        for note in changed_marks(marked, history):
            _warn(note)
    run_as = session_options(provider, threads, precision, decoder, strict, memory_limit, lean, no_cache)
    opened = Bundle.open(bundle or pair, note=say, **run_as)
    about = {"pair": settings.name, "seed": seed}
    watch = None if preview is None else preview_to(preview, opened.manifest, preview_every, about)
    wanted: dict[str, Any] = dict(
        bundle=opened, pair=settings, policy=policy, seed=seed, negative_prompt=negative or None, steps=steps,
        handoff=handoff, guidance=guidance, solver=solver, allow_public=allow_public, options=options,
        warn_below=warn_below, warn=_warn, saving=saving, watch=watch, mode=mode,
    )  # fmt: skip

    def note_marks() -> None:
        if mode == OBLIVIOUS:
            remember_marks(marked, history)

    with progress(as_json) as tell:
        if received is not None:
            result = resume(prompt, received, progress=tell, **wanted)
        elif mode == DEVICE:
            wanted["negative_prompt"] = negative
            result = generate_picture(prompt, progress=tell, save_latents=save_latents, **wanted)
        else:
            with Client(cloud) as client:
                wanted["negative_prompt"] = negative
                result = generate_picture(
                    prompt, client=client, progress=tell, save_latents=save_latents, sending=note_marks, **wanted
                )
    result.save(out, with_prompt=save_prompt)
    if preview is not None and not result.job.steps_here:
        _warn(f"no steps ran on this device, so there is no preview in {preview}")
    _report(result, out, as_json, {})


def _check_files(pictures: dict[str, Path | None], others: dict[str, Path | None]) -> None:
    """By option. RunError or InputError unless each can be written, is no other's, and a picture is called .png; what
    --from-latents names is read."""
    taken: dict[str, str] = {}
    for option, path in (pictures | others).items():
        if path is None:
            continue
        if option != "--from-latents":
            check_writable(path)
        if option in pictures:
            check_png(path)
        other = taken.setdefault(os.path.realpath(path), option)
        if other != option:
            raise InputError(f"{other} and {option} are one file, {path}; name another for either")


def _warn(note: str) -> None:
    print(f"warning: {note}", file=sys.stderr)


def _report(result: Result, out: Path, as_json: bool, more: dict[str, object]) -> None:
    timings = {k: round(v, 3) for k, v in result.timings_s.items()}
    if as_json:
        emit(
            {
                "image": str(out),
                "seed": result.seed,
                "candidates": len(result.job.candidates.prompts),
                "mode": result.job.mode,
                "reveals": result.job.reveals,
                "handoff": result.job.cloud_steps,
                "steps": result.job.request.steps,
                "device": result.device,
                "device_steps": result.job.device_steps,
                "timings_s": timings,
                **more,
            }
        )
        return
    screen = console()
    screen.print("  ".join(f"{name} {seconds:.2f} s" for name, seconds in timings.items()))
    for name, value in more.items():
        screen.print(f"{name}: {value}")
    screen.print(f"mode {result.job.mode}: {result.job.reveals}")
    screen.print(f"device: {result.device}; steps: {result.job.device_steps}\nseed: {result.seed}\nimage: {out}")
