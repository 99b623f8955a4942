"""Device graphs: a UNet's passes with everything taken out that does not depend on the latents."""

from obclip.export.graphs.export import TARGETS, export_device_graphs

__all__ = ["TARGETS", "export_device_graphs"]
