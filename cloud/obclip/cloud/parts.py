"""Parts of a UNet that a pass can run, and what they take from and leave for other passes.

A UNet is a row of down layers, a middle, and as many up layers, each taking one skip connection, outermost last:

    conv_in -> down 1 ... down n-1 -> middle -> up 0 ... up n-1 -> conv_out        (n skips: conv_in's and the layers')

Stable Diffusion 1.x has n = 12, XL 9. Deep features change little between neighbouring steps, so that a pass may run
the outermost `depth` up layers alone, on features kept from an earlier pass (DeepCache, Ma et al. 2024, arXiv
2312.00858), all of them on kept skips (ObCLIP section 4.2 and Faster Diffusion, Li et al. 2023, arXiv 2312.09608), or
leave attention out on its kept outputs (T-GATE, Zhang et al. 2024, arXiv 2404.02747).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Attention(Enum):
    """Where the outputs of attention layers come from."""

    OWN = "own"
    KEPT = "kept"  # self- and cross-attention both left out; what they gave at an earlier pass stands for them
    PIVOT = "pivot"  # one row's attention maps with every row's own values (ObCLIP, algorithm 2)


@dataclass(frozen=True)
class Part:
    """depth: the outermost up layers that run, None for the whole UNet; down layers run as far as their skips need.

    kept_skips: no down layer runs; all `depth` skips are kept ones.
    """

    depth: int | None = None
    kept_skips: bool = False
    attention: Attention = Attention.OWN

    def __str__(self) -> str:
        """A short name, for logs and metrics: full, shallow-3, decoder-12-kept, ..."""
        name = "full" if self.depth is None else f"{'decoder' if self.kept_skips else 'shallow'}-{self.depth}"
        return name if self.attention is Attention.OWN else f"{name}-{self.attention.value}"


@dataclass(frozen=True)
class Keep:
    """What a pass leaves for later ones. depths: features on which a part of that depth can run."""

    depths: tuple[int, ...] = ()
    skips: bool = False
    attention: bool = False

    def __bool__(self) -> bool:
        return bool(self.depths or self.skips or self.attention)

    def __or__(self, other: Keep) -> Keep:
        depths = tuple(sorted({*self.depths, *other.depths}))
        return Keep(depths, self.skips or other.skips, self.attention or other.attention)


FULL = Part()
NOTHING = Keep()


def needs(part: Part) -> Keep:
    """What an earlier pass must have kept for `part` to run."""
    depths = () if part.depth is None else (part.depth,)
    return Keep(depths, part.kept_skips, part.attention is Attention.KEPT)
