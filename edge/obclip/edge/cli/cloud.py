"""`obclip serve` and `obclip keys`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from obclip.core.errors import ModelMissingError
from obclip.edge.cli.output import Json, console, emit
from obclip.edge.cli.privacy import PairName

KeysFile = Annotated[Path, typer.Option("--file", help="The keys file, as `obclip serve --keys` reads it.")]


class LogFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def serve(
    pair: PairName = "emoji",
    model: Annotated[Path | None, typer.Option(help="A diffusers folder in place of the pair's cloud model.")] = None,
    host: Annotated[str, typer.Option(help="Anything but loopback needs OBCLIP_TOKEN or --keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any free port.")] = 8250,
    device: Annotated[str | None, typer.Option(help="cuda or cpu; by default CUDA where there is one.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, or float16 on CUDA.")] = None,
    keys: Annotated[
        Path | None, typer.Option(help="API keys, made by `obclip keys add`; read again on change.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain in PEM: serve https.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's key in PEM.")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Metrics on this port of 127.0.0.1, without a key, and not on the main one.")
    ] = None,
    log_format: Annotated[LogFormat, typer.Option(help="One line of text or of JSON a log record.")] = LogFormat.TEXT,
    log_level: Annotated[LogLevel, typer.Option(help="The least that is logged.")] = LogLevel.INFO,
    max_candidates: Annotated[int, typer.Option(help="Most candidates in one request.")] = 64,
    max_rows: Annotated[int, typer.Option(help="Most rows (candidates x branches) in one UNet pass.")] = 64,
    max_held_rows: Annotated[
        int, typer.Option(help="Most rows of all requests in work, whose features are kept.")
    ] = 256,
    max_waiting: Annotated[int, typer.Option(help="Requests that may wait before others are told to come back.")] = 32,
    max_waiting_rows: Annotated[int, typer.Option(help="Rows of them that may wait, likewise.")] = 1024,
    plan: Annotated[
        str | None, typer.Option(help="What is reused: a pair's name, a TOML file, or plain. Default: the pair's own.")
    ] = None,
    deterministic: Annotated[
        bool, typer.Option(help="Bit for bit the same answer whatever shares the batch; slower.")
    ] = False,
    compile: Annotated[bool, typer.Option(help="torch.compile, and CUDA graphs on a GPU; a slower start.")] = False,
    queue_timeout: Annotated[float, typer.Option(help="Seconds until a request's turn, else 504.")] = 60.0,
    service_timeout: Annotated[float, typer.Option(help="Seconds from then until it is done, else 504.")] = 120.0,
    body_timeout: Annotated[float, typer.Option(help="Seconds for a client to send its request, else 408.")] = 10.0,
    drain: Annotated[float, typer.Option(help="Seconds that SIGTERM waits for requests in work.")] = 60.0,
    ray: Annotated[bool, typer.Option(help="Several replicas under Ray Serve, one on each GPU.")] = False,
    replicas: Annotated[int, typer.Option(help="With --ray: how many.")] = 1,
    max_replicas: Annotated[int | None, typer.Option(help="With --ray: up to so many while requests wait.")] = None,
    ray_cpus: Annotated[float, typer.Option(help="With --ray and no GPU: CPUs of each replica.")] = 1.0,
) -> None:
    """Run the cloud half."""
    try:
        from obclip.cloud.serve import ServeOptions, run_server
    except ImportError as error:
        raise ModelMissingError(f"the cloud needs {error.name}: pip install 'obclip[cloud]'") from error
    run_server(
        ServeOptions(
            pair=pair, model=model, host=host, port=port, device=device, dtype=dtype, keys=keys, tls_cert=tls_cert,
            tls_key=tls_key, metrics_port=metrics_port, log_format=log_format.value, log_level=log_level.value,
            max_candidates=max_candidates, max_rows=max_rows, max_waiting=max_waiting,
            max_waiting_rows=max_waiting_rows, max_held_rows=max_held_rows, plan=plan,
            deterministic=deterministic, compile=compile, queue_timeout_s=queue_timeout,
            service_timeout_s=service_timeout, body_timeout_s=body_timeout, drain_s=drain, ray=ray,
            replicas=replicas, max_replicas=max_replicas, ray_cpus=ray_cpus,
        )
    )  # fmt: skip


keys_app = typer.Typer(help="API keys for `obclip serve --keys`.")


@keys_app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="Whose it is, such as phone-app; shows in the server's log.")],
    file: KeysFile,
    requests_per_minute: Annotated[int | None, typer.Option(help="By default without limit.")] = None,
    rows_per_minute: Annotated[int | None, typer.Option(help="UNet evaluations; by default without limit.")] = None,
    metrics: Annotated[bool, typer.Option(help="A key that reads /metrics and nothing else.")] = False,
    as_json: Json = False,
) -> None:
    """Make a key and print it, once; the file gets its hash."""
    from obclip.cloud.keys import add_key
    from obclip.cloud.limits import Rate

    key = add_key(file, name, Rate(requests_per_minute, rows_per_minute), metrics)
    if as_json:
        emit({"name": name, "key": key, "file": str(file)})
    else:
        print(key)
        typer.echo("this is the only time it is shown; clients take it from OBCLIP_TOKEN", err=True)


@keys_app.command("list")
def show(file: KeysFile, as_json: Json = False) -> None:
    """Names and limits of the keys in a file."""
    from obclip.cloud.keys import read_keys

    keys = read_keys(file)
    if as_json:
        rates = ((k, k.rate.requests_per_minute, k.rate.rows_per_minute) for k in keys)
        emit(
            {
                "keys": [
                    {"name": k.name, "requests_per_minute": requests, "rows_per_minute": rows, "metrics": k.metrics}
                    for k, requests, rows in rates
                ]
            }
        )
        return
    table = Table("name", "requests a minute", "rows a minute", "for")
    for k in keys:
        limits = (str(n or "any") for n in (k.rate.requests_per_minute, k.rate.rows_per_minute))
        table.add_row(k.name, *limits, "metrics" if k.metrics else "denoising")
    console().print(table)


@keys_app.command("remove")
def remove(name: Annotated[str, typer.Argument(help="The key's name.")], file: KeysFile) -> None:
    """Take a key back; a running server stops taking it within a second."""
    from obclip.cloud.keys import remove_key

    remove_key(file, name)
