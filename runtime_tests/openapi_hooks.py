"""What schemathesis must know beside the schema to make requests that are good; loaded by its command line."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import strategies as st

WORDS = ["noto", "style", "woman", "man", "cook", "red", "hat", "older", "with"]
MAX_STEPS = 4

# prompts that the text encoder can read whole
schemathesis.openapi.format("obclip-prompt", st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join))


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """What the schema cannot say and its description does: candidates are sorted, integers have no decimal point, the
    hand-off is within the steps. Nothing else that is wrong is made right."""
    body = case.body
    if isinstance(body, dict):
        body = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in body.items()}
        candidates, steps, handoff = (body.get(name) for name in ("candidates", "steps", "handoff"))
        if isinstance(candidates, list) and all(isinstance(c, str) for c in candidates):
            body = {**body, "candidates": sorted(candidates)}
        if type(steps) is type(handoff) is int and 1 <= steps < handoff <= MAX_STEPS:
            body = {**body, "handoff": steps}
        case.body = body
