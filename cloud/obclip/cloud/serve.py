"""`obclip serve`, and this module as a program: check the options, load the model, serve."""

from __future__ import annotations

import argparse
import math
import os
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args

from fastapi import FastAPI

from obclip.cloud import logs
from obclip.cloud.app import DRAIN_S, create_app
from obclip.cloud.engines import step_engine
from obclip.cloud.keys import read_keys
from obclip.cloud.limits import Limits
from obclip.cloud.model import load_model
from obclip.cloud.plans import default_plan, load_planner, read_plan
from obclip.cloud.server import Server, check_tls, is_loopback, listen, metrics_server
from obclip.cloud.tracing import configured_tracer
from obclip.core.errors import InputError, ObclipError, RunError
from obclip.core.pairs import load_pair


@dataclass(frozen=True)
class ServeOptions:
    """model: a diffusers folder in place of the pair's. port 0: any free one. ready_file: gets the URL once ready.

    token, keys: wanted of every client, and without either only loopback is served; the token by default from
    OBCLIP_TOKEN. plan: what is reused, by a pair's name, a TOML file, or "plain" for nothing; by default the pair's
    own, if it has one. engine: step batches all requests' rows; serial runs one request after the other. deterministic,
    compile: as in engines.step_engine. tls_cert, tls_key: PEM files. metrics_port: on loopback; else /metrics is on the
    main port. limits and seconds: as in Limits.

    ray: under Ray Serve, `replicas` processes and up to `max_replicas` under load, one on each GPU, or with `ray_cpus`
    CPUs each where there is none. Metrics are then each replica's, from metrics_port on.
    """

    pair: str = "emoji"
    model: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8250
    device: str | None = None
    dtype: str | None = None
    max_candidates: int = 64
    max_rows: int = 64
    max_held_rows: int = 256
    max_waiting: int = 32
    max_waiting_rows: int = 1024
    queue_timeout_s: float = 60.0
    service_timeout_s: float = 120.0
    body_timeout_s: float = 10.0
    drain_s: float = DRAIN_S
    token: str | None = None
    keys: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    metrics_port: int | None = None
    engine: Literal["step", "serial"] = "step"
    plan: str | None = None
    deterministic: bool = False
    compile: bool = False
    log_format: logs.Format = "text"
    log_level: str = "info"
    ready_file: Path | None = None
    ray: bool = False
    replicas: int = 1
    max_replicas: int | None = None
    ray_cpus: float = 1.0


def run_server(options: ServeOptions) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in work and return (KeyboardInterrupt for SIGINT).

    ObclipError for what cannot be served, RunError if the device failed meanwhile: a new process is needed.
    """
    logs.configure(options.log_format, options.log_level)
    token = (options.token or os.environ.get("OBCLIP_TOKEN") or "").strip()  # as a client does: files end in newlines
    if not is_loopback(options.host) and not token and options.keys is None:
        raise InputError(
            f"host {options.host} is reachable from outside; set a token (OBCLIP_TOKEN) or --keys, or use 127.0.0.1"
        )
    if options.keys is not None:
        read_keys(options.keys)
    tls = check_tls(options.tls_cert, options.tls_key)
    limits_of(options)
    if not 0 <= options.drain_s < math.inf:
        raise InputError(f"drain is {options.drain_s}; it must be a number of seconds, 0 or more")
    load_pair(options.pair)
    if options.plan is not None:
        read_plan(options.plan)
    if options.ray:
        from obclip.cloud.ray_app import run_ray

        run_ray(options, token)
        return
    with listen(options.host, options.port) as listener:
        if options.metrics_port is not None:
            if options.metrics_port == listener.getsockname()[1]:
                raise InputError(f"metrics-port is {options.metrics_port}, the server's own port; choose another one")
            listen("127.0.0.1", options.metrics_port).close()  # said before a model is loaded
        app = build_app(options, token)
        server = Server(app, listener, tls=tls, ready_file=options.ready_file, drain_s=options.drain_s)
        with metrics_server(options.metrics_port, app.state.service.metrics.registry) as metrics_url:
            if metrics_url is not None:
                print(f"metrics on {metrics_url}", flush=True)
            server.run(sockets=[listener])
    if app.state.service.state == "dead":
        raise RunError("the device failed; every client was told. Start the server anew")
    if server.interrupted:
        raise KeyboardInterrupt


def limits_of(options: ServeOptions) -> Limits:
    return Limits(
        max_candidates=options.max_candidates, max_rows=options.max_rows, max_held_rows=options.max_held_rows,
        max_waiting=options.max_waiting,
        max_waiting_rows=options.max_waiting_rows, queue_timeout_s=options.queue_timeout_s,
        service_timeout_s=options.service_timeout_s, body_timeout_s=options.body_timeout_s,
    )  # fmt: skip


def build_app(options: ServeOptions, token: str | None) -> FastAPI:
    """Load the model, on this process's device, and make the application around it."""
    limits, tracer = limits_of(options), configured_tracer(version("obclip"))
    pair = load_pair(options.pair)
    model = load_model(pair, options.device, options.dtype, options.model)
    plan = default_plan(pair.name) if options.plan is None else options.plan
    planner = load_planner(plan, pair.steps, model.layered.depth, options.max_rows, model.guidance_distilled)
    engine = None  # the service's own: one request after the other
    if options.engine == "step":
        engine = step_engine(
            model, pair, limits, planner, deterministic=options.deterministic, compiled=options.compile
        )
    return create_app(
        model, pair, limits, token, version("obclip"), engine=engine, planner=planner, keys=options.keys,
        tracer=tracer, metrics_here=options.metrics_port is None and not options.ray, drain_s=options.drain_s,
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m obclip.cloud.serve", description=__doc__)
    default = ServeOptions()
    for name in ("pair", "host", "device", "dtype", "plan", "log_level"):
        parser.add_argument(_flag(name), default=getattr(default, name))
    for name in ("model", "keys", "tls_cert", "tls_key", "ready_file"):
        parser.add_argument(_flag(name), type=Path)
    for name in (
        "port",
        "max_candidates",
        "max_rows",
        "max_held_rows",
        "max_waiting",
        "max_waiting_rows",
        "metrics_port",
        "replicas",
        "max_replicas",
    ):
        parser.add_argument(_flag(name), type=int, default=getattr(default, name))
    for name in ("queue_timeout_s", "service_timeout_s", "body_timeout_s", "drain_s"):
        parser.add_argument(_flag(name.removesuffix("_s")), type=float, default=getattr(default, name), dest=name)
    parser.add_argument("--ray-cpus", type=float, default=default.ray_cpus)
    for name in ("deterministic", "compile", "ray"):
        parser.add_argument(_flag(name), action="store_true")
    parser.add_argument("--engine", choices=["step", "serial"], default=default.engine)
    parser.add_argument("--log-format", choices=get_args(logs.Format), default=default.log_format)
    try:
        run_server(ServeOptions(**vars(parser.parse_args())))
    except ObclipError as error:
        print(f"obclip serve: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


if __name__ == "__main__":
    from obclip.cloud.serve import main as program  # replicas import the options' class by name, and not from __main__

    sys.exit(program())
