"""Stage 2: the text encoder and the large UNet, trained together on latents (velocity prediction)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from obclip.core.errors import InputError

from .captions import caption_variants
from .data import Drawings
from .models import build_scheduler, build_text_encoder, build_unet
from .sheet import save_sheet
from .tokenizer import build_tokenizer
from .train import Average, Stage, generator, learning_rate, memory_format
from .vae import encode_all

VARIANTS = 16
SHEET_PROMPTS = [
    f"{style} style emoji of {who} with {skin} skin tone"
    for style, skin in (("noto", "dark"), ("fluent 3d", "light"), ("twemoji", "medium"))
    for who in (
        "a woman",
        "a man",
        "a girl",
        "a boy",
        "an older woman",
        "an older man",
        "a woman firefighter",
        "a man firefighter",
        "a woman cook",
        "a man astronaut",
        "a woman teacher",
        "a man farmer",
    )
]


@dataclass
class Batches:
    """Latents float32 [M, 4, h, w] (scaled) with VARIANTS tokenised captions each, int64 [M, VARIANTS, tokens]."""

    latents: torch.Tensor
    tokens: torch.Tensor
    weights: torch.Tensor
    empty: torch.Tensor

    def draw(self, size: int, no_caption: float, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        i = torch.multinomial(self.weights, size, replacement=True, generator=g)
        j = torch.randint(VARIANTS, (size,), generator=g)
        tokens = self.tokens[i, j]
        dropped = torch.rand(size, generator=g) < no_caption
        return self.latents[i], torch.where(dropped[:, None], self.empty, tokens)


def tokenise(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    return ids.input_ids


def make_batches(
    config: dict[str, Any], seed: int, drawings: Drawings, vae: AutoencoderTiny, tokenizer: CLIPTokenizer, device: Any
) -> Batches:
    train = drawings.split("train")
    rng = np.random.default_rng(seed)
    chosen: list[str] = []
    for row in train.rows:
        variants = caption_variants(row)
        chosen += [variants[i] for i in rng.integers(len(variants), size=VARIANTS)]
    unique = sorted(set(chosen))
    ids = dict(zip(unique, tokenise(tokenizer, unique), strict=True))
    tokens = torch.stack([ids[c] for c in chosen]).view(len(train.rows), VARIANTS, -1)
    rare = torch.tensor([row["age"] in config["sampling"]["rare"] for row in train.rows])
    share = config["sampling"]["rare_share"]
    weights = torch.where(rare, share / rare.sum(), (1 - share) / (~rare).sum())
    latents = encode_all(vae, torch.from_numpy(train.images), device) * vae.config.scaling_factor
    return Batches(latents, tokens, weights, tokenise(tokenizer, [""])[0])


def diffuse(x0: torch.Tensor, scheduler: DDIMScheduler, g: torch.Generator) -> tuple[torch.Tensor, ...]:
    """x_t, t and the velocity target v = sqrt(a_t) eps - sqrt(1 - a_t) x0."""
    t = torch.randint(1000, (len(x0),), generator=g)
    noise = torch.randn(x0.shape, generator=g)
    return scheduler.add_noise(x0, noise, t), t, scheduler.get_velocity(x0, noise, t)


@torch.no_grad()
def sample_images(
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    vae: AutoencoderTiny,
    prompts: list[str],
    device: torch.device,
    guidance: float = 3.5,
    steps: int = 25,
) -> torch.Tensor:
    """float32 [M, 3, H, W] in -1..1, DDIM with classifier-free guidance; one noise for all prompts."""
    scheduler = build_scheduler()
    scheduler.set_timesteps(steps)
    ids = tokenise(tokenizer, ["", *prompts]).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        hidden = text(ids).last_hidden_state
        c = torch.cat([hidden[:1].expand(len(prompts), -1, -1), hidden[1:]])
        x = (
            torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
            .to(device)
            .repeat(len(prompts), 1, 1, 1)
        )
        for t in scheduler.timesteps:
            uncond, cond = unet(torch.cat([x, x]), t, c).sample.float().chunk(2)
            x = scheduler.step(uncond + guidance * (cond - uncond), t, x).prev_sample
        return vae.decode(x / vae.config.scaling_factor).sample.float()


def load_weights(both: torch.nn.ModuleDict, tokenizer: CLIPTokenizer, init: Path) -> None:
    """Go on from a finished pair's text encoder and UNet. InputError if its vocabulary is another one."""
    if CLIPTokenizer.from_pretrained(init / "tokenizer").get_vocab() != tokenizer.get_vocab():
        raise InputError(f"{init} was trained with another vocabulary; leave --init out, or use the same captions")
    text = CLIPTextModel.from_pretrained(init / "text_encoder", dtype=torch.float32)
    unet = UNet2DConditionModel.from_pretrained(init / "unet", torch_dtype=torch.float32)
    both["text"].load_state_dict(text.state_dict())
    both["unet"].load_state_dict(unet.state_dict())


def train_large(
    config: dict[str, Any], seed: int, drawings: Drawings, out: Path, device: torch.device, init: Path | None = None
) -> None:
    """init: a finished pair's folder, whose text encoder and UNet training goes on from."""
    torch.manual_seed(seed)
    c = config["unet"]
    captions = [v for row in drawings.split("train").rows for v in caption_variants(row)]
    tokenizer = build_tokenizer(captions, config["text"]["vocab"], config["text"]["tokens"], out / "tokenizer")
    vae = AutoencoderTiny.from_pretrained(out / "vae").to(device).eval()
    both = torch.nn.ModuleDict(
        {
            "unet": build_unet(c, config["text"]["width"], mid=True),
            "text": build_text_encoder(config["text"], tokenizer),
        }
    )
    if init is not None:
        load_weights(both, tokenizer, init)
    layout = memory_format(device)
    both.to(device)
    both.to(memory_format=layout)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(both.parameters(), lr=c["lr"], betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    stage, average, start = Stage("unet", out, c["steps"], device), Average(both, c["ema"]), 0
    if (saved := stage.load()) is not None:
        both.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        average.values, start = saved["average"], saved["step"]
    batches = make_batches(config, seed, drawings, vae, tokenizer, device)
    scheduler = build_scheduler()

    def step(i: int) -> dict[str, float]:
        g = generator(seed, i)
        x0, tokens = batches.draw(c["batch"], c["no_caption"], g)
        x, t, v = (y.to(device) for y in diffuse(x0, scheduler, g))
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(i, c["steps"], c["lr"], c["decay"])
        with torch.autocast(device.type, torch.bfloat16):
            hidden = both["text"](tokens.to(device)).last_hidden_state
            y = both["unet"](x.contiguous(memory_format=layout), t, hidden).sample
        loss = F.mse_loss(y.float(), v)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimiser.step()
        average.update(both, i)
        return {"loss": loss.item()}

    def state(i: int) -> dict[str, Any]:
        return {"model": both.state_dict(), "optimiser": optimiser.state_dict(), "average": average.values, "step": i}

    def sample(i: int) -> None:
        trained = {k: v.clone() for k, v in both.state_dict().items()}
        both.load_state_dict(average.values)
        images = sample_images(both["unet"].eval(), both["text"].eval(), tokenizer, vae, SHEET_PROMPTS, device)
        both.load_state_dict(trained)
        both.train()
        save_sheet(out / f"unet_{i:06d}.png", images, columns=12)

    stage.run(start, step, state, sample, log_every=50, sample_every=500)
    both.load_state_dict(average.values)
    cast(Any, both["unet"]).save_pretrained(out / "unet")
    cast(Any, both["text"]).save_pretrained(out / "text_encoder")
