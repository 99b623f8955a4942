"""What a model's config.json means: what its diffusers class makes of it, which has a default for what a file lacks.

Stable Diffusion 1.x's VAE was saved before its `scaling_factor` had a name; AutoencoderKL's 0.18215 is meant, and
AutoencoderTiny's would be 1.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

from obclip.core.errors import InputError
from obclip.export.sources import Source, read_json

_VAES: dict[str, Any] = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


def read_config(kind: Any, folder: Path) -> dict[str, Any]:
    """config.json as `kind` (a ModelMixin class) reads it: the keys that it takes, its default for each that is absent.

    What others have added is left out: diffusers would warn of it at each load. ModelMissingError: no such file.
    """
    values = read_json(folder / "config.json")
    taken = inspect.signature(kind.__init__).parameters.values()
    defaults = {p.name: p.default for p in taken if p.default is not p.empty}
    return defaults | {p.name: values[p.name] for p in taken if p.name in values} | {"_class_name": kind.__name__}


def vae_class(index: dict[str, Any]) -> Any:
    """Which of diffusers' classes model_index.json names. InputError for one that cannot be exported."""
    name = (index.get("vae") or [None, "AutoencoderKL"])[1]
    if name not in _VAES:
        raise InputError(f"the VAE is a {name}; {' and '.join(_VAES)} can be exported")
    return _VAES[name]


def unet_config(source: Source) -> dict[str, Any]:
    return read_config(UNet2DConditionModel, source.folder / "unet")


def vae_config(source: Source) -> dict[str, Any]:
    return read_config(vae_class(source.index), source.folder / "vae")
