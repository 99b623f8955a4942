"""Small diffusers folders with random weights: the classes and files of Stable Diffusion, made in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from obclip.core.noise import initial_noise
from obclip.core.wire import Request
from obclip.export.recipe.tokenizer import build_tokenizer

WORDS = (
    "noto twemoji blob style emoji of a an portrait photo woman man girl boy child older adult person firefighter cook "
    "with light medium dark skin tone , - wearing red hat"
)


def make_sd_folder(
    path: Path,
    *,
    vae: str = "tiny",
    width: int = 32,
    layers: int = 1,
    mid: bool = True,
    seed: int = 0,
    prediction: str = "v_prediction",
    tokens: int = 32,
) -> Path:
    """A StableDiffusionPipeline folder: 4x16x16 latents, 64 px pictures, text encoder `width` wide.

    Weights depend on `seed` alone for the text encoder and VAE (`seed // 10`), so that a large and a small folder made
    with seeds 0 and 1 share both, as a real pair does.
    """
    tokenizer = build_tokenizer([WORDS] * 4, 600, tokens, path / "vocabulary")
    torch.manual_seed(seed // 10)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tokens,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    coder: AutoencoderTiny | AutoencoderKL
    if vae == "tiny":
        coder = AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            num_encoder_blocks=(0, 1, 1),
            num_decoder_blocks=(1, 1, 1),
        )
    else:
        coder = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 16),
            norm_num_groups=4,
            sample_size=64,
        )
    torch.manual_seed(seed + 1000)
    unet = UNet2DConditionModel(
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn" if mid else None,
        block_out_channels=(width, 2 * width),
        layers_per_block=layers,
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
    )
    pipeline = StableDiffusionPipeline(
        vae=coder,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(path)
    return path


def make_sdxl_folder(path: Path, *, distilled: bool = False, zero_empty: bool = True) -> Path:
    """A StableDiffusionXLPipeline folder: two text encoders, added conditions; `distilled`: the scale is an input."""
    tokenizer = build_tokenizer([WORDS] * 4, 600, 32, path / "vocabulary")
    torch.manual_seed(5)
    common = dict(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=32, projection_dim=24, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 24,
        time_cond_proj_dim=16 if distilled else None,
    )
    pipeline = StableDiffusionXLPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 16),
            norm_num_groups=4,
            sample_size=64,
        ),
        text_encoder=CLIPTextModel(CLIPTextConfig(**common)),
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**common, hidden_act="gelu")),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing",
            clip_sample=False, steps_offset=1,
        ),
        force_zeros_for_empty_prompt=zero_empty,
        add_watermarker=False,
    )  # fmt: skip
    pipeline.save_pretrained(path)
    return path


def diffusers_latents(pipeline: Any, request: Request, prompt: str) -> np.ndarray:
    """float32 [4, h, w] after `request.handoff` steps of a diffusers pipeline, on the request's own noise."""
    pipeline.set_progress_bar_config(disable=True)
    seen = []
    pipeline(
        prompt,
        negative_prompt=request.negative_prompt or None,
        height=64,
        width=64,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        latents=torch.from_numpy(initial_noise(request.seed, (1, 4, 16, 16))),
        output_type="latent",
        callback_on_step_end=lambda p, i, t, values: seen.append(values["latents"].numpy().copy()) or values,
    )
    return seen[request.handoff - 1][0]
