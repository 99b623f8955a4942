"""What is installed here, what clashes, and whether the embedded bundle is whole."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, distributions, version
from typing import Any

from obclip.core.errors import ObclipError
from obclip.edge.bundle import Bundle
from obclip.edge.machine import machine
from obclip.edge.providers import available_providers

EXTRAS = {
    "cloud": ("torch", "diffusers", "transformers", "fastapi", "uvicorn"),
    "export": ("torch", "diffusers", "transformers", "onnx", "onnxscript"),
    "plot": ("matplotlib",),
    "openvino": ("openvino",),
    "ray": ("ray",),
    "eval": ("torch", "transformers"),
}
_PACKAGES = ("obclip", "numpy", "onnxruntime", "tokenizers", "safetensors", "httpx", "pillow", "torch", "diffusers")
# Distributions that own the `onnxruntime` folder; the one installed last wins, silently
_OWNERS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-webgpu", "onnxruntime-directml")


@dataclass(frozen=True)
class Report:
    """problems: empty when all is well."""

    machine: dict[str, Any]
    versions: dict[str, str | None]
    providers: list[str]
    extras: dict[str, list[str]]
    bundle: str
    problems: list[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine(pair: str = "emoji") -> Report:
    """Look; change nothing."""
    problems = []
    owners = clashing(sorted({str(d.metadata["Name"]).lower() for d in distributions() if d.metadata["Name"]}))
    if len(owners) > 1:
        problems.append(f"{' and '.join(owners)} overwrite each other; uninstall all of them and install one")
    try:
        Bundle.open(pair).session("unet")
        bundle = "whole"
    except ObclipError as error:
        bundle = str(error)
        problems.append(f"the embedded bundle: {error}")
    return Report(
        machine=machine(),
        versions={name: _version(name) for name in _PACKAGES},
        providers=list(available_providers()),
        extras={extra: [m for m in needs if importlib.util.find_spec(m) is None] for extra, needs in EXTRAS.items()},
        bundle=bundle,
        problems=problems,
    )


def clashing(installed: list[str]) -> list[str]:
    """Those of the installed distributions that own the same onnxruntime folder."""
    return [name for name in _OWNERS if name in installed]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
