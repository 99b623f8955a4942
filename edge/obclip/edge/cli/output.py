"""What every command prints: results on stdout, progress and errors on stderr, JSON when asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from obclip.edge.generate import Progress as Tell

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Threads = Annotated[int | None, typer.Option(help="Threads for ONNX Runtime; by default its own choice.")]
Provider = Annotated[str, typer.Option(help="ONNX Runtime provider: auto (the CPU), cpu, openvino, coreml, ...")]


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


def fail(message: str, kind: str, code: int, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": message, "type": kind, "exit_code": code}, ensure_ascii=False), file=sys.stderr)
    else:
        print(f"obclip: {message}", file=sys.stderr)


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
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def tell(phase: str, done: int, of: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=of)
            bars.update(tasks[phase], completed=done)

        yield tell
