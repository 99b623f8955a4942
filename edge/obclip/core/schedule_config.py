"""What a model's scheduler_config.json says about its noise schedule, and what of it is refused."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from obclip.core.errors import BundleError, InputError

_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_SPACINGS = ("leading", "linspace", "trailing")
_FINALS = ("zero", "sigma_min")
# Settings under which a step is not linear, not deterministic, or visits sigmas that no table here knows
_REFUSED_WHEN_TRUE = (
    "clip_sample",
    "thresholding",
    "rescale_betas_zero_snr",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "use_flow_sigmas",
)
_REFUSED_VALUES = {
    "algorithm_type": ("sde-dpmsolver", "sde-dpmsolver++"),
    "timestep_type": ("continuous",),
    "interpolation_type": ("log_linear",),
    "variance_type": ("learned", "learned_range"),
}
# What diffusers' pipeline sets, whatever the scheduler's file says: the files of old models do not have it
_SET_BY = {"StableDiffusionPipeline": {"steps_offset": 1, "clip_sample": False}}
_NUMBERS: dict[str, Any] = {
    **dict.fromkeys(("train_steps", "steps_offset", "original_inference_steps"), int),
    **dict.fromkeys(("beta_start", "beta_end", "sigma_min", "sigma_max", "timestep_scaling"), int | float),
}


@dataclass(frozen=True)
class ScheduleConfig:
    """The keys of scheduler_config.json that matter, under diffusers' names (train_steps: num_train_timesteps).

    None means the key is absent: each solver then has its own default, as in diffusers, whatever class the file names.
    """

    train_steps: int = 1000
    beta_start: float | None = None
    beta_end: float | None = None
    beta_schedule: str | None = None
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    timestep_spacing: str | None = None
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    final_sigmas_type: str = "zero"
    lower_order_final: bool = True
    euler_at_final: bool = False
    lambda_min_clipped: float | None = None
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0

    def __post_init__(self) -> None:
        for key, kinds in _NUMBERS.items():
            value = getattr(self, key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 <= value < math.inf:
                raise InputError(f"scheduler_config.json: {key} is {value!r}; a number, 0 or more, was wanted")
        _one_of("prediction_type", self.prediction_type, _PREDICTIONS)
        _one_of("final_sigmas_type", self.final_sigmas_type, _FINALS)
        if self.beta_schedule is not None:
            _one_of("beta_schedule", self.beta_schedule, _BETAS)
        if self.timestep_spacing is not None:
            _one_of("timestep_spacing", self.timestep_spacing, _SPACINGS)
        if self.use_karras_sigmas and self.use_exponential_sigmas:
            raise InputError("scheduler_config.json: use_karras_sigmas and use_exponential_sigmas exclude each other")
        if not 2 <= self.train_steps <= 100_000:
            raise InputError(f"scheduler_config.json: num_train_timesteps is {self.train_steps}; wanted 2 to 100000")
        if self.trained_betas is not None and len(self.trained_betas) != self.train_steps:
            raise InputError(
                f"scheduler_config.json: trained_betas has {len(self.trained_betas)} values; "
                f"num_train_timesteps is {self.train_steps}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, one per field."""
        return {**asdict(self), "trained_betas": list(self.trained_betas) if self.trained_betas else None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ScheduleConfig:
        """Read a scheduler_config.json's content. InputError, by name, for what cannot be a table of coefficients."""
        for key in _REFUSED_WHEN_TRUE:
            if values.get(key):
                raise InputError(f"scheduler_config.json: {key} is true, which is not supported; set it to false")
        for key, refused in _REFUSED_VALUES.items():
            if values.get(key) in refused:
                raise InputError(f"scheduler_config.json: {key} is {values[key]!r}, which ObCLIP does not support")
        try:
            return cls(**cls._known(values))
        except (TypeError, ValueError) as error:
            raise InputError(f"scheduler_config.json has a value of the wrong type: {error}") from error

    @classmethod
    def _known(cls, values: dict[str, Any]) -> dict[str, Any]:
        known = {k: values[k] for k in cls.__dataclass_fields__ if values.get(k) is not None and k != "train_steps"}
        known["train_steps"] = values.get("num_train_timesteps", values.get("train_steps", 1000))
        if "trained_betas" in known:
            known["trained_betas"] = tuple(float(b) for b in known["trained_betas"])
        if "lambda_min_clipped" in known:
            clipped = float(known["lambda_min_clipped"])  # diffusers writes -inf as a string or a bare word
            known["lambda_min_clipped"] = clipped if math.isfinite(clipped) else None
        return known

    @classmethod
    def from_file(cls, path: Path) -> ScheduleConfig:
        """BundleError if the file is not there or is not JSON; InputError as in `from_dict`."""
        return cls.from_dict(_object(path, f"no readable {path.name}"))

    @classmethod
    def of_model(cls, folder: Path) -> ScheduleConfig:
        """Of a model's folder as diffusers lays it out; errors as of `from_file`."""
        return cls.from_dict(scheduler_settings(folder))


def scheduler_settings(folder: Path) -> dict[str, Any]:
    """scheduler/scheduler_config.json as the pipeline that model_index.json names takes it; BundleError: unreadable."""
    values = _object(folder / "scheduler" / "scheduler_config.json", "no readable scheduler_config.json")
    index = folder / "model_index.json"
    pipeline = _object(index, "not readable").get("_class_name") if index.is_file() else None
    return values | _SET_BY.get(str(pipeline), {})


def _object(path: Path, failing: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: {failing} ({error}); export or download the model again") from error
    if not isinstance(values, dict):
        raise BundleError(f"{path}: a JSON object was wanted, got {type(values).__name__}")
    return values


def _one_of(key: str, value: str, wanted: tuple[str, ...]) -> None:
    if value not in wanted:
        raise InputError(f"scheduler_config.json: {key} is {value!r}; ObCLIP knows {', '.join(wanted)}")
