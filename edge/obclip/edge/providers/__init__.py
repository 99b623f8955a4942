"""What runs graphs here: ONNX Runtime's execution providers, built in or as plugins, and OpenVINO's own runtime.

A provider's name on the command line is short ("cpu", "openvino", "qnn"); `find` turns it into what opens sessions.
"""

from __future__ import annotations

from obclip.core.errors import InputError
from obclip.edge.providers.base import Provider
from obclip.edge.providers.onnx_runtime import PLUGINS, OnnxRuntimeProvider, built_in
from obclip.edge.providers.openvino_runtime import OpenVinoProvider

__all__ = ["Provider", "available_providers", "find"]

_TARGETS = ("cpu", "openvino", "qnn", "coreml", "xnnpack", "webgpu")


def available_providers() -> dict[str, Provider]:
    """Short name -> provider, of all that can run something here; "cpu" is first and always there.

    Of OpenVINO its own runtime is taken where it is installed: ONNX Runtime's provider holds an older one.
    """
    found: dict[str, Provider] = {}
    for short, full in built_in().items():
        found[short] = OnnxRuntimeProvider(short, target_of(short), full)
    for short, plugin in PLUGINS.items():
        if plugin.installed() and short not in found:
            found[short] = OnnxRuntimeProvider(short, target_of(short), plugin.provider, plugin)
    if OpenVinoProvider.installed():
        found["openvino"] = OpenVinoProvider()
    return {"cpu": found.pop("cpu"), **found}


def find(short: str) -> Provider:
    """InputError, listing what is here, for a provider that is not."""
    here = available_providers()
    if short.lower() not in here:
        raise InputError(f"provider {short!r} is not installed here; choose one of {', '.join(here)}")
    return here[short.lower()]


def target_of(short: str) -> str:
    """Which variants of a bundle's graphs a provider runs (obclip.core.manifest.Variant.target)."""
    return short if short in _TARGETS else "any"
