"""Device graphs against diffusers' own UNet, in ONNX Runtime: every family's shape, whole and shallow passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray

from obclip.core.errors import InputError
from obclip.core.manifest import Variant
from obclip.export.graphs import export_device_graphs

SIDE, TOKENS, DEPTH = 16, 5, 2
SD = dict(
    sample_size=SIDE, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=24, norm_num_groups=8,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    attention_head_dim=4,
)  # fmt: skip
UNETS: dict[str, dict[str, Any]] = {
    "two layers a block, as Stable Diffusion": SD | dict(layers_per_block=2),
    "one layer a block, as small-sd": SD,
    "no middle, as BK-SDM-small": SD | dict(mid_block_type=None),
    "one level less, as BK-SDM-tiny": SD | dict(
        mid_block_type=None, down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2
    ),
    "SDXL": SD | dict(
        block_out_channels=(32, 64, 64), transformer_layers_per_block=(1, 1, 2), use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=20 + 6 * 8, attention_head_dim=(4, 8, 8),
    ),
    "LCM": SD | dict(time_cond_proj_dim=12),
}  # fmt: skip
Feed = dict[str, NDArray[Any]]


@dataclass
class Exported:
    unet: UNet2DConditionModel
    folder: Path
    variants: tuple[Variant, ...]

    def session(self, role: str, target: str) -> Callable[[Feed], Feed]:
        (variant,) = [v for v in self.variants if (v.role, v.target) == (role, target)]
        session = ort.InferenceSession(self.folder / variant.file, providers=["CPUExecutionProvider"])
        names = list(variant.outputs)
        return lambda feed: dict(zip(names, session.run(names, {n: feed[n] for n in variant.inputs}), strict=True))

    def extra(self) -> dict[str, torch.Tensor]:
        """Conditions beside text and step, by their names in graphs."""
        config, found = self.unet.config, {}
        if config.addition_embed_type:
            found |= {"text_embeds": noise((1, 20), 7), "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])}
        if config.time_cond_proj_dim:
            found["timestep_cond"] = noise((1, 12), 8)
        return found

    @torch.no_grad()
    def diffusers(self, x: torch.Tensor, t: float, text: torch.Tensor) -> NDArray[np.float32]:
        extra = self.extra()
        cond = extra.pop("timestep_cond", None)
        out = self.unet(
            x, torch.tensor(t), text, timestep_cond=cond, added_cond_kwargs=extra or None, return_dict=False
        )
        return out[0].numpy()


def noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


FIRST = ("two layers a block, as Stable Diffusion", "no middle, as BK-SDM-small", "LCM")


@pytest.fixture(
    scope="module",
    params=[name if name in FIRST else pytest.param(name, marks=pytest.mark.slow) for name in UNETS],
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    torch.manual_seed(1)
    unet = UNet2DConditionModel(**UNETS[request.param]).eval()
    folder = tmp_path_factory.mktemp("bundle")
    targets = ("cpu", "any") if request.param == next(iter(UNETS)) else ("cpu",)  # the other is the same layers
    return Exported(
        unet,
        folder,
        export_device_graphs(unet, SIDE, SIDE, TOKENS, folder / "unet", targets, DEPTH, external_above_bytes=0),
    )


def close(found: NDArray[Any], wanted: NDArray[Any]) -> None:
    assert found.shape == wanted.shape
    assert np.linalg.norm(found - wanted) < 1e-4 * np.linalg.norm(wanted)


def test_a_full_pass_is_the_unet(exported: Exported):
    x, text = noise((1, 4, SIDE, SIDE), 2), noise((1, TOKENS, 24), 3)
    steps = [999.0, 381.0, 20.0, 0.0]
    extra = {name: value.numpy() for name, value in exported.extra().items()}
    time = exported.session("time", "any")({"timestep": np.array(steps, np.float32), **extra})
    given = exported.session("text", "any")({"encoder_hidden_states": text.numpy()})
    for target in sorted({v.target for v in exported.variants if v.role == "full"}):
        full = exported.session("full", target)
        for i, t in enumerate(steps):
            row = {name: value[i : i + 1] for name, value in time.items()}
            close(full({"sample": x.numpy(), **row, **given})["out_sample"], exported.diffusers(x, t, text))


def entry(unet: UNet2DConditionModel) -> Any:
    """The residual block of the up layer at which a shallow pass begins."""
    return [resnet for block in unet.up_blocks for resnet in block.resnets][-DEPTH]


def test_a_shallow_pass_is_the_unet_on_features_of_another_step(exported: Exported):
    """diffusers' UNet with a hook before one residual block, whose input is [features, skip]."""
    unet, text = exported.unet, noise((1, TOKENS, 24), 3)
    first, second = noise((1, 4, SIDE, SIDE), 4), noise((1, 4, SIDE, SIDE), 5)
    extra = {name: value.numpy() for name, value in exported.extra().items()}
    time = exported.session("time", "any")({"timestep": np.array([601, 561], np.float32), **extra})
    given = exported.session("text", "any")({"encoder_hidden_states": text.numpy()})
    kept = exported.session("full", "cpu")({"sample": first.numpy(), **{n: v[:1] for n, v in time.items()}, **given})[
        "features"
    ]
    found = exported.session("shallow", "cpu")(
        {"sample": second.numpy(), "features": kept, **{n: v[1:] for n, v in time.items()}, **given}
    )["out_sample"]

    seen: list[torch.Tensor] = []

    def read(module: Any, args: tuple[torch.Tensor, ...]) -> None:
        seen.append(args[0][:, : kept.shape[1]])

    def replace(module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return torch.cat([seen[0], args[0][:, kept.shape[1] :]], 1), *args[1:]

    handle = entry(unet).register_forward_pre_hook(read)
    exported.diffusers(first, 601.0, text)
    handle.remove()
    close(kept, seen[0].numpy())
    handle = entry(unet).register_forward_pre_hook(replace)
    wanted = exported.diffusers(second, 561.0, text)
    handle.remove()
    close(found, wanted)
    assert np.linalg.norm(found - exported.diffusers(second, 561.0, text)) > 1e-3 * np.linalg.norm(found)


def test_graphs_share_one_file_of_weights(exported: Exported):
    unet_bytes = sum(p.numel() * 4 for p in exported.unet.parameters())
    pages = 4096 * len(list(exported.unet.parameters()))
    data = exported.folder / "unet" / "model.onnx_data"
    assert data.stat().st_size <= unet_bytes + pages
    for variant in exported.variants:
        graph = exported.folder / variant.file
        assert graph.stat().st_size < 600_000
        assert variant.verification["psnr_db"] >= variant.verification["floor_db"] == 80


def test_passes_hold_neither_step_nor_text_projections_nor_free_shapes(exported: Exported):
    for variant in exported.variants:
        if variant.role not in ("full", "shallow"):
            continue
        graph = onnx.load(exported.folder / variant.file, load_external_data=False).graph
        assert all(isinstance(size, int) for shape in variant.inputs.values() for size in shape)
        kinds = {n.op_type for n in graph.node}
        assert not kinds & {"Shape", "Sin", "Cos", "Gemm", "Split", "Einsum", "If", "Loop"}
        assert ("Softmax" if variant.target == "cpu" else "MultiHeadAttention") not in kinds
        if variant.role == "full":  # SDXL's outermost level has no attention
            assert ("MultiHeadAttention" if variant.target == "cpu" else "Softmax") in kinds


def test_time_graph_is_exact_at_every_step(exported: Exported):
    """The sinusoid is in float32: bfloat16 would lose it at large t (torch on the same steps, in float64)."""
    steps = torch.arange(0, 1000, 7, dtype=torch.float32)
    extra = exported.extra()
    found = exported.session("time", "any")({"timestep": steps.numpy()} | {n: v.numpy() for n, v in extra.items()})
    unet = UNet2DConditionModel.from_config(exported.unet.config).double().eval()
    unet.load_state_dict(exported.unet.state_dict())
    with torch.no_grad():
        half = unet.config.block_out_channels[0] // 2
        angles = steps.double()[:, None] * torch.exp(-np.log(10000.0) * torch.arange(half) / half)[None]
        cond = extra.pop("timestep_cond", None)
        emb = unet.time_embedding(torch.cat([angles.cos(), angles.sin()], 1), None if cond is None else cond.double())
        if extra:
            added = {name: value.double() for name, value in extra.items()}
            emb = emb + unet.get_aug_embed(emb=emb, encoder_hidden_states=None, added_cond_kwargs=added)
        wanted = entry(unet).time_emb_proj(torch.nn.functional.silu(emb))
    name = list(found)[-DEPTH]
    np.testing.assert_allclose(found[name][:, :, 0, 0], wanted.numpy(), rtol=2e-4, atol=2e-5)


class FewerKeys(AttnProcessor):
    """diffusers' attention, to every second row and column of its own tokens."""

    def __call__(self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: Any = None, **rest: Any) -> Any:
        n, length, width = hidden_states.shape
        side = int(length**0.5)
        fewer = hidden_states.reshape(n, side, side, width)[:, ::2, ::2].reshape(n, length // 4, width)
        return super().__call__(attn, hidden_states, fewer, **rest)


@pytest.mark.parametrize(
    "kind", ["SDXL", pytest.param("two layers a block, as Stable Diffusion", marks=pytest.mark.slow)]
)
def test_merged_tokens_are_those_of_the_widest_self_attentions(kind: str, tmp_path: Path):
    torch.manual_seed(1)
    unet = UNet2DConditionModel(**UNETS[kind]).eval()
    variants = export_device_graphs(unet, SIDE, SIDE, TOKENS, tmp_path / "unet", depth=DEPTH, merge=2)
    made = Exported(unet, tmp_path, variants)
    assert {v.verification.get("merge") for v in variants if v.role in ("full", "shallow")} == {2}
    x, text = noise((1, 4, SIDE, SIDE), 2), noise((1, TOKENS, 24), 3)
    extra = {name: value.numpy() for name, value in made.extra().items()}
    time = made.session("time", "any")({"timestep": np.array([381.0], np.float32), **extra})
    given = made.session("text", "any")({"encoder_hidden_states": text.numpy()})
    found = made.session("full", "cpu")({"sample": x.numpy(), **time, **given})["out_sample"]
    whole = made.diffusers(x, 381.0, text)
    widest = 0 if kind != "SDXL" else 1  # SDXL's outermost level has no attention
    for block in (unet.down_blocks[widest], unet.up_blocks[-1 - widest]):
        for transformer in block.attentions:
            for layer in transformer.transformer_blocks:
                layer.attn1.set_processor(FewerKeys())
    close(found, made.diffusers(x, 381.0, text))
    assert np.linalg.norm(found - whole) > 1e-3 * np.linalg.norm(whole)


def test_sizes_and_depths_that_do_not_fit(tmp_path: Path):
    unet = UNet2DConditionModel(**SD)
    with pytest.raises(InputError, match="multiples of 2"):
        export_device_graphs(unet, 15, 16, TOKENS, tmp_path)
    with pytest.raises(InputError, match="1 to 3"):
        export_device_graphs(unet, 16, 16, TOKENS, tmp_path, depth=4)
    for merge, said in ((0, "1 or more"), (3, "cannot be merged")):
        with pytest.raises(InputError, match=said):
            export_device_graphs(unet, 16, 16, TOKENS, tmp_path, merge=merge)
    with pytest.raises(InputError, match="cpu, openvino, any"):
        export_device_graphs(unet, 16, 16, TOKENS, tmp_path, targets=("npu",))
