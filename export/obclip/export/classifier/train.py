"""Training the judge: real drawings and their VAE round trips, moved, blurred and noised, then calibrated."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file
from torch.nn import functional as F

from obclip.core.files import atomic_folder
from obclip.edge.machine import machine
from obclip.export.classifier.judge import CARD, HEADS, SIDE_PX, WEIGHTS, Classifier, load_classifier, to_unit
from obclip.export.classifier.measure import bootstrap, calibration_error, hits, score
from obclip.export.classifier.net import Net
from obclip.export.recipe.data import Drawings
from obclip.export.recipe.train import Average, generator, learning_rate

IGNORED = -100
SPLITS = ("test_iid", "test_triple", "test_act_gender", "test_act_skin", "test_style_act")
CALIBRATION_SHARE = 16  # one drawing in this many is kept out of training, to set the temperatures
AGE_WEIGHT = {"child": 8.0, "adult": 1.0, "older": 12.0}


def train_classifier(
    drawings: Drawings, vae: Path, out: Path, *, steps: int, batch: int, seed: int, device: torch.device
) -> Classifier:
    """Write `out` (weights, feature statistics, card) whole or not at all; returns the classifier as loaded from it."""
    started = time.perf_counter()
    torch.manual_seed(seed)
    labels = _labels(drawings)
    train = drawings.split("train")
    held = np.arange(len(train.rows)) % CALIBRATION_SHARE == 0
    images, targets = torch.from_numpy(train.images[~held]), _targets(train.rows, labels)
    taught = {name: t[torch.from_numpy(~held)] for name, t in targets.items()}
    decoded = round_trips(vae, images, device, seed)
    net = Net({name: len(v) for name, v in labels.items()}).to(device)
    _fit(net, images, decoded, taught, labels, steps, batch, seed, device)
    net.cpu().eval()
    temperature = _calibrate(
        net, torch.from_numpy(train.images[held]), {k: t[torch.from_numpy(held)] for k, t in targets.items()}
    )
    plain = Classifier(net, labels, temperature, np.zeros(1), np.zeros(1), {})
    features, _ = plain.run(train.images)
    state = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    state["feature_mean"] = torch.from_numpy(features.mean(0)).float()
    state["feature_covariance"] = torch.from_numpy(np.cov(features, rowvar=False)).float()
    card: dict[str, Any] = {
        "labels": labels,
        "temperature": temperature,
        "trained_on": f"{int((~held).sum())} drawings of the train split and their VAE round trips",
        "steps": steps,
        "batch": batch,
        "seed": seed,
        "machine": machine(),
    }
    with atomic_folder(out, force=True, mark=CARD) as building:
        save_file(state, building / WEIGHTS)
        (building / CARD).write_text(json.dumps(card))
        judge = load_classifier(building)
        held_out = {split: drawings.split(split) for split in SPLITS if drawings.split(split).rows}
        card["held_out"] = {split: measure(judge, some) for split, some in held_out.items()}
        card["held_out_decoded"] = {split: measure(judge, _decoded(some, vae)) for split, some in held_out.items()}
        card["seconds"] = round(time.perf_counter() - started)
        (building / CARD).write_text(json.dumps(card, indent=1, sort_keys=True) + "\n")
    return load_classifier(out)


def measure(judge: Classifier, drawings: Drawings) -> dict[str, Any]:
    """Accuracy by head with a bootstrap interval, and the calibration error of the activity head."""
    _, odds = judge.run(drawings.images)
    said = {name: [judge.labels[name][i] for i in p.argmax(-1)] for name, p in odds.items()}
    result: dict[str, Any] = {"images": len(drawings.rows)}
    for head in HEADS:
        right = hits(drawings.rows, said, head)
        if np.isnan(right).all():
            continue
        low, high = bootstrap(drawings.rows, right, head, np.random.default_rng(0))
        result[head] = {
            "accuracy": round(score(drawings.rows, right, head), 4),
            "low": round(low, 4),
            "high": round(high, 4),
        }
        result[head]["n"] = int((~np.isnan(right)).sum())
        kept = ~np.isnan(right)
        result[head]["calibration_error"] = round(calibration_error(odds[head][kept], right[kept]), 4)
    return result


@torch.no_grad()
def round_trips(vae: Path, images: torch.Tensor, device: torch.device, seed: int, noise: float = 0.08) -> torch.Tensor:
    """uint8 like `images`: each as the pair's decoder draws it from its own latents, slightly disturbed."""
    coder = AutoencoderTiny.from_pretrained(vae, torch_dtype=torch.float32).to(device).eval()
    g, parts = generator(seed, 0), []
    for part in images.split(64):
        z = coder.encode(to_unit(part).to(device)).latents
        z = z + noise * torch.randn(z.shape, generator=g).to(device)
        y = coder.decode(z).sample.clamp(-1, 1)
        parts.append(((y.cpu() + 1) * 127.5).round().byte().permute(0, 2, 3, 1))
    return torch.cat(parts)


def _decoded(drawings: Drawings, vae: Path) -> Drawings:
    images = round_trips(vae, torch.from_numpy(drawings.images), torch.device("cpu"), 1, noise=0.0)
    return Drawings(images.numpy(), drawings.rows)


def _labels(drawings: Drawings) -> dict[str, list[str]]:
    def values(key: str) -> list[str]:
        return sorted({str(row[key]) for row in drawings.rows})

    return {
        "gender": ["woman", "man"],
        "skin": ["default", "light", "medium-light", "medium", "medium-dark", "dark"],
        "age": ["child", "adult", "older"],
        "activity": values("activity"),
        "style": values("style"),
    }


def _targets(rows: list[dict[str, Any]], labels: dict[str, list[str]]) -> dict[str, torch.Tensor]:
    """int64 [M] by head; IGNORED where the drawing does not say (a person who is neither woman nor man)."""
    return {
        name: torch.tensor([known.index(row[name]) if row[name] in known else IGNORED for row in rows])
        for name, known in labels.items()
    }


def _fit(
    net: Net,
    images: torch.Tensor,
    decoded: torch.Tensor,
    targets: dict[str, torch.Tensor],
    labels: dict[str, list[str]],
    steps: int,
    batch: int,
    seed: int,
    device: torch.device,
) -> None:
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05)
    average = Average(net, 0.995)
    ages = torch.tensor([AGE_WEIGHT[a] for a in labels["age"]], device=device)
    for i in range(steps):
        g = generator(seed, i + 1)
        chosen = torch.randint(len(images), (batch,), generator=g)
        from_decoder = torch.rand(batch, generator=g) < 0.5
        x = torch.where(from_decoder[:, None, None, None], decoded[chosen], images[chosen])
        x = augment(to_unit(x), g).to(device)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(i, steps, 1e-3, decay=0.6)
        with torch.autocast(device.type, torch.bfloat16):
            _, logits = net(x)
        loss = torch.zeros((), device=device)
        for name, out in logits.items():
            weight = ages if name == "age" else None
            loss = loss + F.cross_entropy(
                out.float(), targets[name][chosen].to(device), weight, ignore_index=IGNORED, label_smoothing=0.05
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        average.update(net, i)
        if (i + 1) % 250 == 0:
            print(json.dumps({"step": i + 1, "of": steps, "loss": round(float(loss), 4)}), flush=True)
    net.load_state_dict(average.values)


def augment(x: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """float [M, 3, H, W] in -1..1: mirrored, moved, scaled, blurred, noised; colours stay, they are what is told."""
    m = len(x)
    scale = 0.9 + 0.2 * torch.rand(m, generator=g)
    flip = torch.where(torch.rand(m, generator=g) < 0.5, -1.0, 1.0)
    shift = (torch.rand(m, 2, generator=g) - 0.5) * (8 / SIDE_PX)
    theta = torch.zeros(m, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = flip / scale, 1 / scale, shift
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    x = F.grid_sample(x - 1, grid, align_corners=False) + 1  # what moves in from outside is white
    kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    square = (kernel[:, None] * kernel[None, :]).expand(3, 1, 5, 5)
    blurred = F.conv2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), square, groups=3)
    amount = torch.rand(m, generator=g) * (torch.rand(m, generator=g) < 0.4)
    x = x + amount[:, None, None, None] * (blurred - x)
    return x + 0.04 * torch.rand(m, 1, 1, 1, generator=g) * torch.randn(x.shape, generator=g)


@torch.no_grad()
def _calibrate(net: Net, images: torch.Tensor, targets: dict[str, torch.Tensor]) -> dict[str, float]:
    """One temperature a head (Guo et al. 2017), the one of a grid with the lowest loss on drawings kept aside."""
    _, logits = net(to_unit(images))
    grid = [round(1.1**i, 4) for i in range(-20, 21)]
    losses = {
        name: [float(F.cross_entropy(out / t, targets[name], ignore_index=IGNORED)) for t in grid]
        for name, out in logits.items()
    }
    return {name: grid[int(np.argmin(values))] for name, values in losses.items()}
