"""HE-Diffusion as its authors published it, on a pair's cloud model: the solver's update runs on ciphertexts.

Each step the client encrypts the latents, the server adds to a multiple of the ciphertext what it knows in the clear,
the client decrypts. The UNet and the prompt stay in the clear (their `enc_c` is commented out), so the server reads
both the prompt and every latent: from whoever runs the UNet nothing is hidden.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from obclip.cloud.denoising import Denoising
from obclip.cloud.engine import run_step
from obclip.cloud.model import CloudModel
from obclip.cloud.plan import Step, plain_plan
from obclip.core.pairs import Pair

from ..server_fidelity import request_for

PYTHON = Path(".venv-crypto/bin/python")
_SCRIPT = Path(__file__).parents[1] / "crypto" / "he.py"


class Encryption:
    """The client and the encrypted half of the server, in a process that has TenSEAL. seconds: of each part, so far."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._process = subprocess.Popen(
            [str(PYTHON), str(_SCRIPT), "steps"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.seconds = {"encrypt_s": 0.0, "update_s": 0.0, "decrypt_s": 0.0}
        self.sent_bytes = self.updates = 0
        self._write(json.dumps({"shape": shape}).encode() + b"\n")

    def update(self, a: float, x: np.ndarray, plain: np.ndarray) -> np.ndarray:
        """a x + plain, of which x is encrypted; float32."""
        self._write(f"{a!r}\n".encode() + x.astype(np.float32).tobytes() + plain.astype(np.float32).tobytes())
        assert self._process.stdout is not None
        said: dict[str, Any] = json.loads(self._process.stdout.readline())
        for name in self.seconds:
            self.seconds[name] += said[name]
        self.sent_bytes, self.updates = self.sent_bytes + said["ciphertext_bytes"], self.updates + 1
        return np.frombuffer(self._process.stdout.read(4 * x.size), np.float32).reshape(x.shape)

    def close(self) -> None:
        self._process.communicate(timeout=60)

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        self._process.stdin.flush()


class EncryptedDenoising(Denoising):
    encryption: Encryption

    def advance(self, step: Step) -> None:
        """As Denoising's; x_after = a x + (what the server knows), with the multiple of x done on a ciphertext."""
        before, first = self.x, self.x0 is None
        super().advance(step)
        c = self.schedule.row(step.index, first_order=first)
        a = float(c[0] + c[1] * self.schedule.to_x0[step.index][0])
        rows = [
            self.encryption.update(a, x.cpu().numpy(), (after - a * x).cpu().numpy())
            for x, after in zip(before, self.x, strict=True)
        ]
        self.x = torch.from_numpy(np.stack(rows)).to(self.x.device)


@torch.inference_mode()
def encrypted_latents(
    model: CloudModel, pair: Pair, prompt: str, seed: int, told: list[Encryption] | None = None
) -> Any:
    """float16 [1, 4, h, w] after all steps. told: gets the encryption, with what it took."""
    request = request_for(pair, [prompt], pair.steps, seed)
    state = EncryptedDenoising(model, pair, request, plain_plan(request, 64, model.guidance_distilled))
    state.encryption = Encryption(pair.latent_shape)
    try:
        for step in state.plan.steps:
            run_step(state, step)
    finally:
        state.encryption.close()
    if told is not None:
        told.append(state.encryption)
    return state.response().latents
