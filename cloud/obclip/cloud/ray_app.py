"""The same application as a Ray Serve deployment: several replicas, one on each GPU, behind one address.

Ray places, probes and replaces replicas and spreads requests over them; batching stays the engine's, inside each
replica. Ray is imported when it is asked for only: everything else runs without it.
"""

from __future__ import annotations

import importlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from obclip.cloud import logs
from obclip.cloud.ray_replica import Replica, replicas_wanted
from obclip.cloud.serve import ServeOptions
from obclip.cloud.server import check_tls, listen
from obclip.core.errors import InputError, ModelMissingError, RunError
from obclip.core.files import atomic_write_bytes

APP = "obclip"
_TYPICAL_ROWS = 8  # of a request's widest pass: four candidates with guidance
log = logs.Log("obclip.cloud.ray")


@dataclass(frozen=True)
class Cloud:
    """handle: Ray's, to the replicas."""

    url: str
    handle: Any

    def processes(self) -> dict[int, int]:
        """How many requests each replica has in work, by the id of its process."""
        return dict(self._each("status"))

    def drain(self, drain_s: float) -> None:
        """New requests get 503 from now on; returns when none is in work, after `drain_s` at the latest."""
        until_s = time.monotonic() + drain_s
        self._each("drain")
        while any(self.processes().values()) and time.monotonic() < until_s:
            time.sleep(0.1)

    def _each(self, method: str) -> list[Any]:
        return list(self.handle.broadcast(method).results(timeout_s=30.0))


def deployment_settings(options: ServeOptions, gpus: bool) -> dict[str, Any]:
    """What Ray is told about the deployment.

    As many requests as the engine runs and lets wait go to a replica, whose own queue refuses what is too much in rows;
    max_waiting more may wait in front, and the next is answered 429. Between `replicas` and `max_replicas`,
    `replicas_wanted` decides.
    """
    running = max(1, options.max_held_rows // _TYPICAL_ROWS)
    scale: dict[str, Any] = {"num_replicas": options.replicas}
    if options.max_replicas is not None:
        scale = {
            "autoscaling_config": {
                "min_replicas": options.replicas,
                "max_replicas": options.max_replicas,
                "target_ongoing_requests": running,
                "policy": {"policy_function": f"{replicas_wanted.__module__}:{replicas_wanted.__name__}"},
            }
        }
    return scale | {
        "ray_actor_options": {"num_gpus": 1} if gpus else {"num_cpus": options.ray_cpus},
        "max_ongoing_requests": running + options.max_waiting,
        "max_queued_requests": options.max_waiting,
        "backpressure_config": {"status_code": 429, "retry_after_s": 2},
        "health_check_period_s": 3.0,
        "health_check_timeout_s": 30.0,
        "graceful_shutdown_timeout_s": options.drain_s + 10.0,
        "max_constructor_retry_count": 2,
    }


def with_absolute_paths(options: ServeOptions) -> ServeOptions:
    """The same options for a process that starts in another folder, as Ray's do."""
    files = ("model", "keys", "tls_cert", "tls_key")
    changed: dict[str, Any] = {name: path.absolute() for name in files if (path := getattr(options, name)) is not None}
    for name in ("pair", "plan"):
        if (text := getattr(options, name)) is not None and text.endswith(".toml"):
            changed[name] = str(Path(text).absolute())
    return replace(options, **changed)


@contextmanager
def ray_cloud(options: ServeOptions, token: str | None) -> Iterator[Cloud]:
    """Replicas on the cluster at RAY_ADDRESS, or on a Ray of this machine's own; taken down at the end of the block.

    ModelMissingError without Ray, InputError for numbers that are none, RunError if no replica comes up.
    """
    if options.replicas < 1 or (options.max_replicas or options.replicas) < options.replicas:
        raise InputError(f"replicas are {options.replicas} to {options.max_replicas}; wanted 1 or more, and rising")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report home
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # and take two requests' lines for one
    try:
        ray, serve = importlib.import_module("ray"), importlib.import_module("ray.serve")
    except ImportError as error:
        raise ModelMissingError(f"--ray needs {error.name}: pip install 'obclip[cloud,ray]'") from error
    options = with_absolute_paths(options)
    tls = check_tls(options.tls_cert, options.tls_key)
    with listen(options.host, options.port) as listener:
        port = listener.getsockname()[1]  # Ray's proxy binds it; here it is only found to be free
    address = os.environ.get("RAY_ADDRESS")
    ray.init(address=address, **({} if address else {"include_dashboard": False}))
    if any(actor["namespace"] == "serve" for actor in ray.util.list_named_actors(all_namespaces=True)):
        ray.shutdown()
        raise RunError("the cluster at RAY_ADDRESS already runs Ray Serve, whose address and end would be shared")
    try:
        http = {"host": options.host, "port": port} | (
            {"ssl_certfile": str(tls[0]), "ssl_keyfile": str(tls[1])} if tls else {}
        )
        quiet = {"enable_access_log": False, "log_level": "WARNING"}  # lines with ids that clients choose
        serve.start(proxy_location="HeadOnly", http_options=http, logging_config=quiet)
        gpus = (options.device or "cuda").startswith("cuda") and ray.cluster_resources().get("GPU", 0) > 0
        settings = deployment_settings(options, gpus) | {"name": APP, "logging_config": quiet}
        app = serve.deployment(**settings)(serve.ingress()(Replica)).bind(replace(options, ray=True), token)
        try:
            handle = serve.run(app, name=APP, route_prefix="/")
        except RuntimeError:
            raise RunError("no replica came up; the lines above say why") from None
        host = f"[{options.host}]" if ":" in options.host else options.host
        yield Cloud(f"{'https' if tls else 'http'}://{host}:{port}", handle)
        serve.delete(APP)
    finally:
        serve.shutdown()
        ray.shutdown()


def run_ray(options: ServeOptions, token: str | None) -> None:
    """Serve until SIGTERM or SIGINT, finish what is in work, return (KeyboardInterrupt for SIGINT)."""
    asked, signals = threading.Event(), list[int]()

    def stop(number: int, _: FrameType | None) -> None:
        signals.append(number)
        asked.set()

    with ray_cloud(options, token) as cloud:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        print(f"listening on {cloud.url}", flush=True)
        if options.ready_file is not None:
            atomic_write_bytes(options.ready_file, cloud.url.encode())
        asked.wait()
        log.info("draining", reason="signal")
        cloud.drain(options.drain_s)
    if signal.SIGINT in signals:
        raise KeyboardInterrupt
