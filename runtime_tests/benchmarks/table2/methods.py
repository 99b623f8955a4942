"""The rows: who runs which steps on what, and what that leaves the cloud to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from obclip.cloud.plan import Policy
from obclip.cloud.plans import Planner
from obclip.cloud.policies import PublishedCache, PublishedReuse
from obclip.core.pairs import Pair

from ..server_cost import published_points

SERVER, DEVICE, HYBRID, OBLIVIOUS, SANITIZED, HE, MPC = (
    "server", "device", "hybrid", "oblivious", "sanitized", "he", "mpc"
)  # fmt: skip
READS = {
    SERVER: "the prompt and the picture",
    DEVICE: "nothing",
    HYBRID: "the prompt",
    OBLIVIOUS: "N candidates",
    SANITIZED: "words drawn in place of the prompt's",
    HE: "the prompt and every latent: only the solver's update is encrypted",
    MPC: "nothing, if the two parties do not collude",
}


@dataclass(frozen=True)
class Method:
    """k: steps in the cloud; None for those that have no hand-off. plan: of the cloud ("plain", "cache",
    "cache + reuse", "ours"). saving: the device leaves out what was measured to do no harm. epsilon: of a sanitizer.
    shift: the device goes on so many of its own steps behind k, where that is not the pair's Δt."""

    name: str
    kind: str
    k: int | None = None
    plan: str = "plain"
    saving: bool = False
    epsilon: float | None = None
    shift: int | None = None

    @property
    def key(self) -> str:
        return self.name if self.k is None else f"{self.name}, k={self.k}"

    @property
    def pictures(self) -> str:
        """Methods of one value draw the same pictures: which of the prompts is sent along changes none of them, unless
        the cloud shares work among candidates."""
        if self.kind == SERVER or (self.kind == OBLIVIOUS and self.k is None):
            return "server"
        shared = self.plan in ("cache + reuse", "ours")
        if self.kind in (HYBRID, OBLIVIOUS):
            alone = " alone" if shared and self.kind == HYBRID else ""
            saving = ", device saving" if self.saving else ""
            return f"{self.plan}{alone}, k={self.k}{saving}" + ("" if self.shift is None else f", shift {self.shift}")
        return self.key


def start_of(method: Method, pair: Pair) -> int:
    """The device's first step; all of its steps where it runs none."""
    if method.kind == DEVICE:
        return 0
    if method.k is None:
        return pair.steps_on_device
    return pair.start_on_device(method.k, pair.steps) if method.shift is None else method.k + method.shift


def methods(
    ks: Sequence[int], epsilons: Sequence[float], with_crypto: bool, shifts: Sequence[int] = ()
) -> list[Method]:
    """shifts: further rows of each k, with another Δt than the pair's."""
    found = [Method("server only", SERVER), Method("device only", DEVICE), Method("vanilla oblivious", OBLIVIOUS)]
    if with_crypto:
        found += [Method("HE-Diffusion", HE), Method("MPC", MPC)]
    for name in ("SANTEXT", "SANTEXT+", "CAPE"):
        found += [Method(f"{name}, ε={e:g}", SANITIZED, epsilon=e) for e in epsilons]
    for k in ks:
        found += [
            Method("Hybrid SD", HYBRID, k),
            Method("Hybrid SD + cache", HYBRID, k, "cache"),
            Method("Hybrid SD + ours", HYBRID, k, "ours", True),
            Method("ObCLIP", OBLIVIOUS, k),
            Method("ObCLIP + cache", OBLIVIOUS, k, "cache"),
            Method("ObCLIP + cache + reuse", OBLIVIOUS, k, "cache + reuse"),
            Method("ours", OBLIVIOUS, k, "ours", True),
            *(Method(f"ObCLIP + cache, Δt={d}", OBLIVIOUS, k, "cache", shift=d) for d in shifts),
        ]
    return found


def policies_of(method: Method, pair: Pair, planner: Planner, depth: int) -> list[Policy] | Planner:
    """What the cloud's plan is built from."""
    if method.plan == "ours":
        return planner
    if method.plan == "plain":
        return []
    r, s = published_points(pair, method.k or pair.handoff)
    cache: list[Policy] = [PublishedCache(r, s, depth)]
    return [*cache, PublishedReuse(r)] if method.plan == "cache + reuse" else cache
