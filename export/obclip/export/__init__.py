"""Export: PyTorch models to ONNX bundles for devices, each part verified against the original."""

from obclip.export.bundle import export_bundle

__all__ = ["export_bundle"]
