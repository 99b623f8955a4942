"""Stage 1: an AutoencoderTiny that maps 64 px drawings to 4x16x16 latents of about unit variance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from torch.nn import functional as F

from .data import Drawings
from .sheet import save_sheet
from .train import Average, Stage, generator, learning_rate


def build_vae(channels: int) -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(channels,) * 3,
        decoder_block_out_channels=(channels,) * 3,
        num_encoder_blocks=(0, 3, 3),
        num_decoder_blocks=(3, 3, 1),
    )


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 [B, H, W, 3] to float32 [B, 3, H, W] in -1..1, channels last in memory."""
    return (images.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def reconstruction_loss(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """L1 on pixels and on their finite differences; the second keeps outlines sharp."""
    gradient = F.l1_loss(y.diff(dim=-1), x.diff(dim=-1)) + F.l1_loss(y.diff(dim=-2), x.diff(dim=-2))
    return F.l1_loss(y, x) + gradient


def train_vae(
    config: dict[str, Any], seed: int, drawings: Drawings, out: Path, device: torch.device, init: Path | None = None
) -> AutoencoderTiny:
    """init: a finished pair's folder, whose VAE training goes on from."""
    torch.manual_seed(seed)
    vae = build_vae(config["channels"])
    if init is not None:
        vae.load_state_dict(AutoencoderTiny.from_pretrained(init / "vae", torch_dtype=torch.float32).state_dict())
    vae.to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=config["lr"], betas=(0.9, 0.99), weight_decay=1e-4)
    stage = Stage("vae", out, config["steps"], device)
    average, start = Average(vae, 0.995), 0
    if (saved := stage.load()) is not None:
        vae.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        average.values, start = saved["average"], saved["step"]
    train = torch.from_numpy(drawings.split("train").images)
    held = torch.from_numpy(drawings.split("test_iid", "test_triple").images[::8])
    reference = build_vae(config["channels"]).to(device).eval()

    def step(i: int) -> dict[str, float]:
        g = generator(seed, i)
        x = to_unit(train[torch.randint(len(train), (config["batch"],), generator=g)]).to(device)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(i, config["steps"], config["lr"], decay=0.35)
        with torch.autocast(device.type, torch.bfloat16):
            z = vae.encode(x).latents
            noise = torch.randn(z.shape, generator=g).to(device, z.dtype)
            y = vae.decode(z + config["latent_noise"] * noise).sample
        z, y = z.float(), y.float()
        moments = z.mean(dim=(0, 2, 3)).square().mean() + (z.std(dim=(0, 2, 3)) - 1).square().mean()
        loss = reconstruction_loss(y, x) + config["moments"] * moments
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        average.update(vae, i)
        return {"loss": loss.item(), "moments": moments.item()}

    def state(i: int) -> dict[str, Any]:
        return {
            "model": vae.state_dict(),
            "optimiser": optimiser.state_dict(),
            "average": average.values,
            "step": i,
        }

    def sample(i: int) -> None:
        reference.load_state_dict(average.values)
        psnr, y = round_trip(reference, held, device)
        stage.log(step=i, psnr_db=round(psnr, 2))
        save_sheet(out / f"vae_{i:06d}.png", torch.cat([to_unit(held[:24]), y[:24].cpu()]), columns=24)

    stage.run(start, step, state, sample, sample_every=650)
    vae.load_state_dict(average.values)
    vae.register_to_config(scaling_factor=latent_scale(vae, train, device))
    return vae.eval()


@torch.no_grad()
def round_trip(vae: AutoencoderTiny, images: torch.Tensor, device: torch.device) -> tuple[float, torch.Tensor]:
    """Mean over images of the PSNR in dB, 8-bit range, and the decoded images in -1..1."""
    outputs = [vae.decode(vae.encode(to_unit(b).to(device)).latents).sample.clamp(-1, 1) for b in images.split(64)]
    y = torch.cat(outputs)
    mse = ((y.cpu() - to_unit(images)) / 2).square().mean(dim=(1, 2, 3))
    return float((-10 * mse.log10()).mean()), y


@torch.no_grad()
def encode_all(vae: AutoencoderTiny, images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """float32 [M, 4, h, w], before scaling."""
    return torch.cat([vae.encode(to_unit(b).to(device)).latents.float().cpu() for b in images.split(64)])


def latent_scale(vae: AutoencoderTiny, images: torch.Tensor, device: torch.device) -> float:
    """The factor that brings latents to unit variance, as in Rombach et al. 2022, section G.1."""
    return float(1 / encode_all(vae, images[::8], device).std())
