"""What quantisation did to one graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from obclip.export.quantise.runtimes import runtime_of
from obclip.export.quantise.verdict import Verdict


@dataclass(frozen=True)
class QuantisationReport:
    """quantised: how many convolutions and constant products; float_layers: names of those that stay as they were.

    verdict: against float32. bytes: of the graph and the weights that it added. seconds: what all of it took.
    """

    out: Path
    precision: str
    target: str
    quantised: int
    float_layers: tuple[str, ...]
    verdict: Verdict
    bytes: int
    seconds: float
    notes: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for a JSON table or a variant's `verification`."""
        return {
            "quantised_layers": self.quantised,
            "float_layers": list(self.float_layers),
            "added_bytes": self.bytes,
            **self.verdict.to_dict(),
            "judged_by": runtime_of(self.target),
            **self.notes,
        }
