"""How a bundle's graphs are run on this device: provider, precision, threads, memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from obclip.core.cores import usable_cores
from obclip.core.errors import InputError

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8", "w8", "w8a16")
DECODERS = ("full", "tiny")


@dataclass(frozen=True)
class SessionOptions:
    """provider: a name of `providers.available_providers`. threads: not more than cores that the process may
    use; None lets the runtime choose.

    precision: "auto" takes int8 where the bundle has it, else float32, on OpenVINO computed in bfloat16 where the
    machine has that. decoder: "tiny" for the bundle's cheaper one. strict: no node may fall back to the CPU unasked.
    lean: less memory for more time. cache: keep what providers make of large graphs, for a quick second start.
    tiled: decode in tiles. memory_limit: bytes; the quickest of lean, tiled and the tiny decoder that fits is taken.
    """

    provider: str = "cpu"
    threads: int | None = None
    precision: str = "auto"
    decoder: str = "full"
    strict: bool = False
    lean: bool = False
    cache: bool = True
    tiled: bool = False
    memory_limit: int | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"precision is {self.precision!r}; choose one of {', '.join(PRECISIONS)}")
        if self.decoder not in DECODERS:
            raise InputError(f"decoder is {self.decoder!r}; choose one of {', '.join(DECODERS)}")
        cores = usable_cores()  # more threads wait for one another
        if self.threads is not None and not 1 <= self.threads <= cores:
            raise InputError(f"threads is {self.threads}; this process may use 1 to {cores}")
        if self.memory_limit is not None and self.memory_limit < 1:
            raise InputError(f"the memory limit is {self.memory_limit} bytes; leave it out, or give what there is")

    @property
    def precisions(self) -> tuple[str, ...]:
        """Of graphs, the wanted one first. Parts that do not have it, text encoders say, run in float32."""
        if self.precision == "auto":
            return ("int8", "fp32")
        return ("fp32",) if self.precision in ("fp32", "bf16") else (self.precision, "fp32")

    @property
    def arithmetic(self) -> str:
        """Of float graphs, where the provider has more than one."""
        return "fp32" if self.precision == "fp32" else "bf16"


def scalar(value: float) -> NDArray[np.float32]:
    """A float32 array without axes, as the UNet's timestep wants."""
    return np.asarray(value, np.float32)
