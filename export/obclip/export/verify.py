"""Verification: each exported part against PyTorch on seeded inputs, and whether the UNet still listens to its text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from obclip.core.errors import VerificationError
from obclip.export.components import Part

# PSNR in dB below which an export fails. float16 weights round at 2^-11: what they do alone is near 60 to 70 dB.
FLOORS_DB = {"fp32": 80.0, "fp16": 45.0}
CONDITIONING_TOLERANCE = 0.05
CASES = ((1, 1.0, 1), (2, 1.0, 2), (1, 0.5, 3))  # batch, size relative to the default, seed


def verify_part(part: Part, path: Path, weights: str, floor_db: float | None = None) -> dict[str, Any]:
    """Worst PSNR (peak: the reference's range), largest absolute error, lowest cosine over `CASES`.

    VerificationError if the worst PSNR is below the floor.
    """
    session = _session(path)
    results = [compare(part, session, *case) for case in CASES]
    psnr = min(r["psnr_db"] for r in results)
    floor = FLOORS_DB[weights] if floor_db is None else floor_db
    if not psnr >= floor:
        raise VerificationError(
            f"{part.name}: {psnr:.1f} dB between ONNX and PyTorch, wanted {floor:.0f} or more; nothing is kept"
        )
    return {
        "psnr_db": round(psnr, 2),
        "max_abs": float(f"{max(r['max_abs'] for r in results):.3g}"),
        "cosine": round(min(r["cosine"] for r in results), 8),
        "seeds": [seed for _, _, seed in CASES],
        "floor_db": floor,
    }


def compare(part: Part, session: ort.InferenceSession, batch: int, scale: float, seed: int) -> dict[str, float]:
    inputs = part.inputs(batch, scale, seed)
    with torch.no_grad():
        expected = part.module(**inputs)
    references = expected if isinstance(expected, tuple) else (expected,)
    outputs = session.run(list(part.outputs), {k: v.numpy() for k, v in inputs.items()})
    pairs = [(r.numpy().astype(np.float64), o.astype(np.float64)) for r, o in zip(references, outputs, strict=True)]
    if any(r.shape != o.shape for r, o in pairs):
        raise VerificationError(f"{part.name}: the exported model's output has another shape than PyTorch's")
    return {
        "psnr_db": min(psnr_db(r, o) for r, o in pairs),
        "max_abs": max(float(np.abs(r - o).max()) for r, o in pairs),
        "cosine": min(float((r * o).sum() / (np.linalg.norm(r) * np.linalg.norm(o) + 1e-30)) for r, o in pairs),
    }


def psnr_db(reference: np.ndarray, output: np.ndarray) -> float:
    """Peak signal-to-noise ratio; the peak is the reference's own range. At most 200; NaN output gives -inf."""
    mse = float(np.mean((reference - output) ** 2))
    if not np.isfinite(mse):
        return float("-inf")
    peak = float(reference.max() - reference.min())
    return min(200.0, 20 * np.log10(peak / np.sqrt(mse))) if mse > 0 and peak > 0 else 200.0


def verify_conditioning(part: Part, path: Path) -> float:
    """The exported UNet's response to a change of text, relative to PyTorch's; 1.0 is the same.

    A quantised UNet can keep its PSNR and go deaf to the prompt. VerificationError if more than 5 % is lost or gained.
    """
    session = _session(path)
    one, other = part.inputs(1, 1.0, 5), part.inputs(1, 1.0, 5)
    other["encoder_hidden_states"] = part.inputs(1, 1.0, 6)["encoder_hidden_states"]
    with torch.no_grad():
        wanted = float(torch.linalg.vector_norm(part.module(**one) - part.module(**other)))
    a, b = (session.run(None, {k: v.numpy() for k, v in inputs.items()})[0] for inputs in (one, other))
    ratio = float(np.linalg.norm(a - b)) / max(wanted, 1e-12)
    if not abs(ratio - 1) <= CONDITIONING_TOLERANCE:
        raise VerificationError(
            f"unet: its response to the text is {ratio:.3f} of PyTorch's, wanted 1 within {CONDITIONING_TOLERANCE:.0%}"
        )
    return round(ratio, 5)


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
