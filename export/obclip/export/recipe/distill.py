"""Stage 3: the small UNet, made from the large one by removing layers, then distilled from it.

Kim et al. 2024 (BK-SDM, arXiv 2305.15798): the task loss, the teacher's output, and its block features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from .data import Drawings
from .diffusion import SHEET_PROMPTS, diffuse, make_batches, sample_images
from .models import build_scheduler, build_unet
from .sheet import save_sheet
from .train import Average, Stage, generator, learning_rate, memory_format


def inherited_weights(large: UNet2DConditionModel, small: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    """The large UNet's weights under the small one's names.

    Each down block keeps its first layers and each up block its first and last, as BK-SDM does; the levels that the
    small UNet lacks are the innermost ones, so its up blocks are the large one's outermost.
    """
    teacher, result = large.state_dict(), {}
    offset = len(large.config.block_out_channels) - len(small.config.block_out_channels)
    last_large, last_small = large.config.layers_per_block, small.config.layers_per_block
    for name, value in small.state_dict().items():
        parts = name.split(".")
        if parts[0] == "up_blocks":
            parts[1] = str(int(parts[1]) + offset)
            if parts[2] in ("resnets", "attentions") and int(parts[3]) == last_small:
                parts[3] = str(last_large)
        source = teacher.get(".".join(parts))
        if source is not None and source.shape == value.shape:
            result[name] = source
    return result


class Features:
    """Outputs of the blocks that both UNets have, captured during a forward pass."""

    def __init__(self, unet: UNet2DConditionModel, levels: int) -> None:
        self.values: list[torch.Tensor] = []
        first, up = unet.down_blocks[0].resnets[-1], list(unet.up_blocks[-levels:])
        self.channels: list[int] = [first.out_channels] + [block.resnets[-1].out_channels for block in up]
        for block in [first, *up]:
            block.register_forward_hook(self._keep)

    def _keep(self, module: Any, inputs: Any, output: Any) -> None:
        self.values.append(output[0] if isinstance(output, tuple) else output)

    def take(self) -> list[torch.Tensor]:
        values, self.values = self.values, []
        return values


def projections(student: list[int], teacher: list[int]) -> nn.ModuleList:
    """1x1 convolutions that bring a narrower student's features to the teacher's channels; not part of the student."""
    pairs = zip(student, teacher, strict=True)
    return nn.ModuleList(nn.Identity() if a == b else nn.Conv2d(a, b, 1) for a, b in pairs)


def train_small(config: dict[str, Any], seed: int, drawings: Drawings, out: Path, device: torch.device) -> None:
    torch.manual_seed(seed)
    c = config["small"]
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer", model_max_length=config["text"]["tokens"])
    vae = AutoencoderTiny.from_pretrained(out / "vae").to(device).eval()
    text = CLIPTextModel.from_pretrained(out / "text_encoder").to(device).eval()
    teacher = build_unet(config["unet"], config["text"]["width"], mid=True)
    teacher.load_state_dict(UNet2DConditionModel.from_pretrained(out / "unet").state_dict())
    layout = memory_format(device)
    teacher.to(device, memory_format=layout).eval().requires_grad_(False)
    small = build_unet({"heads": config["unet"]["heads"], **c}, config["text"]["width"], mid=False)
    taken = inherited_weights(teacher, small)
    small.load_state_dict({**small.state_dict(), **taken})
    small.to(device, memory_format=layout)
    levels = len(c["channels"])
    wanted, got = Features(teacher, levels), Features(small, levels)
    project = projections(got.channels, wanted.channels).to(device)
    stage, average, start = Stage("small", out, c["steps"], device), Average(small, c["ema"]), 0
    trained = [*small.parameters(), *project.parameters()]
    optimiser = torch.optim.AdamW(trained, lr=c["lr"], betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    if (saved := stage.load()) is not None:
        small.load_state_dict(saved["model"])
        project.load_state_dict(saved["projections"])
        optimiser.load_state_dict(saved["optimiser"])
        average.values, start = saved["average"], saved["step"]
    else:
        stage.log(inherited=len(taken), of=len(small.state_dict()))
    batches = make_batches(config, seed, drawings, vae, tokenizer, device)
    scheduler = build_scheduler()

    def step(i: int) -> dict[str, float]:
        g = generator(seed, i)
        x0, tokens = batches.draw(c["batch"], c["no_caption"], g)
        x, t, v = (y.to(device) for y in diffuse(x0, scheduler, g))
        x = x.contiguous(memory_format=layout)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(i, c["steps"], c["lr"], c["decay"])
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                hidden = text(tokens.to(device)).last_hidden_state
                target = teacher(x, t, hidden).sample.float()
            y = small(x, t, hidden).sample.float()
        task, output = F.mse_loss(y, v), F.mse_loss(y, target)
        pairs = zip(got.take(), wanted.take(), strict=True)
        feature = sum(
            F.mse_loss(to_teacher(a.float()), b.float()) / b.float().square().mean()
            for to_teacher, (a, b) in zip(project, pairs, strict=True)
        )
        loss = task + output + c["feature"] * feature
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(small.parameters(), 1.0)
        optimiser.step()
        average.update(small, i)
        return {"task": task.item(), "output": output.item(), "feature": float(feature)}

    def state(i: int) -> dict[str, Any]:
        return {
            "model": small.state_dict(),
            "projections": project.state_dict(),
            "optimiser": optimiser.state_dict(),
            "average": average.values,
            "step": i,
        }

    def sample(i: int) -> None:
        latest = {k: v.clone() for k, v in small.state_dict().items()}
        small.load_state_dict(average.values)
        images = sample_images(small.eval(), text, tokenizer, vae, SHEET_PROMPTS, device)
        got.take()
        small.load_state_dict(latest)
        small.train()
        save_sheet(out / f"small_{i:06d}.png", images, columns=12)

    stage.run(start, step, state, sample, log_every=50, sample_every=500)
    small.load_state_dict(average.values)
    small.save_pretrained(out / "small_unet")
