"""Problem documents (RFC 9457): what the cloud answers when it does not answer with latents."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

MEDIA_TYPE = "application/problem+json"
_BASE = "https://obclip.dev/problems/"
_ELSEWHERE = "about:blank"  # RFC 9457 section 4.2.1: says no more than the status does

# slug -> (HTTP status, title); the type URI is the stable part
KINDS: dict[str, tuple[int, str]] = {
    "invalid-request": (422, "The request is not valid"),
    "prompt-too-long": (422, "A prompt is longer than the model's text encoder takes"),
    "too-many-candidates": (422, "More candidates than this server takes"),
    "pair-mismatch": (409, "This server runs another pair"),
    "body-timeout": (408, "The request body did not arrive in time"),
    "body-too-large": (413, "The request body is too large"),
    "unsupported-media-type": (415, "The request body is not JSON"),
    "unauthorized": (401, "A valid token is needed"),
    "forbidden": (403, "This key is not for this address"),
    "not-found": (404, "There is nothing at this address"),
    "method-not-allowed": (405, "This address does not take that method"),
    "rate-limited": (429, "This key has used what it may for now"),
    "overloaded": (429, "The server has as many rows in work as it takes"),
    "draining": (503, "The server is starting or shutting down"),
    "engine-dead": (503, "The server's device failed, and the server is being started anew"),
    "queue-timeout": (504, "The request waited too long for its turn"),
    "service-timeout": (504, "The request took too long"),
    "not-finite": (500, "The model produced numbers that are not finite"),
    "out-of-memory": (500, "The request did not fit into memory beside others"),
    "internal": (500, "The server failed"),
}


@dataclass(frozen=True)
class Problem:
    """One problem document. `detail` never repeats a prompt."""

    type: str
    title: str
    status: int
    detail: str

    @classmethod
    def of(cls, slug: str, detail: str) -> Problem:
        status, title = KINDS[slug]
        return cls(_BASE + slug, title, status, detail)

    @property
    def slug(self) -> str:
        return self.type.removeprefix(_BASE)

    @property
    def from_elsewhere(self) -> bool:
        """Whether something on the way answered, a proxy say, and not the server itself."""
        return self.type == _ELSEWHERE

    def encode(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def decode(cls, body: bytes, status: int) -> Problem:
        """Read a problem document; anything else becomes one `from_elsewhere` that quotes the HTTP status."""
        try:
            values = json.loads(body)
            return cls(str(values["type"]), str(values["title"]), status, str(values.get("detail", "")))
        except (ValueError, KeyError, TypeError, RecursionError):
            return cls(_ELSEWHERE, f"HTTP status {status}", status, "the answer is not a problem document")
