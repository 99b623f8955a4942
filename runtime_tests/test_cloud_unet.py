"""The layered forward against diffusers' own: whole, in parts, with kept features and with a pivot's attention."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention as AttentionLayer

from obclip.cloud.attention import Processor, project_text
from obclip.cloud.parts import FULL, Attention, Keep, Part
from obclip.cloud.unet import Inputs, LayeredUNet
from obclip.core.errors import InputError

SHAPES = {
    "sd": {},
    "no-mid": {"mid_block_type": None},
    "one-layer": {"layers_per_block": 1},
    "xl": {
        "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 24, "transformer_layers_per_block": (1, 2, 1),
        "use_linear_projection": True,
    },
}  # fmt: skip
ROWS = 3


def make(shape: str) -> UNet2DConditionModel:
    torch.manual_seed(0)
    common = dict(
        sample_size=16, cross_attention_dim=24, attention_head_dim=4, norm_num_groups=8, layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), block_out_channels=(32, 64, 64),
    )  # fmt: skip
    return UNet2DConditionModel(**{**common, **SHAPES[shape]}).eval()


def conditions(shape: str) -> tuple[Inputs, dict[str, torch.Tensor] | None]:
    g = torch.Generator().manual_seed(1)
    timestep, text = torch.tensor([10.0, 400.0, 900.0]), torch.randn(ROWS, 7, 24, generator=g)
    if shape != "xl":
        return Inputs(timestep, text), None
    pooled, size = torch.randn(ROWS, 24, generator=g), torch.full((ROWS, 6), 64.0)
    return Inputs(timestep, text, pooled, size), {"text_embeds": pooled, "time_ids": size}


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def latents(height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.randn(ROWS, 4, height, width, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [(16, 16), (22, 18)])
def test_the_whole_is_diffusers_forward(shape: str, size: tuple[int, int]):
    unet, x = make(shape), latents(*size)
    inputs, added = conditions(shape)
    expected = unet(x, inputs.timestep, inputs.text, added_cond_kwargs=added).sample
    got, kept = LayeredUNet(unet)(x, inputs)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert kept == {}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_part_on_features_of_the_same_pass_gives_what_the_whole_gives(shape: str):
    layered, x = LayeredUNet(make(shape)), latents()
    inputs, _ = conditions(shape)
    depths = tuple(range(1, layered.depth + 1))
    whole, kept = layered(x, inputs, keep=Keep(depths, skips=True, attention=True))
    parts = [Part(d) for d in depths] + [Part(d, kept_skips=True) for d in depths]
    parts += [Part(attention=Attention.KEPT), Part(layered.depth, True, Attention.KEPT)]
    for part in parts:
        got, _ = layered(x, inputs, part, kept)
        torch.testing.assert_close(got, whole, rtol=0, atol=1e-5, msg=str(part))


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_a_shallow_pass_is_the_whole_with_old_features_put_in(depth: int):
    """The oracle is diffusers' forward, in which a hook replaces what enters the up layer."""
    unet = make("sd")
    layered, old, new = LayeredUNet(unet), latents(), latents().flip(0)
    inputs, _ = conditions("sd")
    _, kept = layered(old, inputs, keep=Keep((depth,)))
    got, _ = layered(new, inputs, Part(depth), kept)
    resnets = [resnet for block in unet.up_blocks for resnet in block.resnets]
    inner = kept[f"up.{layered.depth - depth}"]

    def put_in(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (torch.cat([inner, args[0][:, inner.shape[1] :]], dim=1), *args[1:])

    hook = resnets[-depth].register_forward_pre_hook(put_in)
    expected = unet(new, inputs.timestep, inputs.text).sample
    hook.remove()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(expected, unet(new, inputs.timestep, inputs.text).sample, atol=1e-3)


def test_text_projected_once_changes_nothing():
    unet, x = make("xl"), latents()
    layered = LayeredUNet(unet)
    inputs, _ = conditions("xl")
    expected, _ = layered(x, inputs)
    once = Inputs(inputs.timestep, inputs.text * 0, inputs.pooled, inputs.size, None, project_text(unet, inputs.text))
    torch.testing.assert_close(layered(x, once)[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("text_width", [None, 24])
def test_pivot_attention_is_one_map_with_every_rows_values(text_width: int | None):
    torch.manual_seed(3)
    layer = AttentionLayer(32, text_width, heads=4, dim_head=8).eval()
    x = torch.randn(5, 9, 32)
    text = None if text_width is None else torch.randn(5, 7, text_width)
    pivots = (1, 1, 4, 1, 4)
    layer.set_processor(Processor("it"))
    unet_state = {"state": _state(pivots)}
    got = layer(x, encoder_hidden_states=text, **unet_state)

    def heads(y: torch.Tensor) -> torch.Tensor:
        return y.reshape(5, -1, 4, 8).permute(0, 2, 1, 3)

    source = x if text is None else text
    q, k, v = heads(layer.to_q(x)), heads(layer.to_k(source)), heads(layer.to_v(source))
    maps = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, dim=-1)
    expected = layer.to_out[0]((maps[list(pivots)] @ v).permute(0, 2, 1, 3).reshape(5, 9, 32))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def _state(pivots: tuple[int, ...]):
    from obclip.cloud.attention import AttentionState

    return AttentionState(Attention.PIVOT, pivots=pivots)


def test_every_row_its_own_pivot_is_plain_attention():
    layered, x = LayeredUNet(make("sd")), latents()
    inputs, _ = conditions("sd")
    whole, _ = layered(x, inputs)
    got, _ = layered(x, inputs, Part(attention=Attention.PIVOT), pivots=(0, 1, 2))
    torch.testing.assert_close(got, whole, rtol=0, atol=1e-5)


def test_rows_do_not_see_each_other():
    layered, x = LayeredUNet(make("sd")), latents()
    inputs, _ = conditions("sd")
    whole, _ = layered(x, inputs)
    alone, _ = layered(x[1:2], Inputs(inputs.timestep[1:2], inputs.text[1:2]))
    torch.testing.assert_close(alone, whole[1:2], rtol=0, atol=1e-5)


def test_state_belongs_to_the_pass():
    layered, x = LayeredUNet(make("sd")), latents()
    inputs, _ = conditions("sd")
    before, _ = layered(x, inputs)
    _, kept = layered(x, inputs, keep=Keep((9,), skips=True, attention=True))
    layered(latents().flip(0), inputs, Part(layered.depth, True, Attention.KEPT), kept)
    torch.testing.assert_close(layered(x, inputs)[0], before, rtol=0, atol=0)


def test_depths_that_are_not_there_are_refused():
    layered = LayeredUNet(make("sd"))
    layered.check(FULL)
    layered.check(Part(9))
    with pytest.raises(InputError, match="9 up layers"):
        layered.check(Part(10))


def test_blocks_of_another_kind_are_refused_by_name():
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(32, 32), norm_num_groups=8, layers_per_block=1, cross_attention_dim=24,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    with pytest.raises(InputError, match="AttnDownBlock2D"):
        LayeredUNet(unet)
