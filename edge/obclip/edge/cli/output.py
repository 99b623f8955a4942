"""What every command prints: results on stdout, progress and errors on stderr, JSON when asked for."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from obclip.core.pairs import Pair
from obclip.edge.generate import Progress as Tell
from obclip.edge.steps import Saving, default_saving

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Threads = Annotated[
    int | None,
    typer.Option(help="Threads of a session, at most the cores that may be used; by default the runtime's choice."),
]
Provider = Annotated[
    str, typer.Option(help="cpu, openvino, qnn, ...; auto measures once what is quickest for this bundle here.")
]
Precision = Annotated[
    str, typer.Option(help="fp32, bf16, int8, w8, fp16, w8a16; auto takes int8 where the bundle has it.")
]
Decoder = Annotated[str, typer.Option(help="full, or tiny for the bundle's cheaper decoder.")]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse a provider that leaves nodes to the CPU.")]
MemoryLimit = Annotated[
    int | None, typer.Option(help="MB that a job may take; the quickest way that fits is chosen, or named.")
]
Lean = Annotated[bool, typer.Option("--lean", help="Less memory for more time: weights stay mapped from their files.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Do not keep optimised graphs of large models.")]
WholeEvery = Annotated[
    int | None, typer.Option(help="Of so many device steps one runs the whole UNet; by default the pair's.")
]
GuidedShare = Annotated[
    float | None,
    typer.Option(help="Share of the device steps, that are guided, the first ones; by default the pair's."),
]


def session_options(
    provider: str,
    threads: int | None,
    precision: str = "auto",
    decoder: str = "full",
    strict: bool = False,
    memory_limit: int | None = None,
    lean: bool = False,
    no_cache: bool = False,
) -> dict[str, Any]:
    """As `Bundle.open` takes them."""
    limit = None if memory_limit is None else memory_limit * 1_000_000
    return {
        "provider": provider, "threads": threads, "precision": precision, "decoder": decoder, "strict": strict,
        "memory_limit": limit, "lean": lean, "cache": not no_cache,
    }  # fmt: skip


def saving_asked(pair: Pair, mode: str, whole_every: int | None, guided_share: float | None) -> Saving | None:
    """What is not said is as it was measured on the pair. None if neither is."""
    if whole_every is None and guided_share is None:
        return None
    usual = default_saving(pair, mode)
    return Saving(
        usual.every if whole_every is None else whole_every,
        usual.guided_share if guided_share is None else guided_share,
    )


def version_option(
    context: typer.Context, show: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False
) -> None:
    if show:
        print(version("obclip"))
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


def console() -> Console:
    """stdout for people; rich honours NO_COLOR and plain pipes by itself."""
    return Console(highlight=False, soft_wrap=True, markup=False)


def emit(value: Any) -> None:
    """One line of JSON on stdout."""
    print(json.dumps(value, ensure_ascii=False, sort_keys=True, default=str), flush=True)


def printable(text: str) -> str:
    """Without control characters, by which text from a cloud or a file could steer the terminal."""
    return "".join(c for c in text if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf"))


def fail(message: str, kind: str, code: int, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": message, "type": kind, "exit_code": code}, ensure_ascii=False), file=sys.stderr)
    else:
        print(f"obclip: {printable(message)}", file=sys.stderr)


def say(note: str) -> None:
    """On stderr, before what takes a while."""
    print(note, file=sys.stderr, flush=True)


@contextmanager
def progress(as_json: bool) -> Iterator[Tell]:
    """Bars on stderr, only where it is a terminal and no JSON was asked for."""
    if as_json or not sys.stderr.isatty():
        yield lambda phase, done, of: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def tell(phase: str, done: int, of: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=of)
            bars.update(tasks[phase], completed=done)

        yield tell
