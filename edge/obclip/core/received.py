"""What the cloud sent, on disk: all N latents and the request they answer, so that finishing can be repeated.

The file holds what has crossed the wire and nothing else: it does not tell which candidate is meant.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from obclip.core.errors import InputError, ObclipError
from obclip.core.files import atomic_write_bytes
from obclip.core.pairs import load_pair, shipped_pairs
from obclip.core.wire import PROTOCOL, Request, Response


@dataclass(frozen=True)
class Received:
    """A request and the cloud's answer to it."""

    request: Request
    response: Response

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all: `latents` (and `x0`) F16 [N, 4, h, w], the request as JSON in
        its metadata. RunError if it cannot be written."""
        r = self.response
        tensors = {"latents": r.latents} | ({} if r.x0 is None else {"x0": r.x0})
        metadata = {
            "protocol": str(PROTOCOL), "step": str(r.step), "schedule": r.schedule, "model": r.model,
            "request": self.request.encode().decode(),
        }  # fmt: skip
        atomic_write_bytes(Path(path), save(tensors, metadata))

    @classmethod
    def load(cls, path: str | Path) -> Received:
        """InputError unless the file is one that `save` wrote, and its latents answer its request."""
        path = Path(path)
        try:
            body = path.read_bytes()
            with safe_open(path, "numpy") as file:
                metadata = dict(file.metadata() or {})
                shape = tuple(file.get_slice("latents").get_shape())
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror or error})") from error
        except SafetensorError as error:
            raise InputError(f"{path} holds no latents ({error}); --save-latents writes such a file") from error
        if "request" not in metadata or len(shape) != 4:
            raise InputError(f"{path} does not say what its latents answer; --save-latents writes such a file")
        try:
            request = Request.decode(metadata["request"].encode())
            return cls(request, Response.decode(body, request, (shape[1], shape[2], shape[3])))
        except ObclipError as error:
            raise InputError(f"{path} is damaged: {error}") from error

    def about(self) -> dict[str, Any]:
        """What was asked for, in numbers and names. No text: behind mode "hybrid" the one candidate is the prompt."""
        r = self.request
        names = {load_pair(name).digest: name for name in shipped_pairs()}
        return {
            "latents": list(self.response.latents.shape),
            "step": self.response.step,
            "candidates": len(r.candidates),
            "pair": names.get(r.pair, r.pair),
            "seed": r.seed,
            "steps": r.steps,
            "handoff": r.handoff,
            "guidance": r.guidance,
            "solver": r.solver,
            "cloud_model": self.response.model,
        }


def is_safetensors(path: Path) -> bool:
    """Whether the file begins as one: eight bytes of length, then JSON. Whether it is whole, `Received.load` says."""
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError:
        return False


def differences(one: Request, other: Request) -> list[str]:
    """What differs, by name; of the candidates their number, for they are long."""
    mine, theirs = asdict(one), asdict(other)
    names = [name for name in mine if json.dumps(mine[name]) != json.dumps(theirs[name])]
    return [name if name == "candidates" else f"{name} ({mine[name]!r}, not {theirs[name]!r})" for name in names]
