"""The large model's half of a trajectory, with diffusers: latents as the cloud hands them over at step k."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray

from obclip.core.errors import InputError, ModelMissingError
from obclip.core.noise import initial_noise, step_noise
from obclip.core.pairs import Pair
from obclip.core.schedule import Schedule

Float32 = NDArray[np.float32]


def handed_over(
    pair: Pair, folder: Path, schedule: Schedule, prompts: Sequence[str], seeds: Sequence[int], steps: int
) -> list[tuple[Float32, Float32]]:
    """(latents, x0), float32 [C, h, w], after `steps` steps of the large model in the diffusers folder; as on the wire.

    The model is freed before this returns. ModelMissingError: it cannot be loaded; InputError: it is no UNet for this
    pair.
    """
    # Parts that draw or guard pictures are of no use here; None leaves them on the disk
    unused = dict.fromkeys(("vae", "safety_checker", "feature_extractor", "image_encoder"))
    try:
        pipe = DiffusionPipeline.from_pretrained(
            folder, torch_dtype=torch.float32, local_files_only=True, **_known(folder, unused)
        )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ModelMissingError(f"{folder} cannot be loaded as a diffusers pipeline: {error}") from error
    if pipe.unet.config.in_channels != pair.latent_channels:
        raise InputError(f"{folder}: its latents are not the pair's ({pair.latent_channels} channels)")
    pipe.unet.eval()
    made = []
    with torch.inference_mode():
        for prompt, seed in zip(prompts, seeds, strict=True):
            made.append(_one(pipe, pair, schedule, prompt, seed, steps))
    del pipe
    gc.collect()
    return made


def _one(pipe: Any, pair: Pair, schedule: Schedule, prompt: str, seed: int, steps: int) -> tuple[Float32, Float32]:
    config = pipe.unet.config
    distilled = config.time_cond_proj_dim is not None
    branches = _branches(pipe, pair, prompt, guided=not distilled and pair.guidance != 1.0)
    cond = (
        pipe.get_guidance_scale_embedding(torch.tensor([pair.guidance - 1.0]), config.time_cond_proj_dim)
        if distilled
        else None
    )
    x = np.asarray(np.float32(schedule.initial_scale) * initial_noise(seed, pair.latent_shape), np.float32)
    x0 = None
    for i in range(steps):
        t = torch.tensor(float(schedule.timesteps[i]))
        outputs = [
            pipe.unet(
                torch.from_numpy(x[None]), t, text, timestep_cond=cond, added_cond_kwargs=added, return_dict=False
            )[0]
            for text, added in branches
        ]
        output = outputs[0] if len(outputs) == 1 else outputs[1] + pair.guidance * (outputs[0] - outputs[1])
        noise = step_noise(seed, i, x.shape) if schedule.needs_noise else None
        x, x0 = schedule.step(i, x, output[0].numpy(), x0, noise)
    assert x0 is not None
    return x.astype(np.float16).astype(np.float32), x0.astype(np.float16).astype(np.float32)


def _branches(pipe: Any, pair: Pair, prompt: str, guided: bool) -> list[tuple[Any, Any]]:
    """(text, added conditions) for the prompt and, if guided, without one."""
    found = pipe.encode_prompt(prompt=prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=guided)
    if len(found) == 2:
        return [(text, None) for text in found if text is not None]
    size = (float(pair.height), float(pair.width))
    ids = torch.tensor([[*size, 0.0, 0.0, *size]])
    texts, pooled = found[:2], found[2:]
    return [
        (text, {"text_embeds": p, "time_ids": ids}) for text, p in zip(texts, pooled, strict=True) if text is not None
    ]


def _known(folder: Path, unused: dict[str, None]) -> dict[str, None]:
    """Those of the parts that the folder's index names: a pipeline refuses others."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf8"))
    return {name: None for name in unused if name in index}
