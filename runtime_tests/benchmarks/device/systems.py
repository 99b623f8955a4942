"""Who is compared: peers and ourselves, each with the checkpoint's own decoder or with the tiny one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from obclip.edge.providers import find

PLAIN, DEFAULT, QUICK = (1, 1.0), (2, 0.6), (4, 0.4)  # what device_steps.json measured on the embedded pair


@dataclass(frozen=True)
class System:
    """name: with the decoder, the row's key. saving: (every so many steps whole, guided share); ours alone."""

    name: str
    tiny: bool = False
    ours: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    saving: tuple[int, float] = PLAIN

    @property
    def key(self) -> str:
        return f"{self.name}, {'tiny' if self.tiny else 'own'} decoder"


def ours(provider: str, precision: str, saving: tuple[int, float], tiny: bool = False, **options: Any) -> System:
    said = {
        PLAIN: "every pass",
        DEFAULT: "half of the steps cached, late guidance",
        QUICK: "three of four cached, late",
    }
    more = "".join(f", {name}" for name in options)
    return System(
        f"obclip {provider} {precision}, {said[saving]}{more}",
        tiny,
        True,
        {"provider": provider, "precision": precision, "decoder": "tiny" if tiny else "full"} | options,
        saving,
    )


PEERS = (
    System("diffusers fp32"),
    System("diffusers bf16"),
    System("diffusers bf16 compiled"),
    System("optimum-intel bf16"),
    System("optimum-intel int8"),
    System("optimum-intel hybrid"),
    System("diffusers fp32", tiny=True),
    System("diffusers bf16 compiled", tiny=True),
    System("optimum-intel bf16", tiny=True),
    System("optimum-intel hybrid", tiny=True),
)
OURS = (
    ours("openvino", "int8", PLAIN),
    ours("openvino", "bf16", PLAIN),
    ours("cpu", "int8", PLAIN),
    ours("cpu", "fp32", PLAIN),
    ours("openvino", "int8", DEFAULT),
    ours("openvino", "int8", QUICK),
    ours("openvino", "int8", PLAIN, tiny=True),
    ours("openvino", "int8", DEFAULT, tiny=True),
    ours("openvino", "int8", QUICK, tiny=True),
    ours("openvino", "bf16", DEFAULT, tiny=True),
    ours("cpu", "int8", DEFAULT, tiny=True),
    ours("cpu", "int8", DEFAULT, tiny=True, lean=True),
)
SYSTEMS = (*PEERS, *OURS)
# stable-diffusion.cpp loads BK-SDM-tiny and no small-sd
WITH_CPP = (
    System("diffusers fp32"),
    System("stable-diffusion.cpp f16"),
    System("stable-diffusion.cpp q8_0"),
    System("stable-diffusion.cpp q8_0", tiny=True),
    ours("cpu", "fp32", PLAIN),
    ours("openvino", "auto", PLAIN),
    ours("openvino", "auto", DEFAULT),
    ours("openvino", "auto", QUICK, tiny=True),
)


def has_bf16() -> bool:
    """Whether this processor computes in bfloat16, as OpenVINO says."""
    return "bf16" in find("openvino").arithmetics()


def without_bf16(systems: tuple[System, ...]) -> tuple[System, ...]:
    """Float32 in place of bfloat16, for processors that have no arithmetic for it and would imitate it slowly."""
    found = []
    for s in systems:
        if s.name.startswith("diffusers bf16"):
            continue
        options = s.options | {"precision": "fp32"} if s.options.get("precision") == "bf16" else s.options
        found.append(replace(s, name=s.name.replace("bf16", "fp32"), options=options))
    return tuple(found)


def systems_of(checkpoint: str, bf16: bool = True) -> tuple[System, ...]:
    chosen = WITH_CPP if checkpoint == "bk-sdm-tiny" else SYSTEMS
    return chosen if bf16 else without_bf16(chosen)


EAGER = "diffusers fp32, own decoder"
