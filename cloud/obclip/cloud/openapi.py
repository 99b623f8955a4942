"""The service's description in OpenAPI 3.1, built from the constants that its checks use."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from obclip.core.noise import SEED_LIMIT
from obclip.core.problems import KINDS, Problem
from obclip.core.problems import MEDIA_TYPE as PROBLEM_TYPE
from obclip.core.wire import CAPABILITIES_PATH, DENOISE_PATH, MAX_PROMPT_CHARS, MEDIA_TYPE, PROTOCOL, Capabilities

_DIGEST = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_OF_DENOISE = tuple(k for k in KINDS if k not in ("not-found", "method-not-allowed", "unauthorized", "forbidden"))
_WAITS = (429, 503)


def document(offer: Capabilities, guarded: bool, metrics_here: bool = True) -> bytes:
    """JSON. guarded: whether a key or token is wanted. metrics_here: whether /metrics is at this port."""
    keyed: tuple[str, ...] = ("unauthorized", "forbidden") if guarded else ()
    security: list[dict[str, list[str]]] = [{"key": []}] if guarded else []
    paths: dict[str, Any] = {
        DENOISE_PATH: {
            "post": {
                "operationId": "denoise",
                "summary": "The first steps for all candidates, from one noise, in one answer",
                "description": "Same request, same bytes. There is no way to ask for fewer than all latents: ranges "
                "are ignored. What schemas cannot say gives 422 too: candidates are sorted by code point, integers "
                "have no decimal point, handoff is at most steps, prompts fit into the text encoder, and a solver may "
                "take fewer steps.",
                "security": security,
                "requestBody": {
                    "required": True,
                    "content": _json(_ref("Request")),
                },
                "responses": {
                    "200": {
                        "description": "A safetensors file: latents, float16 [N, channels, height, width], and x0 if "
                        "wanted; step, schedule and model in its metadata",
                        "content": {MEDIA_TYPE: {}},
                    },
                    **_problems(*keyed, *_OF_DENOISE),
                },
            }
        },
        CAPABILITIES_PATH: _get(
            "capabilities", "What this server offers", _json(_ref("Capabilities")), security, keyed
        ),
        "/v1/openapi.json": _get("openapi", "This document", _json({"type": "object"}), security, keyed),
        "/healthz": _get("health", "Whether the process works", _json(_word("ok")), [], ("engine-dead",)),
        "/readyz": _get("ready", "Whether requests are taken", _json(_word("ready")), [], ("draining", "engine-dead")),
    }
    if metrics_here:
        paths["/metrics"] = _get(
            "metrics", "Prometheus metrics", {"text/plain": {"schema": {"type": "string"}}}, security, keyed
        )
    components: dict[str, Any] = {
        "schemas": {"Request": _request(offer), "Capabilities": _capabilities(), "Problem": _problem()}
    }
    if guarded:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    body = {
        "openapi": "3.1.0",
        "info": {"title": "ObCLIP cloud", "version": offer.version},
        "paths": paths,
        "components": components,
    }
    return json.dumps(body, sort_keys=True).encode()


def _get(
    name: str, summary: str, content: dict[str, Any], security: list[dict[str, list[str]]], kinds: tuple[str, ...]
) -> dict[str, Any]:
    responses = {"200": {"description": summary, "content": content}, **_problems(*kinds, "internal")}
    return {"get": {"operationId": name, "summary": summary, "security": security, "responses": responses}}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _problems(*kinds: str) -> dict[str, Any]:
    """A response for every status that `kinds` have, and the kinds that it can be."""
    responses: dict[str, Any] = {}
    for status in sorted({KINDS[k][0] for k in kinds}):
        some = [Problem.of(k, "") for k in kinds if KINDS[k][0] == status]
        schema = {
            "allOf": [
                _ref("Problem"),
                {"properties": {"type": {"enum": [p.type for p in some]}, "status": {"const": status}}},
            ]
        }
        response: dict[str, Any] = {
            "description": "; ".join(p.title for p in some),
            "content": {PROBLEM_TYPE: {"schema": schema}},
        }
        if status in _WAITS:
            wait = {"type": "integer", "minimum": 1}
            response["headers"] = {
                "Retry-After": {
                    "required": True,
                    "description": "Seconds until it is worth trying again",
                    "schema": wait,
                }
            }
        responses[str(status)] = response
    return responses


def _request(offer: Capabilities) -> dict[str, Any]:
    prompt = {
        "type": "string",
        "maxLength": MAX_PROMPT_CHARS,
        "format": "obclip-prompt",
        "description": f"at most {offer.max_tokens} tokens of the text encoder",
    }
    properties = {
        "protocol": {"const": PROTOCOL},
        "pair": {**_DIGEST, "const": offer.pair, "description": "digest of the pair; another one gives 409"},
        "candidates": {
            "type": "array",
            "items": prompt,
            "minItems": 1,
            "maxItems": offer.max_candidates,
            "uniqueItems": True,
            "description": "sorted by code point",
        },
        "negative_prompt": prompt,
        "seed": {"type": "integer", "minimum": 0, "maximum": SEED_LIMIT - 1},
        "height": {"const": offer.height},
        "width": {"const": offer.width},
        "steps": {"type": "integer", "minimum": 1, "maximum": offer.max_steps},
        "handoff": {"type": "integer", "minimum": 1, "maximum": offer.max_steps, "description": "at most steps"},
        "guidance": {"type": "number", "minimum": 0, "maximum": 100},
        "solver": {"enum": list(offer.solvers)},
        "want_x0": {"type": "boolean"},
    }
    return {"type": "object", "properties": properties, "required": sorted(properties), "additionalProperties": False}


def _capabilities() -> dict[str, Any]:
    kinds = {
        "str": {"type": "string"},
        "int": {"type": "integer"},
        "tuple[str, ...]": {"type": "array", "items": {"type": "string"}},
        "dict[str, Any]": {"type": "object"},
    }
    properties: dict[str, Any] = {f.name: kinds[str(f.type)] for f in fields(Capabilities)}
    properties |= {"protocol": {"const": PROTOCOL}, "pair": _DIGEST, "model": _DIGEST}
    return {"type": "object", "properties": properties, "required": sorted(properties)}


def _problem() -> dict[str, Any]:
    """RFC 9457, as this server writes it."""
    return {
        "type": "object",
        "properties": {
            "type": {"type": "string", "format": "uri", "enum": [Problem.of(k, "").type for k in KINDS]},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
        },
        "required": ["type", "title", "status", "detail"],
    }


def _word(word: str) -> dict[str, Any]:
    properties = {"status": {"const": word}}
    return {"type": "object", "properties": properties, "required": ["status"], "additionalProperties": False}
