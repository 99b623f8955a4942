"""Verification: each exported part against PyTorch on seeded inputs, and whether the UNet still listens to its text.

In two halves, so that the PyTorch model is gone before ONNX Runtime loads the exported one: `reference` and `check`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from obclip.core.errors import VerificationError
from obclip.export.components import Inputs, Part
from obclip.export.sessions import cpu_session

# PSNR in dB below which an export fails. float16 weights round at 2^-11: what they do alone is near 60 to 70 dB.
FLOORS_DB = {"fp32": 80.0, "fp16": 45.0}
CONDITIONING_TOLERANCE = 0.05
CASES = ((1, 1.0, 1), (2, 0.5, 2), (1, 0.5, 3))  # batch, size relative to the default, seed
# The two texts that the UNet must tell apart are compared on inputs of half the size
_TEXT_CASE = (1, 0.5, 5)
_MAP_ABOVE_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Case:
    """PyTorch's outputs on seeded inputs."""

    seed: int
    inputs: dict[str, NDArray[Any]]
    outputs: tuple[NDArray[Any], ...]


@dataclass(frozen=True)
class Reference:
    """What a part gives in PyTorch. texts: of a UNet, two cases that differ in their text alone."""

    part: str
    outputs: tuple[str, ...]
    cases: tuple[Case, ...]
    texts: tuple[Case, ...] = ()


def reference(part: Part) -> Reference:
    """Run `CASES` (and two texts, of a UNet) through PyTorch."""
    cases = tuple(_run(part, part.inputs(*case), case[2]) for case in CASES)
    texts: tuple[Case, ...] = ()
    if part.name == "unet":
        batch, scale, seed = _TEXT_CASE
        one, other = part.inputs(batch, scale, seed), part.inputs(batch, scale, seed)
        other["encoder_hidden_states"] = part.inputs(batch, scale, seed + 1)["encoder_hidden_states"]
        texts = (_run(part, one, seed), _run(part, other, seed))
    return Reference(part.name, part.outputs, cases, texts)


def check(reference: Reference, path: Path, weights: str, floor_db: float | None = None) -> dict[str, Any]:
    """Worst PSNR (peak: the reference's range), largest absolute error, lowest cosine over the reference's cases.

    Of a UNet also "conditioning": its response to a change of text, relative to PyTorch's. VerificationError if the
    worst PSNR is below the floor, or more than 5 % of the response is lost or gained.
    """
    session = _session(path)
    results = [compare(reference.part, reference.outputs, case, session) for case in reference.cases]
    psnr = min(r["psnr_db"] for r in results)
    floor = FLOORS_DB[weights] if floor_db is None else floor_db
    if not psnr >= floor:
        raise VerificationError(
            f"{reference.part}: {psnr:.1f} dB between ONNX and PyTorch, wanted {floor:.0f} or more; nothing is kept"
        )
    found = {
        "psnr_db": round(psnr, 2),
        "max_abs": float(f"{max(r['max_abs'] for r in results):.3g}"),
        "cosine": round(min(r["cosine"] for r in results), 8),
        "seeds": [case.seed for case in reference.cases],
        "floor_db": floor,
    }
    if reference.texts:
        found["conditioning"] = _conditioning(reference.texts, session)
    return found


def compare(part: str, names: tuple[str, ...], case: Case, session: ort.InferenceSession) -> dict[str, float]:
    outputs = session.run(list(names), case.inputs)
    pairs = [(r.astype(np.float64), o.astype(np.float64)) for r, o in zip(case.outputs, outputs, strict=True)]
    if any(r.shape != o.shape for r, o in pairs):
        raise VerificationError(f"{part}: the exported model's output has another shape than PyTorch's")
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
    return min(200.0, float(20 * np.log10(peak / np.sqrt(mse)))) if mse > 0 and peak > 0 else 200.0


def _conditioning(texts: tuple[Case, ...], session: ort.InferenceSession) -> float:
    """A quantised UNet can keep its PSNR and go deaf to the prompt; 1.0 means that nothing of its hearing was lost."""
    wanted = float(np.linalg.norm(texts[0].outputs[0] - texts[1].outputs[0]))
    a, b = (session.run(None, case.inputs)[0] for case in texts)
    ratio = float(np.linalg.norm(a - b)) / max(wanted, 1e-12)
    if not abs(ratio - 1) <= CONDITIONING_TOLERANCE:
        raise VerificationError(
            f"unet: its response to the text is {ratio:.3f} of PyTorch's, wanted 1 within {CONDITIONING_TOLERANCE:.0%}"
        )
    return round(ratio, 5)


def _run(part: Part, inputs: Inputs, seed: int) -> Case:
    with torch.no_grad():
        expected = part.module(**inputs)
    outputs = expected if isinstance(expected, tuple) else (expected,)
    return Case(seed, {k: v.numpy() for k, v in inputs.items()}, tuple(o.numpy() for o in outputs))


def _session(path: Path) -> ort.InferenceSession:
    data = path.with_name(path.name + "_data")
    if data.is_file() and data.stat().st_size > _MAP_ABOVE_BYTES:
        # Large weights stay mapped from their file: slower, at a third of the memory
        return cpu_session(path, arena=False, settings={"session.disable_prepacking": "1"})
    return cpu_session(path)
