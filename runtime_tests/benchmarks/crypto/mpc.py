"""Layers of a UNet between two parties that share every value: time, bytes and messages, over real sockets.

    PYTHON mpc.py SPEC.json RESULT.json

SecretFlow SPU in an environment of its own (`make crypto`); no import of this project. SPEC: `layers` ([kind, shape]),
`protocol` ("semi2k": multiplication triples come from one of the parties, so that what is measured is the online part
alone; "cheetah": made by the two parties themselves), `runs` of each layer, fewer of one that takes long. Each party is
a process; they talk over loopback, and the runtime counts what it sends. The results are checked against float32.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

FRACTION_BITS = 18
LONG_S = 5.0  # a run that takes as long is not repeated
_LINK = re.compile(r"Link details: total send bytes (\d+), recv bytes (\d+), send actions (\d+)")


def function_of(kind: str, shape: list[int]) -> tuple[Callable[..., Any], list[tuple[int, ...]]]:
    """The layer in JAX, and the shapes of what it takes, weights among them: both are shared."""
    import jax
    import jax.numpy as jnp

    if kind == "conv":
        c_in, c_out, k, h, w = shape
        pad = [(k // 2, k // 2)] * 2
        return (
            lambda x, f: jax.lax.conv_general_dilated(x, f, (1, 1), pad, dimension_numbers=("NHWC", "HWIO", "NHWC")),
            [(1, h, w, c_in), (k, k, c_in, c_out)],
        )
    if kind == "linear":
        rows, c_in, c_out = shape
        return jnp.matmul, [(rows, c_in), (c_in, c_out)]
    if kind.startswith("attention"):
        heads, queries, keys, width = shape
        weigh = {
            "attention": lambda a: jax.nn.softmax(a, axis=-1),
            "attention relu": lambda a: (r := jax.nn.relu(a)) / (r.sum(-1, keepdims=True) + 1e-2),  # MPCViT
            "attention scaled": lambda a: a / keys,  # MPCViT
        }[kind]

        def attend(q: Any, k: Any, v: Any) -> Any:
            return jnp.matmul(weigh(jnp.matmul(q, k.transpose(0, 2, 1)) * width**-0.5), v)

        return attend, [(heads, queries, width), (heads, keys, width), (heads, keys, width)]
    if kind == "group_norm":
        channels, pixels, groups = shape

        def norm(x: Any) -> Any:
            g = x.reshape(groups, -1)
            g = g - g.mean(-1, keepdims=True)
            return g * jax.lax.rsqrt((g * g).mean(-1, keepdims=True) + 1e-3)

        return norm, [(channels, pixels)]
    if kind == "layer_norm":

        def norm(x: Any) -> Any:
            g = x - x.mean(-1, keepdims=True)
            return g * jax.lax.rsqrt((g * g).mean(-1, keepdims=True) + 1e-3)

        return norm, [(shape[0], shape[1])]
    if kind == "silu":
        return lambda x: x * jax.nn.sigmoid(x), [(shape[0],)]
    if kind == "geglu":
        return lambda x, gate: x * jax.nn.gelu(gate, approximate=True), [(shape[0], shape[1])] * 2
    raise SystemExit(f"no layer of kind {kind}")


def config_of(protocol: str) -> Any:
    from spu import libspu

    config = libspu.RuntimeConfig()
    config.protocol = {"semi2k": libspu.ProtocolKind.SEMI2K, "cheetah": libspu.ProtocolKind.CHEETAH}[protocol]
    config.field, config.fxp_fraction_bits = libspu.FieldType.FM64, FRACTION_BITS
    config.enable_pphlo_profile = True
    return config


@contextlib.contextmanager
def said() -> Iterator[list[str]]:
    """What the runtime's C++ side writes to stdout and stderr in here."""
    lines: list[str] = []
    with tempfile.TemporaryFile("w+b") as file:
        sys.stdout.flush()
        kept = os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(kept[0], 1)
            os.dup2(kept[1], 2)
            os.close(kept[0])
            os.close(kept[1])
            file.seek(0)
            lines += file.read().decode(errors="replace").splitlines()


def party(rank: int, ports: list[int], protocol: str, pipe: Any) -> None:
    """Takes (kind, shape, shares) until None, gives (seconds, bytes sent, messages sent, share)."""
    import spu.api
    from spu import libspu
    from spu.utils import frontend

    description = libspu.link.Desc()
    for i, port in enumerate(ports):
        description.add_party(f"p{i}", f"127.0.0.1:{port}")
    description.recv_timeout_ms = 600_000
    link = libspu.link.create_brpc(description, rank)
    runtime = spu.api.Runtime(link, config_of(protocol))
    while (asked := pipe.recv()) is not None:
        kind, shape, shares = asked
        function, shapes = function_of(kind, shape)
        names = [f"x{i}" for i in range(len(shapes))]
        zeros = tuple(np.zeros(s, np.float32) for s in shapes)
        secret = [libspu.Visibility.VIS_SECRET] * len(names)
        executable, _ = frontend.compile(
            frontend.Kind.JAX, function, zeros, {}, names, secret, lambda o: [f"y{i}" for i in range(len(o))]
        )
        for name, share in zip(names, shares, strict=True):
            runtime.set_var(name, share)
        with said() as lines:
            started = time.perf_counter()
            runtime.run(executable)
            seconds = time.perf_counter() - started
        found = [m for line in lines if (m := _LINK.search(line))]
        pipe.send((seconds, int(found[-1][1]), int(found[-1][3]), runtime.get_var("y0")))
        for name in (*names, "y0"):
            runtime.del_var(name)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def measure(spec: dict[str, Any], out: Path) -> None:
    """Into `out`, anew with each layer."""
    import spu.api
    from spu import libspu

    io = spu.api.Io(2, config_of(spec["protocol"]))
    context, ports = multiprocessing.get_context("spawn"), free_ports(2)
    pipes, processes = [], []
    for rank in range(2):
        ours, theirs = context.Pipe()
        process = context.Process(target=party, args=(rank, ports, spec["protocol"], theirs), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    rng, rows = np.random.default_rng(0), []
    for kind, shape in spec["layers"]:
        function, shapes = function_of(kind, shape)
        values = [rng.standard_normal(s).astype(np.float32) * 0.5 for s in shapes]
        shares = [io.make_shares(v, libspu.Visibility.VIS_SECRET) for v in values]
        seconds: list[float] = []
        while len(seconds) < spec["runs"] and (not seconds or seconds[-1] < LONG_S):
            for rank, pipe in enumerate(pipes):
                pipe.send((kind, shape, [s[rank] for s in shares]))
            answers = [pipe.recv() for pipe in pipes]
            seconds.append(max(a[0] for a in answers))
        found, wanted = io.reconstruct([a[3] for a in answers]), np.asarray(function(*values))
        error = float(np.abs(found - wanted).max() / (np.abs(wanted).max() + 1e-9))
        row = {
            "kind": kind, "shape": shape, "seconds": statistics.median(seconds),
            "bytes": sum(a[1] for a in answers), "messages": max(a[2] for a in answers), "relative_error": error,
        }  # fmt: skip
        rows.append(row)
        out.write_text(json.dumps(rows))
        print(json.dumps(row), flush=True)
    for pipe in pipes:
        pipe.send(None)
    for process in processes:
        process.join(timeout=20)


if __name__ == "__main__":
    measure(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
