"""A bundle's further precisions, made when all its parts are there: calibration runs the whole device half."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from obclip.core.errors import InputError
from obclip.core.manifest import Variant
from obclip.core.pairs import ModelRef, Pair
from obclip.core.schedule_config import ScheduleConfig
from obclip.export.partial import Partial, Record
from obclip.export.quantise import prompts
from obclip.export.quantise.begun import Begun, begun_by_cloud
from obclip.export.quantise.run import PRECISIONS
from obclip.export.quantise.variants import Setting, prepare, quantise_decoder, quantise_unet
from obclip.export.quantise.verdict import FLOOR_DB
from obclip.export.shapes import Shapes

Progress = Callable[[str, str, float], None]
_UNKNOWN = ModelRef("")


@dataclass(frozen=True)
class Calibration:
    """pair: its solver, steps, k and guidance; by default 25 steps of DPM-Solver++ from k = 10 at 7.5.

    large: diffusers folder of the cloud's model, whose latents at step k the device goes on with; received: or files
    of what a cloud sent (`Received.save`), which the device goes on with as it was asked for; without either the
    device's own model starts from noise. prompts: how many, or how many latents at most; a quarter of them judges.
    floor_db: of finished pictures, for all targets or for each: runtimes differ in what a layer loses, and in what a
    layer in float costs them. InputError for large and received both.
    """

    pair: Pair | None = None
    large: Path | None = None
    prompts: int = 8
    floor_db: float | Mapping[str, float] = FLOOR_DB
    received: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if self.large is not None and self.received:
            raise InputError("calibration goes on from a large model's latents or from received ones; leave one out")

    def floor_of(self, target: str) -> float:
        """A target that the mapping does not name has the default."""
        return self.floor_db.get(target, FLOOR_DB) if isinstance(self.floor_db, Mapping) else self.floor_db


@dataclass(frozen=True)
class Wanted:
    """Each of the precisions for each of the targets, as far as the two go together."""

    precisions: tuple[str, ...]
    targets: tuple[str, ...]
    external_above_bytes: int

    def pairs(self) -> list[tuple[str, str]]:
        return [(p, t) for p in self.precisions for t in _targets_of(p, self.targets)]


def check_precisions(precisions: Sequence[str], targets: Sequence[str]) -> None:
    """InputError for a precision that is none, or that none of the targets runs."""
    for precision in precisions:
        if precision not in PRECISIONS:
            raise InputError(f"precision is {precision!r}; choose from {', '.join(PRECISIONS)}")
        if not _targets_of(precision, tuple(targets) or ("any",)):
            raise InputError(
                f"{precision} is for other targets than {', '.join(targets)}: accelerators take it; add any"
            )


def add_precisions(
    partial: Partial,
    records: Sequence[Record],
    wanted: Wanted,
    calibration: Calibration,
    shapes: Shapes,
    report: Progress,
) -> list[Record]:
    """The records with the UNet's and the decoder's variants among them. VerificationError: one is below its floor."""
    by_name = {record.component.name: record for record in records}
    made = {(v.component, v.precision, v.target) for record in records for v in record.variants}
    todo = [(p, t) for p, t in wanted.pairs() if ("unet", p, t) not in made or ("vae_decoder", p, t) not in made]
    if not todo:
        return list(records)
    setting = _setting(partial, calibration, wanted, shapes, report)
    for precision, target in todo:
        for name in ("unet", "vae_decoder"):
            if (name, precision, target) in made:
                continue
            record, started = by_name[name], time.perf_counter()
            held = replace(setting, floor_db=calibration.floor_of(target))
            found = _variants(held, record, precision, target, report)
            report(name, f"{precision} for {target}", time.perf_counter() - started)
            by_name[name] = partial.finish(name, record.component, (*record.variants, *found))
    return [by_name[record.component.name] for record in records]


def check_received(calibration: Calibration, config: ScheduleConfig, shapes: Shapes) -> None:
    """InputError for what a cloud sent and calibration cannot go on from, before the work begins."""
    if not calibration.received:
        return
    pair, begun = begun_by_cloud(calibration.received, calibration.prompts, config, calibration.pair)
    wanted = (shapes.channels, shapes.height, shapes.width)
    if pair.latent_shape != wanted:
        raise InputError(
            f"the received latents are {pair.latent_shape}, the bundle's would be {wanted}; choose --height and "
            "--width as the pair has them"
        )
    if len(begun) < 2:
        raise InputError("calibration takes at least two latents, one to calibrate on and one to judge by")


def _variants(setting: Setting, record: Record, precision: str, target: str, report: Progress) -> tuple[Variant, ...]:
    name, started = record.component.name, time.perf_counter()

    def tell(text: str) -> None:
        report(name, text, time.perf_counter() - started)

    if name == "unet":
        return quantise_unet(setting, record.variants, precision, target, tell)
    found = [quantise_decoder(setting, precision, target, tell=tell)]
    for tiny in (v for v in record.variants if (v.role, v.precision) == ("tiny", "fp32")):
        found.append(quantise_decoder(setting, precision, target, Path(tiny.file).name, "tiny", tell))
    return tuple(found)


def _setting(partial: Partial, calibration: Calibration, wanted: Wanted, shapes: Shapes, report: Progress) -> Setting:
    started = time.perf_counter()
    height, width = shapes.height * shapes.downscale, shapes.width * shapes.downscale
    pair = calibration.pair or Pair(
        "calibration", _UNKNOWN, _UNKNOWN, "dpm++2m", 25, 10, 7.5, height, width, shapes.channels, shapes.downscale
    )
    begun: tuple[Begun, ...] = ()
    if calibration.received:
        pair, begun = begun_by_cloud(
            calibration.received, calibration.prompts, ScheduleConfig.of_model(partial.folder), calibration.pair
        )
    elif (pair.height, pair.width, pair.latent_channels) != (height, width, shapes.channels):
        pair = replace(pair, height=height, width=width, latent_channels=shapes.channels)
    setting = prepare(
        pair, partial.folder, prompts.choose(pair.name, calibration.prompts), shapes.latent_scale,
        large=calibration.large, begun=begun, external_above_bytes=wanted.external_above_bytes,
        measured=partial.note("sensitivity"),
    )  # fmt: skip
    report("calibration", f"{len(setting.calibrate) + len(setting.judge)} trajectories", time.perf_counter() - started)
    return setting


def _targets_of(precision: str, targets: tuple[str, ...]) -> tuple[str, ...]:
    """fp16 is for accelerators, which take graphs for any; W8A16 for Qualcomm's."""
    if precision == "w8a16":
        return ("qnn",) if "any" in targets else ()
    if precision == "fp16":
        return ("any",) if set(targets) - {"cpu", "openvino"} else ()
    return tuple(t for t in targets if t in ("cpu", "openvino", "any"))
