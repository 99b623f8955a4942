"""The pair's shapes, as diffusers and transformers classes."""

from __future__ import annotations

from typing import Any

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


def build_unet(config: dict[str, Any], text_width: int, mid: bool) -> UNet2DConditionModel:
    attention = config["attention"]
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        mid_block_type="UNetMidBlock2DCrossAttn" if mid else None,
        block_out_channels=tuple(config["channels"]),
        layers_per_block=config["layers"],
        cross_attention_dim=text_width,
        attention_head_dim=config["heads"],  # diffusers reads this as the number of heads (Stable Diffusion 1.x)
    )
    # On a CPU the fused kernel's backward pass is slow; written-out attention trains faster at 64 tokens.
    unet.set_attn_processor(AttnProcessor())
    return unet


def build_text_encoder(config: dict[str, Any], tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config["width"],
            intermediate_size=config["width"] * 4,
            num_hidden_layers=config["layers"],
            num_attention_heads=config["heads"],
            max_position_embeddings=config["tokens"],
            projection_dim=config["width"],
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


# Stable Diffusion's betas; velocity prediction (Salimans & Ho 2022); trailing steps (Lin et al. 2024).
_NOISE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}


def build_scheduler() -> DDIMScheduler:
    """What training draws its noise levels from, and its sample sheets."""
    return DDIMScheduler(**_NOISE, clip_sample=False, set_alpha_to_one=True)


def build_solver() -> DPMSolverMultistepScheduler:
    """What the finished folders name: DPM-Solver++ 2M over sigmas in equal ratios.

    On latents of 16 by 16, little is decided at high noise: after 10 of 25 trailing steps (t = 600) a picture of this
    pair is still open. Equal ratios reach t = 382 there, so that the large model's steps decide something.
    """
    return DPMSolverMultistepScheduler(
        **_NOISE, algorithm_type="dpmsolver++", solver_order=2, use_exponential_sigmas=True
    )
