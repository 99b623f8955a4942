"""What every provider gives: sessions with one face."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray


@dataclass(frozen=True)
class Opening:
    """How one graph is opened.

    threads: None lets the runtime choose. arithmetic: "fp32", or "bf16" for graphs in float32 that may be computed in
    bfloat16 where the machine has it. strict: no node may fall back to the CPU. lean: less memory for more time.
    cache: a folder of this graph's own, where what the provider made of it is kept for the next start; None for none.
    spinning, arena: of ONNX Runtime's CPU: idle threads wait awake; freed memory is kept for the next pass.
    """

    threads: int | None = None
    arithmetic: str = "fp32"
    strict: bool = False
    lean: bool = False
    cache: Path | None = None
    spinning: bool = True
    arena: bool = True


class Session(Protocol):
    """One graph, ready. `run` takes and returns arrays by name."""

    input_names: list[str]
    output_names: list[str]

    def run(self, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """RunError if the provider refuses the inputs or fails."""
        ...

    def nodes_per_provider(self) -> dict[str, int]:
        """How many nodes runs where, as the runtime says itself."""
        ...


class Provider(Protocol):
    """name: short; full_name: the runtime's own; target: which variants of graphs it runs.

    once: the provider of graphs that run once a job (text encoders, time and text graphs), by its short name.
    """

    name: str
    full_name: str
    target: str
    once: str

    def arithmetics(self) -> tuple[str, ...]:
        """Of `Opening.arithmetic`, what this provider has here, the exact one first."""
        ...

    def open(self, path: Path, opening: Opening) -> Session:
        """BundleError if the graph cannot be loaded, or (strict) does not run there whole."""
        ...
