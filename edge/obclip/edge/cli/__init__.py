"""The `obclip` command: a thin layer over `obclip.edge`."""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import Any

import typer

from obclip.core.errors import ObclipError
from obclip.edge.cli import cloud, output, pictures, privacy, tools

_UsageError: Any = typer.BadParameter.__base__  # click's class, or the copy of it that newer typers carry

app = typer.Typer(
    name="obclip",
    help="Private text-to-image generation: a cloud that cannot tell which prompt was meant.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.callback(invoke_without_command=True)(output.version_option)
app.command()(pictures.demo)
app.command()(privacy.candidates)
app.command()(privacy.audit)
app.command()(pictures.generate)
app.command()(cloud.serve)
app.add_typer(cloud.keys_app, name="keys")
app.command()(tools.export)
app.command()(tools.bench)
app.command()(tools.inspect)
app.command()(tools.doctor)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit. Codes: 0 ok, 1 run failed, 2 usage, 3 model or extra missing, 4 cloud, 5
    verification, 6 refused for privacy, 130 interrupted."""
    words = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Windows' own code pages lack most of Unicode; file names may hold bytes that are none
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # a bad line is refused, not the rest
    # When diffusers is imported it tells of packages beside it: nothing that a user of these commands can act on
    logging.getLogger("diffusers.utils.import_utils").setLevel(logging.ERROR)
    try:
        code = typer.main.get_command(app).main(args=words, prog_name="obclip", standalone_mode=False)
    except ObclipError as error:
        output.fail(str(error), type(error).__name__, error.exit_code, "--json" in words)
        code = error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except _UsageError as error:
        output.fail(f"{error.format_message()} See `obclip --help`.", "UsageError", 2, "--json" in words)
        code = 2
    except BrokenPipeError:
        sys.stderr.close()
        os._exit(0)
    sys.exit(code if isinstance(code, int) else 0)
