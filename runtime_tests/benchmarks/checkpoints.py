"""Diffusers folders of full size with random weights, for time, memory and export where real weights are not at hand.

`python -m runtime_tests.benchmarks.checkpoints small-sd FOLDER`. Shapes are the published ones; a tokenizer of the
embedded pair's words stands for CLIP's, of which no file can be made.
"""

from __future__ import annotations

import argparse
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from .architectures import CLOUD_UNETS, DEVICE_UNETS, TOKENS

UNETS: dict[str, dict[str, Any]] = {"sd15": CLOUD_UNETS["sd14"], "sdxl": CLOUD_UNETS["sdxl"], **DEVICE_UNETS}
_KL = dict(
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
)  # fmt: skip
_BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)


def make_checkpoint(name: str, folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A folder of the pipeline `name` ("small-sd", "sd15", "koala-700m", ...), seeded. changes: of the UNet's config.

    Standard deviations of latents stay near one through all steps: the last convolution is scaled so that the UNet
    predicts noise of about unit variance, as a trained one does.
    """
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**UNETS[name] | changes).eval().requires_grad_(False)
    _unit_output(unet)
    two = unet.config.addition_embed_type == "text_time"
    tokenizer = _tokenizer()
    vae = AutoencoderKL(**_KL, sample_size=1024 if two else 512, scaling_factor=0.13025 if two else 0.18215)
    scheduler = PNDMScheduler(**_BETAS, skip_prk_steps=True)
    pipeline: Any
    if two:
        pipeline = StableDiffusionXLPipeline(
            vae, _text(tokenizer, 768, 12, CLIPTextModel), _text(tokenizer, 1280, 32, CLIPTextModelWithProjection),
            tokenizer, tokenizer, unet, scheduler, add_watermarker=False,
        )  # fmt: skip
    else:
        pipeline = StableDiffusionPipeline(
            vae, _text(tokenizer, 768, 12, CLIPTextModel), tokenizer, unet, scheduler, None, None,
            requires_safety_checker=False,
        )  # fmt: skip
    pipeline.to(dtype).save_pretrained(folder, variant="fp16" if dtype == torch.float16 else None)
    return folder


def make_tiny_decoder(folder: Path) -> Path:
    """TAESD's architecture, which is AutoencoderTiny's default."""
    torch.manual_seed(1)
    AutoencoderTiny().eval().save_pretrained(folder)
    return folder


def _unit_output(unet: UNet2DConditionModel) -> None:
    g = torch.Generator().manual_seed(2)
    config = unet.config
    added = None
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {"text_embeds": torch.randn((1, pooled), generator=g), "time_ids": torch.full((1, 6), 512.0)}
    x = torch.randn((1, 4, 32, 32), generator=g)
    text = torch.randn((1, TOKENS, config.cross_attention_dim), generator=g)
    with torch.no_grad():
        out = unet(x, torch.tensor(500.0), text, added_cond_kwargs=added, return_dict=False)[0]
        unet.conv_out.weight /= out.std()
        unet.conv_out.bias -= unet.conv_out.bias


def _tokenizer() -> CLIPTokenizer:
    folder = resources.files("obclip.cloud") / "pairs" / "emoji" / "tokenizer"
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=TOKENS)


def _text(tokenizer: CLIPTokenizer, width: int, layers: int, kind: Any) -> Any:
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=width // 64, max_position_embeddings=TOKENS, projection_dim=1280,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return kind(config).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*UNETS, "taesd"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fp16", action="store_true", help="half-precision weights, in files named so")
    given = parser.parse_args()
    shutil.rmtree(given.folder, ignore_errors=True)
    if given.name == "taesd":
        make_tiny_decoder(given.folder)
    else:
        make_checkpoint(given.name, given.folder, torch.float16 if given.fp16 else torch.float32)


if __name__ == "__main__":
    main()
