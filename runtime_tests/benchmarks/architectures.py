"""The UNets of the shipped pairs, as shapes: for costs, times and memory where weights are not at hand.

From the models' published configurations (Stable Diffusion 1.x, SDXL base 1.0; latent consistency adds an input
for the guidance scale). Of the devices': one layer a block where Stable Diffusion has two (segmind/small-sd, BK-SDM;
the smaller ones of BK-SDM without a middle block, -tiny without the innermost level), KOALA-700m likewise and with
fewer transformer layers.
"""

from __future__ import annotations

from typing import Any

_SD = dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280))
_XL = dict(
    sample_size=128, cross_attention_dim=2048, attention_head_dim=(5, 10, 20), block_out_channels=(320, 640, 1280),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2, 10),
    use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)  # fmt: skip

CLOUD_UNETS: dict[str, dict[str, Any]] = {
    "realistic-vision": _SD,
    "sd14": _SD,
    "sd14-tiny": _SD,
    "sdxl": _XL,
    "lcm-sdxl": {**_XL, "time_cond_proj_dim": 256},
}
_SMALL = {**_SD, "layers_per_block": 1}
DEVICE_UNETS: dict[str, dict[str, Any]] = {
    "small-sd": _SMALL,
    "bk-sdm-small": {**_SMALL, "mid_block_type": None},
    "bk-sdm-tiny": {
        **_SMALL, "mid_block_type": None, "block_out_channels": (320, 640, 1280),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3, "up_block_types": ("CrossAttnUpBlock2D",) * 3,
    },
    "koala-700m": {
        **_XL, "layers_per_block": 1, "mid_block_type": None, "transformer_layers_per_block": (1, 2, 5),
    },
}  # fmt: skip
TOKENS = 77
