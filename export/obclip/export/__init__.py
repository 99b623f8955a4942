"""Export: PyTorch models to ONNX bundles for devices, each part verified against the original."""

from typing import Any

__all__ = ["export_bundle"]


def __getattr__(name: str) -> Any:
    """`export_bundle` when first asked for: it brings PyTorch, which `obclip.export.targets` does without."""
    if name == "export_bundle":
        from obclip.export.bundle import export_bundle

        return export_bundle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
