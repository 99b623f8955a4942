"""The sizes and the scale of latents that a model's parts agree on, read from their configurations alone."""

from __future__ import annotations

from dataclasses import dataclass

from obclip.core.errors import InputError
from obclip.export.configs import unet_config, vae_config
from obclip.export.sources import Source

TIME_IDS = 6  # SDXL: original height and width, crop top and left, target height and width


@dataclass(frozen=True)
class Shapes:
    """Latent channels, default latent height and width, tokens and width of the text encoder, VAE downscaling.

    latent_scale: the VAE's scaling_factor, which latents are divided by before they are decoded. pooled: width of
    SDXL's `text_embeds`, guidance: width of LCM's `timestep_cond`; 0 where the UNet has none.
    hidden_states: the text encoders return every layer's output, as SDXL wants.
    """

    channels: int
    height: int
    width: int
    tokens: int
    text_width: int
    downscale: int
    latent_scale: float
    pooled: int = 0
    guidance: int = 0
    hidden_states: bool = False


def shapes_of(source: Source, tokens: int, height: int | None, width: int | None) -> Shapes:
    """height, width: pixels, by default the model's. InputError for a size that the model cannot draw."""
    unet, vae = unet_config(source), vae_config(source)
    blocks = vae.get("block_out_channels") or vae["decoder_block_out_channels"]
    scale = vae["scaling_factor"]
    if not isinstance(scale, int | float) or not scale > 0:
        raise InputError(f"{source.label}: the VAE's scaling_factor is {scale!r}; a number above 0 was wanted")
    downscale = 2 ** (len(blocks) - 1)
    # The graph halves latents at every level but the innermost; verification also runs at half the size
    multiple = downscale * 2 ** len(unet["block_out_channels"])
    for pixels in (height, width):
        if pixels is not None and (pixels <= 0 or pixels % multiple):
            raise InputError(f"the size is {pixels} px; for this model it must be a positive multiple of {multiple}")
    pooled = 0
    if unet["addition_embed_type"] == "text_time":
        pooled = unet["projection_class_embeddings_input_dim"] - TIME_IDS * unet["addition_time_embed_dim"]
        if pooled <= 0:
            raise InputError(
                f"{source.label} takes other added conditions than SDXL's {TIME_IDS}: it cannot be exported"
            )
    default = unet["sample_size"]
    rows, columns = default if isinstance(default, list) and len(default) == 2 else (default, default)
    latent = [given // downscale if given else side for given, side in ((height, rows), (width, columns))]
    if not all(isinstance(side, int) and side > 0 for side in latent):
        raise InputError(f"{source.label}: the UNet's sample_size is {default}; pass --height and --width")
    return Shapes(
        channels=unet["in_channels"],
        height=latent[0],
        width=latent[1],
        tokens=tokens,
        text_width=unet["cross_attention_dim"],
        downscale=downscale,
        latent_scale=float(scale),
        pooled=pooled,
        guidance=unet["time_cond_proj_dim"] or 0,
        hidden_states=source.family == "sdxl",
    )
