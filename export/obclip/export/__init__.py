"""Export: PyTorch models to ONNX bundles for devices, each part verified against the original."""

from typing import Any

__all__ = ["Calibration", "export_bundle"]


def __getattr__(name: str) -> Any:
    """Both when first asked for: they bring PyTorch, which `obclip.export.targets` does without."""
    if name == "Calibration":
        from obclip.export.precisions import Calibration

        return Calibration
    if name == "export_bundle":
        from obclip.export.bundle import export_bundle

        return export_bundle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
