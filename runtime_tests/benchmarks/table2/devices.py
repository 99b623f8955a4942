"""The device's half for many pictures: an exported bundle on its runtime, or the small model in PyTorch on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from obclip.cloud.denoising import Denoising
from obclip.cloud.engine import run_step
from obclip.cloud.model import CloudModel, load_model
from obclip.cloud.plan import plain_plan
from obclip.core.errors import InputError
from obclip.core.pairs import Pair, resolve_source
from obclip.core.wire import Request
from obclip.edge import Bundle
from obclip.edge.complete import Guidance, denoise, first_latents
from obclip.edge.steps import PLAIN, Saving
from obclip.export.components import load_vae

Images = NDArray[np.uint8]
Float32 = NDArray[np.float32]


class Device(Protocol):
    """latents: float32 [M, 4, h, w] before the device's step `start`, or None: from the seed's noise, step 0."""

    def complete(
        self, prompts: Sequence[str], latents: Float32 | None, start: int, seed: int, saving: Saving
    ) -> Float32: ...

    def decode(self, latents: Float32) -> Images: ...


class BundleDevice:
    def __init__(self, bundle: Bundle, pair: Pair, guidance: float | None = None) -> None:
        self.bundle, self.pair = bundle, pair
        self._scale = pair.guidance if guidance is None else guidance
        self._texts: dict[str, Any] = {}

    def complete(
        self, prompts: Sequence[str], latents: Float32 | None, start: int, seed: int, saving: Saving = PLAIN
    ) -> Float32:
        schedule = self.bundle.schedule(self.pair.solver_on_device, self.pair.steps_on_device)
        done = []
        for i, prompt in enumerate(prompts):
            guide = Guidance(self._text(prompt), self._text(""), self._scale)
            x = first_latents(schedule, seed, self.pair.latent_shape) if latents is None else latents[i]
            if start < schedule.steps:
                for _, after, _ in denoise(self.bundle, schedule, guide, x, start, seed, None, saving):
                    x = after
            done.append(x)
        return np.stack(done)

    def decode(self, latents: Float32) -> Images:
        return np.stack([self.bundle.decode(x) for x in latents])

    def _text(self, prompt: str) -> Any:
        if prompt not in self._texts:
            self._texts[prompt] = self.bundle.encode(prompt)
        return self._texts[prompt]


class TorchDevice:
    """The pair's device model as a diffusers folder, on CUDA where there is one. Runs every pass: no saving."""

    def __init__(self, pair: Pair, source: Path | None = None, batch: int = 8) -> None:
        """ModelMissingError if there is no such model; InputError for a VAE that cannot be used."""
        own = replace(pair, cloud=pair.device, solver=pair.solver_on_device, steps=pair.steps_on_device)
        self.pair, self.batch = own, batch
        self.model: CloudModel = load_model(own, source=source)
        folder = source or Path(str(resolve_source(pair.device, "edge")))
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            folder = Path(snapshot_download(str(folder), allow_patterns=["vae/*", "model_index.json"]))
        self.vae = load_vae(folder, {}).to(self.model.device)

    def complete(
        self, prompts: Sequence[str], latents: Float32 | None, start: int, seed: int, saving: Saving = PLAIN
    ) -> Float32:
        if saving != PLAIN:
            raise InputError("the device's savings run on a bundle's graphs; give --bundle")
        done = []
        for i in range(0, len(prompts), self.batch):
            part = prompts[i : i + self.batch]
            done.append(self._part(part, None if latents is None else latents[i : i + self.batch], start, seed))
        return np.concatenate(done)

    @torch.inference_mode()
    def _part(self, prompts: Sequence[str], latents: Float32 | None, start: int, seed: int) -> Float32:
        names = sorted(set(prompts))
        p = self.pair
        request = Request(
            pair=p.digest, candidates=tuple(names), negative_prompt="", seed=seed, height=p.height, width=p.width,
            steps=p.steps, handoff=p.steps, guidance=p.guidance, solver=p.solver,
        )  # fmt: skip
        places = [names.index(prompt) for prompt in prompts]
        if len(names) != len(prompts):
            raise InputError("a batch holds one prompt twice; give prompts that differ")
        state = Denoising(self.model, p, request, plain_plan(request, 64, self.model.guidance_distilled))
        if latents is not None:
            ordered = np.empty_like(latents)
            ordered[places] = latents
            state.x = torch.from_numpy(ordered).to(self.model.device)
        for step in state.plan.steps[start:]:
            run_step(state, step)
        return np.asarray(state.x.float().cpu().numpy()[places], np.float32)

    @torch.inference_mode()
    def decode(self, latents: Float32) -> Images:
        scale = float(self.vae.config.scaling_factor)
        done = []
        for x in latents:
            z = torch.from_numpy(x[None]).to(self.model.device) / scale
            picture = self.vae.decode(z, return_dict=False)[0][0].float().cpu().numpy()
            done.append(np.clip(np.round((picture.transpose(1, 2, 0) + 1) * 127.5), 0, 255).astype(np.uint8))
        return np.stack(done)
