"""The whole completion from a middle step, bundle against PyTorch: text encoders, steps and decoder, one on another.

Parts agree one by one before (obclip.export.verify); here their differences go on through the steps, as on a device.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from obclip.core.errors import VerificationError
from obclip.core.noise import initial_noise
from obclip.core.schedule import Schedule, build_schedule
from obclip.core.schedule_config import ScheduleConfig
from obclip.export.components import Part
from obclip.export.quantise.conditions import encode
from obclip.export.quantise.graph import Feed, run, session
from obclip.export.quantise.unets import Unet, WholeUnet, denoise
from obclip.export.shapes import Shapes
from obclip.export.verify import psnr_db

# PSNR of the picture in dB. A step's differences grow with guidance, so the floors are below those of single parts.
FLOORS_DB = {"fp32": 60.0, "fp16": 35.0}
NEEDED = ("text_encoder", "unet", "vae_decoder")
_PROMPT, _GUIDANCE, _SEED = "a photograph of a woman cooking", 7.5, 11
_STEPS, _START, _SCALE = 6, 2, 0.5
Load = Callable[[str], Part]


class _TorchUnet:
    def __init__(self, part: Part, schedule: Schedule) -> None:
        self._module, self._steps = part.module, schedule.timesteps

    def feed(self, x: NDArray[np.float32], step: int, conditions: Feed) -> Feed:
        return {"sample": x[None], "timestep": np.asarray(self._steps[step], np.float32), **conditions}

    def output(self, x: NDArray[np.float32], step: int, conditions: Feed) -> NDArray[np.float32]:
        return _torch(self._module, self.feed(x, step, conditions))[0][0]


def verify_completion(
    folder: Path, load: Load, config: ScheduleConfig, shapes: Shapes, weights: str, floor_db: float | None = None
) -> dict[str, Any]:
    """`psnr_db` of the picture (peak: the reference's range), `steps` run of how many, `size` in pixels, `floor_db`.

    folder: a bundle's, with all of `NEEDED`. load(part): that part in PyTorch; one of them is in memory at a time.
    DDIM from latents of unit variance before step 2 of 6, guidance on, at half the bundle's size: shapes are free.
    VerificationError below the floor.
    """
    schedule = build_schedule(config, "ddim", _STEPS)
    h, w = int(shapes.height * _SCALE), int(shapes.width * _SCALE)
    size = (h * shapes.downscale, w * shapes.downscale)
    x = initial_noise(_SEED, (shapes.channels, h, w)).astype(np.float32)

    def torch_text(part: str, ids: Sequence[NDArray[np.int64]]) -> list[Feed]:
        loaded = load(part)
        return [dict(zip(loaded.outputs, _torch(loaded.module, {"input_ids": row}), strict=True)) for row in ids]

    def steps(unet: Unet, texts: dict[str, Feed]) -> NDArray[np.float32]:
        branches = list(texts.values())
        branches = branches[:1] if shapes.guidance else branches  # told the scale, and has no second branch
        return denoise(unet, schedule, x, _START, branches, _GUIDANCE, seed=_SEED)

    prompts = [_PROMPT, ""]
    latents = steps(_TorchUnet(load("unet"), schedule), encode(folder, prompts, size, _GUIDANCE, torch_text))
    wanted = _torch(load("vae_decoder").module, {"latent_sample": latents[None] / np.float32(shapes.latent_scale)})[0]
    gc.collect()
    latents = steps(WholeUnet(folder / "unet" / "model.onnx", schedule), encode(folder, prompts, size, _GUIDANCE))
    gc.collect()
    decoder = session(folder / "vae_decoder" / "model.onnx")
    found = run(decoder, {"latent_sample": latents[None] / np.float32(shapes.latent_scale)})["sample"]
    psnr = psnr_db(wanted, np.asarray(found))
    floor = FLOORS_DB[weights] if floor_db is None else min(floor_db, FLOORS_DB[weights])
    if not psnr >= floor:
        raise VerificationError(
            f"the whole completion: {psnr:.1f} dB between ONNX and PyTorch, wanted {floor:.0f} or more; nothing is kept"
        )
    return {
        "psnr_db": round(psnr, 2), "steps": f"{_START}..{_STEPS - 1} of {_STEPS}", "size": list(size), "seed": _SEED,
        "floor_db": floor,
    }  # fmt: skip


def _torch(module: torch.nn.Module, feed: Feed) -> tuple[NDArray[np.float32], ...]:
    with torch.no_grad():
        outputs = module(**{name: torch.from_numpy(np.array(value)) for name, value in feed.items()})
    return tuple(o.numpy() for o in (outputs if isinstance(outputs, tuple) else (outputs,)))
