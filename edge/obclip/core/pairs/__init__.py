"""Pairs: which cloud model and which device model share a latent space, and how they are run together."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import tomllib
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from obclip.core.errors import InputError, ModelMissingError
from obclip.core.files import read_text
from obclip.core.schedule import SOLVERS

_EMBEDDED = "embedded:"
_COUNTS = ("steps", "handoff", "height", "width", "latent_channels", "latent_downscale")


@dataclass(frozen=True)
class ModelRef:
    """source: a hub id, a local diffusers folder, or `embedded:NAME`; vae, unet: other sources for those parts."""

    source: str
    revision: str | None = None
    vae: str | None = None
    unet: str | None = None


@dataclass(frozen=True)
class Pair:
    """steps: T; handoff: k; cache_from, skip_from: the paper's r and s; timestep_shift: its Δt.

    handoff_history: whether the device continues from latents and x0 history or from latents alone. device_solver,
    device_steps: of the device, by default the cloud's. It goes on at step k + Δt of its own steps, so that a cloud
    of 8 steps can be followed by a device that takes 25 (the paper's LCM-SDXL); for another share of the cloud's steps
    than k of T, at the step of its own that is as far.
    """

    name: str
    cloud: ModelRef
    device: ModelRef
    solver: str
    steps: int
    handoff: int
    guidance: float
    height: int
    width: int
    latent_channels: int
    latent_downscale: int
    policy: str = "default"
    cache_from: int = 4
    skip_from: int = 6
    timestep_shift: int = 0
    handoff_history: bool = False
    device_solver: str | None = None
    device_steps: int | None = None

    def __post_init__(self) -> None:
        for solver in (self.solver, self.solver_on_device):
            if solver not in SOLVERS:
                raise InputError(f"pair {self.name}: solver is {solver!r}; choose one of {', '.join(SOLVERS)}")
        if isinstance(self.guidance, bool) or not isinstance(self.guidance, int | float):
            raise InputError(f"pair {self.name}: guidance is {self.guidance!r}; it must be a number")
        object.__setattr__(self, "guidance", float(self.guidance))  # 7 is 7.0, in the digest too
        for key, text in (("policy", self.policy), ("cloud", self.cloud.source), ("device", self.device.source)):
            if not isinstance(text, str):
                raise InputError(f"pair {self.name}: {key} is {text!r}; it must be text")
        counts = {key: getattr(self, key) for key in _COUNTS} | {"device_steps": self.steps_on_device}
        for key, value in counts.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"pair {self.name}: {key} is {value!r}; it must be a whole number, 1 or more")
        if not 1 <= self.handoff <= self.steps:
            raise InputError(f"pair {self.name}: handoff is {self.handoff}; it must be from 1 to steps ({self.steps})")
        if not 0 <= self.timestep_shift <= self.steps_on_device - self.handoff:
            raise InputError(
                f"pair {self.name}: handoff and timestep_shift lead to step {self.handoff + self.timestep_shift}, "
                f"the device has {self.steps_on_device}"
            )
        if self.height % self.latent_downscale or self.width % self.latent_downscale:
            raise InputError(f"pair {self.name}: the size must be a multiple of {self.latent_downscale} px")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one latent."""
        return self.latent_channels, self.height // self.latent_downscale, self.width // self.latent_downscale

    @property
    def on_its_own(self) -> bool:
        """Whether the device has a solver or steps that the cloud's do not change."""
        return self.device_solver is not None or self.device_steps is not None

    @property
    def solver_on_device(self) -> str:
        return self.device_solver or self.solver

    @property
    def steps_on_device(self) -> int:
        return self.steps if self.device_steps is None else self.device_steps

    def start_on_device(self, handoff: int, steps: int) -> int:
        """The device's step that goes on behind `handoff` of the cloud's `steps`. With steps or a solver of its own:
        the pair's for the pair's share, none behind all of them, and in between as far."""
        if not self.on_its_own:
            return handoff + self.timestep_shift
        if handoff == steps:
            return self.steps_on_device
        shares, own = [0.0, self.handoff / self.steps], [0, self.handoff + self.timestep_shift]
        if self.handoff < self.steps:
            shares, own = [*shares, 1.0], [*own, self.steps_on_device]
        return min(round(float(np.interp(handoff / steps, shares, own))), self.steps_on_device - 1)

    @property
    def digest(self) -> str:
        """SHA-256 over every setting but the name. Both sides must hold the same settings, in a file of any name."""
        settings = {k: v for k, v in asdict(self).items() if k != "name"}
        for key in ("device_solver", "device_steps"):  # a pair without them is what it was before there were any
            if settings[key] is None:
                del settings[key]
        text = json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def shipped_pairs() -> tuple[str, ...]:
    """Names of the pairs that come with this package."""
    files = resources.files(__name__).iterdir()
    return tuple(sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml")))


def load_pair(name_or_path: str) -> Pair:
    """A shipped pair by name, or any pair file by its path. InputError for an unknown name or a bad file."""
    if name_or_path in shipped_pairs():
        return parse_pair(name_or_path, resources.files(__name__).joinpath(f"{name_or_path}.toml").read_text("utf8"))
    path = Path(name_or_path)
    if path.suffix == ".toml" and path.is_file():
        return parse_pair(path.stem, read_text(path))
    known = ", ".join(shipped_pairs())
    raise InputError(f"no pair called {name_or_path!r}; shipped are {known}, or pass the path of a pair's .toml file")


def parse_pair(name: str, text: str) -> Pair:
    """Read a pair file's text. InputError for TOML that is broken, incomplete or has unknown keys."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"pair {name} is not TOML: {error}") from error
    _no_unknown(name, values, {f.name for f in fields(Pair)} - {"name"})
    try:
        for side in ("cloud", "device"):
            _no_unknown(f"{name}, [{side}]", values[side], {f.name for f in fields(ModelRef)})
            values[side] = ModelRef(**values[side])
        return Pair(name=name, **values)
    except (KeyError, TypeError) as error:
        raise InputError(f"pair {name} is incomplete: {error}") from error


def resolve_source(ref: ModelRef, side: str) -> Path | str:
    """A folder if the source is embedded or local, else the hub id itself. side: "cloud" or "edge".

    ModelMissingError if an embedded model is not in this installation.
    """
    if ref.source.startswith(_EMBEDDED):
        name = ref.source.removeprefix(_EMBEDDED)
        package = importlib.util.find_spec(f"obclip.{side}")
        folders = package.submodule_search_locations if package else None
        for folder in folders or ():
            if (found := Path(folder) / "pairs" / name).is_dir():
                return found
        raise ModelMissingError(f"the embedded {side} model {name!r} is not installed; install obclip again")
    local = Path(ref.source)
    return local if local.is_dir() else ref.source


def _no_unknown(name: str, values: Any, known: set[str]) -> None:
    if not isinstance(values, dict):
        raise InputError(f"pair {name}: a table was wanted, got {type(values).__name__}")
    if unknown := sorted(values.keys() - known):
        raise InputError(f"pair {name} has unknown keys: {', '.join(unknown)}")
