"""One request in work: its latents, what its rows are conditioned on, and the features it has kept.

All state of a request is here, so that requests at different steps and phases share batches without sharing anything
else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers.models.embeddings import get_timestep_embedding

from obclip.cloud.errors import NotFiniteError
from obclip.cloud.model import CloudModel
from obclip.cloud.parts import needs
from obclip.cloud.plan import Branch, Pass, Plan, Row, Step
from obclip.cloud.unet import Features, Inputs
from obclip.core.noise import initial_noise, step_noise
from obclip.core.pairs import Pair
from obclip.core.schedule import Schedule, build_schedule
from obclip.core.wire import Request, Response

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Texts:
    """What every row of a request can be conditioned on, one entry a distinct row of the plan.

    hidden: [M, tokens, width]; pooled: [M, width2] or None; projected: keys and values by layer, [M, tokens, inner].
    """

    index: dict[Row, int]
    hidden: torch.Tensor
    pooled: torch.Tensor | None
    projected: dict[str, tuple[torch.Tensor, torch.Tensor]]


def encode_texts(model: CloudModel, request: Request, plan: Plan) -> Texts:
    """Encode the prompts, the negative one if a step is guided; the text of a row of several candidates is the mean of
    theirs.

    Keys and values are linear in the text, so that the mean's are the mean of theirs and nothing is projected twice.
    InputError for a prompt that the text encoders cannot read whole.
    """
    negative = [request.negative_prompt] if any(step.guided for step in plan.steps) else []
    encoded = model.encode([*negative, *request.candidates])
    projected = model.project(encoded.hidden)
    index: dict[Row, int] = {}
    members: list[list[int]] = []  # of encoded
    for row in dict.fromkeys(row for step in plan.steps for row in step.rows):
        words = [0] if row.branch is Branch.UNCONDITIONAL else [len(negative) + m for m in row.members]
        if words not in members:
            members.append(words)
        index[row] = members.index(words)

    def mean(values: torch.Tensor) -> torch.Tensor:
        return torch.stack([values[m].float().mean(0).to(values.dtype) for m in members])

    return Texts(
        index,
        mean(encoded.hidden),
        None if encoded.pooled is None else mean(encoded.pooled),
        {name: (mean(keys), mean(values)) for name, (keys, values) in projected.items()},
    )


class Denoising:
    """A request from noise to hand-off. `inputs` and `take` are called for every pass, in the plan's order."""

    def __init__(self, model: CloudModel, pair: Pair, request: Request, plan: Plan) -> None:
        """InputError for a prompt that the text encoders cannot read whole."""
        self.model, self.request, self.plan = model, request, plan
        self.schedule = build_schedule(model.schedule_config, request.solver, request.steps)
        scale = pair.latent_downscale
        shape = (pair.latent_channels, request.height // scale, request.width // scale)
        noise = torch.from_numpy(initial_noise(request.seed, shape)).to(model.device)
        self.x = (self.schedule.initial_scale * noise).repeat(plan.candidates, 1, 1, 1)  # (N, 4, h, w), float32
        self.x0: torch.Tensor | None = None
        self.texts = encode_texts(model, request, plan)
        self.features: dict[tuple[Row, str], torch.Tensor] = {}
        self.outputs: dict[Row, torch.Tensor] = {}
        # Stable Diffusion XL's size conditions: original height and width, crop top and left, target height and width
        size = [request.height, request.width, 0, 0, request.height, request.width]
        self.size = torch.tensor([size], device=model.device, dtype=torch.float32)
        self.scale: torch.Tensor | None = None
        if model.guidance_distilled:  # Meng et al. 2023 (arXiv 2210.03142): the scale is embedded like a timestep
            w = torch.tensor([1000.0 * (request.guidance - 1.0)], device=model.device)
            width = model.unet.config.time_cond_proj_dim
            self.scale = get_timestep_embedding(w, width, downscale_freq_shift=1).to(model.dtype)

    def inputs(
        self, step: Step, one: Pass, start: int, stop: int, dtype: torch.dtype | None = None
    ) -> tuple[torch.Tensor, Inputs, Features]:
        """Latents [m, 4, h, w], conditions and kept features of rows [start, stop) of a pass.

        dtype: of latents and features, by default the model's. Features that only float32 holds, because they were
        computed in it, are infinite in float16.
        """
        dtype = dtype or self.model.dtype
        rows = one.rows[start:stop]
        m = len(rows)
        x = torch.stack([self.x[list(r.members)].mean(0) if len(r.members) > 1 else self.x[r.members[0]] for r in rows])
        words = [self.texts.index[row] for row in rows]
        timestep = torch.full((m,), float(self.schedule.timesteps[step.index]), device=x.device)
        pooled = None if self.texts.pooled is None else self.texts.pooled[words]
        inputs = Inputs(
            timestep=timestep,
            text=self.texts.hidden[words],
            pooled=pooled,
            size=None if pooled is None else self.size.expand(m, -1),
            scale=None if self.scale is None else self.scale.expand(m, -1),
            projected={name: (k[words], v[words]) for name, (k, v) in self.texts.projected.items()},
        )
        names = self.model.layered.names(needs(one.part))
        kept = {n: torch.stack([self.features[s, n].to(dtype) for s in one.sources[start:stop]]) for n in names}
        return x.to(dtype), inputs, kept

    def take(self, one: Pass, start: int, stop: int, output: torch.Tensor, features: Features) -> None:
        """What the UNet gave for rows [start, stop) of a pass. Features are copied: a view would keep the whole batch's
        in memory, other requests' among them, until the last request that was in it ends. Either may be float32, of
        rows that were run again in it."""
        for i, row in enumerate(one.rows[start:stop]):
            self.outputs[row] = output[i]
            for name, value in features.items():
                self.features[row, name] = value[i].clone()

    def advance(self, step: Step) -> None:
        """The solver's step, once all passes of `step` have run: guidance, then every candidate's latents."""
        predictions = {branch: torch.zeros_like(self.x) for branch in Branch}
        for row, output in self.outputs.items():
            own = self.x[list(row.members)]
            predictions[row.branch][list(row.members)] = output.float() + share_noise(self.schedule, step.index, own)
        output = predictions[Branch.CONDITIONAL]
        if step.guided:
            unconditional = predictions[Branch.UNCONDITIONAL]
            output = unconditional + self.request.guidance * (output - unconditional)
        self.x, self.x0 = solve(self.schedule, step.index, self.x, output, self.x0, self.request.seed)
        self.outputs.clear()

    def response(self) -> Response:
        """NotFiniteError if any latent is not finite: then nothing is returned."""
        assert self.x0 is not None
        if not bool(torch.isfinite(self.x).all()):
            raise NotFiniteError("the model produced numbers that are not finite; nothing is returned")
        return Response(
            latents=_to_wire(self.x),
            x0=_to_wire(self.x0) if self.request.want_x0 else None,
            step=self.request.handoff,
            schedule=self.schedule.digest,
            model=self.model.digest,
        )


def share_noise(schedule: Schedule, i: int, x: torch.Tensor) -> torch.Tensor:
    """What to add to the model's output at the mean of latents x [M, ...], so that all of them get the same *noise*.

    Candidates start from one noise, and early on differ in x0 alone: their noise predictions agree better than their
    x0 or velocity do. Zero for a model that predicts noise, or where all latents are equal.
    With x0 = a x + b output (Schedule.to_x0) and x = alpha x0 + sqrt(1 - alpha^2) noise, equal noise for x and its mean
    is output = mean's output + (1 / alpha - a) / b (x - mean).
    """
    a, b = (float(v) for v in schedule.to_x0[i])
    return (1 / float(schedule.alphas[i]) - a) / b * (x - x.mean(0, keepdim=True))


def solve(
    schedule: Schedule, i: int, x: torch.Tensor, output: torch.Tensor, x0_previous: torch.Tensor | None, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """core.schedule.Schedule.step, on the device."""
    a, b = (float(v) for v in schedule.to_x0[i])
    x0 = a * x + b * output
    c = [float(v) for v in schedule.row(i, first_order=x0_previous is None)]
    following = c[0] * x + c[1] * x0
    if x0_previous is not None and c[2]:
        following = following + c[2] * x0_previous
    if c[3]:
        following = following + c[3] * torch.from_numpy(step_noise(seed, i, tuple(x.shape[1:]))).to(x.device)
    return following, x0


def _to_wire(x: torch.Tensor) -> np.ndarray:
    """float16, kept within its range so that a far outlier stays finite."""
    limit = float(np.finfo(np.float16).max)
    return np.asarray(x.clamp(-limit, limit).cpu().numpy().astype(np.float16))
