"""The wire, version 1: a JSON request, a safetensors response, and what a server says about itself.

Every byte of a request is a function of the candidate set and the settings; none depends on which candidate is meant.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from obclip.core.errors import CloudMismatchError, CloudResponseError, InputError
from obclip.core.noise import check_seed
from obclip.core.schedule import SOLVERS

PROTOCOL = 1
MEDIA_TYPE = "application/vnd.obclip.latents+safetensors"
DENOISE_PATH = "/v1/denoise"
CAPABILITIES_PATH = "/v1/capabilities"
MAX_PROMPT_CHARS = 1000
MAX_SIDE_PX = 4096
MAX_STEPS = 1000

Float16 = NDArray[np.float16]


@dataclass(frozen=True)
class Request:
    """Denoise `candidates` from one noise, drawn from `seed`, through steps 0..handoff-1 of `steps`.

    pair: digest of the pair. candidates: sorted and unique. height, width: pixels. want_x0: also return the x0 of the
    last step. InputError, on creation, for anything out of range.
    """

    pair: str
    candidates: tuple[str, ...]
    negative_prompt: str
    seed: int
    height: int
    width: int
    steps: int
    handoff: int
    guidance: float
    solver: str
    want_x0: bool = False

    def __post_init__(self) -> None:
        _digest("pair", self.pair)
        if not isinstance(self.candidates, tuple) or not self.candidates:
            raise InputError("candidates must be a non-empty list of prompts")
        for prompt in self.candidates:
            _text("a candidate", prompt)
        if list(self.candidates) != sorted(set(self.candidates)):
            raise InputError("candidates must be sorted and free of duplicates")
        _text("negative_prompt", self.negative_prompt)
        check_seed(self.seed)
        _integer("height", self.height, 8, MAX_SIDE_PX)
        _integer("width", self.width, 8, MAX_SIDE_PX)
        _integer("steps", self.steps, 1, MAX_STEPS)
        _integer("handoff", self.handoff, 1, self.steps)
        if isinstance(self.guidance, bool) or not isinstance(self.guidance, float) or not 0 <= self.guidance <= 100:
            raise InputError(f"guidance is {self.guidance!r}; it must be a finite number from 0 to 100")
        if self.solver not in SOLVERS:
            raise InputError(f"solver is {self.solver!r}; choose one of {', '.join(SOLVERS)}")
        if not isinstance(self.want_x0, bool):
            raise InputError(f"want_x0 is {self.want_x0!r}; it must be true or false")

    def encode(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces, UTF-8. Equal requests are equal bytes."""
        body = {"protocol": PROTOCOL, **asdict(self)}
        return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    @classmethod
    def decode(cls, body: bytes) -> Request:
        """InputError, saying which field and why, unless `body` is a request of this protocol."""
        values = _json_object(body)
        protocol = values.pop("protocol", None)
        if protocol != PROTOCOL or isinstance(protocol, bool):
            raise InputError(f"protocol is {protocol!r}; this server speaks {PROTOCOL}")
        names = {f.name for f in fields(cls)}
        if missing := sorted(names - values.keys()):
            raise InputError(f"the request lacks {', '.join(missing)}")
        if unknown := sorted(values.keys() - names):
            raise InputError(f"the request has fields that protocol {PROTOCOL} does not know: {len(unknown)}")
        if not isinstance(values["candidates"], list):
            raise InputError("candidates must be a list of prompts")
        values["candidates"] = tuple(values["candidates"])
        if isinstance(values["guidance"], int) and not isinstance(values["guidance"], bool):
            if not 0 <= values["guidance"] <= 100:
                raise InputError("guidance is out of range; it must be a finite number from 0 to 100")
            values["guidance"] = float(values["guidance"])
        return cls(**values)


@dataclass(frozen=True)
class Response:
    """latents: float16 [N, 4, h, w] before step `step`, variance-preserving; x0: the same shape, or None.

    schedule, model: digests of the schedule and of the cloud model's weights.
    """

    latents: Float16
    x0: Float16 | None
    step: int
    schedule: str
    model: str

    def encode(self) -> bytes:
        tensors = {"latents": self.latents} | ({} if self.x0 is None else {"x0": self.x0})
        metadata = {
            "protocol": str(PROTOCOL),
            "step": str(self.step),
            "schedule": self.schedule,
            "model": self.model,
        }
        return _canonical_header(save(tensors, metadata))

    @classmethod
    def decode(cls, body: bytes, request: Request, latent_shape: tuple[int, int, int]) -> Response:
        """Read and check the answer to `request`, all N rows alike, before anyone picks one of them.

        CloudResponseError unless it holds N finite float16 latents of `latent_shape` at step `request.handoff`.
        """
        try:
            tensors, metadata = load(body), _metadata(body)
        except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise CloudResponseError(f"the cloud's answer is not a safetensors file ({error}); try again") from error
        if metadata.get("protocol") != str(PROTOCOL):
            raise CloudResponseError(f"the answer's protocol is {metadata.get('protocol')!r}; wanted '{PROTOCOL}'")
        if metadata.get("step") != str(request.handoff):
            raise CloudResponseError(f"the answer is at step {metadata.get('step')!r}; wanted {request.handoff}")
        for key in ("schedule", "model"):
            if not _is_digest(metadata.get(key)):
                raise CloudResponseError(f"the answer does not name its {key} by a SHA-256 digest")
        shape = (len(request.candidates), *latent_shape)
        latents = _latents(tensors, "latents", shape)
        x0 = _latents(tensors, "x0", shape) if request.want_x0 else None
        return cls(latents, x0, request.handoff, metadata["schedule"], metadata["model"])


@dataclass(frozen=True)
class Capabilities:
    """What a server offers: one pair at one size. schedule_config: the model's scheduler settings."""

    protocol: int
    version: str
    pair_name: str
    pair: str
    model: str
    solvers: tuple[str, ...]
    schedule_config: dict[str, Any]
    height: int
    width: int
    latent_channels: int
    latent_downscale: int
    max_candidates: int
    max_steps: int
    max_tokens: int
    max_body_bytes: int

    def encode(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, body: bytes) -> Capabilities:
        """CloudMismatchError unless `body` is a capabilities document of this protocol."""
        try:
            values = _json_object(body)
        except InputError as error:
            raise CloudMismatchError(f"this address is no ObCLIP cloud: {error}") from error
        if values.get("protocol") != PROTOCOL:
            raise CloudMismatchError(
                f"the cloud speaks protocol {values.get('protocol')!r}; this device speaks {PROTOCOL}"
            )
        kinds: dict[str, type] = {"str": str, "int": int, "tuple[str, ...]": list, "dict[str, Any]": dict}
        for field in fields(cls):
            value, kind = values.get(field.name), kinds[str(field.type)]
            if not isinstance(value, kind) or isinstance(value, bool):
                raise CloudMismatchError(f"the cloud's capabilities are no good: {field.name} is not {kind.__name__}")
        if not all(isinstance(s, str) for s in values["solvers"]):
            raise CloudMismatchError("the cloud's capabilities are no good: solvers are not text")
        known = {f.name: values[f.name] for f in fields(cls)}
        return cls(**{**known, "solvers": tuple(known["solvers"])})


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        values = json.loads(body.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError(f"the body is not JSON ({type(error).__name__})") from error
    if not isinstance(values, dict):
        raise InputError("the body is not a JSON object")
    return values


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key appears twice")
    return values


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef")


def _digest(name: str, value: object) -> None:
    if not _is_digest(value):
        raise InputError(f"{name} must be a SHA-256 digest in hexadecimal")


def _text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise InputError(f"{name} must be text, not {type(value).__name__}")
    if len(value) > MAX_PROMPT_CHARS:
        raise InputError(f"{name} has {len(value)} characters; at most {MAX_PROMPT_CHARS} are taken")
    if any(0xD800 <= ord(c) < 0xE000 for c in value):
        raise InputError(f"{name} is not valid Unicode text")


def _integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InputError(f"{name} is {value!r}; it must be an integer from {low} to {high}")


def _latents(tensors: dict[str, NDArray[Any]], name: str, shape: tuple[int, ...]) -> Float16:
    value = tensors.get(name)
    if value is None:
        raise CloudResponseError(f"the answer lacks {name!r}")
    if value.dtype != np.float16 or value.shape != shape:
        raise CloudResponseError(
            f"the answer's {name} are {value.dtype} {list(value.shape)}; wanted float16 {list(shape)}"
        )
    if not math.isfinite(float(np.abs(value.astype(np.float32)).max())):
        raise CloudResponseError(f"the answer's {name} are not finite; nothing of it is used")
    return value


def _metadata(body: bytes) -> dict[str, str]:
    length = int.from_bytes(body[:8], "little")
    metadata = json.loads(body[8 : 8 + length]).get("__metadata__") or {}
    return {str(k): str(v) for k, v in metadata.items()}


def _canonical_header(body: bytes) -> bytes:
    """Sort the header's keys: the library's metadata order differs from run to run, and equal should mean equal."""
    length = int.from_bytes(body[:8], "little")
    header = json.dumps(json.loads(body[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + body[8 + length :]
