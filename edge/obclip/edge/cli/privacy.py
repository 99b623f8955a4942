"""`obclip candidates` and `obclip audit`: what would leave the device."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from obclip.core.errors import ObclipError, PrivacyError
from obclip.core.pairs import load_pair
from obclip.core.wire import Request
from obclip.edge.cli.output import Json, console, emit
from obclip.edge.oblivious import CandidateSet, Policy, candidate_set, load_policy

PolicyName = Annotated[str | None, typer.Option(help="default, emoji, or a policy file; by default the pair's.")]
PairName = Annotated[str, typer.Option(help="A shipped pair, or a pair file.")]


def candidates(
    prompt: Annotated[str, typer.Argument(help="The prompt, or - to read one a line from stdin.")],
    pair: PairName = "emoji",
    policy: PolicyName = None,
    as_json: Json = False,
) -> None:
    """Show the candidate prompts that would be sent for a prompt."""
    rules = load_policy(policy or load_pair(pair).policy)
    if prompt == "-":
        for line in sys.stdin:
            emit(_line(line.rstrip("\n"), rules))
        return
    found = candidate_set(prompt, rules)
    if as_json:
        emit(_as_dict(prompt, found))
    else:
        show_candidates(found)


def _line(prompt: str, rules: Policy) -> dict[str, Any]:
    try:
        return _as_dict(prompt, candidate_set(prompt, rules))
    except ObclipError as error:
        return {"prompt": prompt, "refused": str(error), "type": type(error).__name__}


def _as_dict(prompt: str, found: CandidateSet) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "candidates": list(found.prompts),
        "index": found.index,
        "attributes": found.attributes,
        "public": list(found.public),
    }


def show_candidates(found: CandidateSet) -> None:
    out = console()
    n = len(found.prompts)
    title = f"{n} prompts leave the device; the mark does not" if n > 1 else "this prompt leaves as it is, if at all"
    table = Table("", "candidate", title=title)
    for i, text in enumerate(found.prompts):
        table.add_row("*" if i == found.index else "", Text(text))
    out.print(table)
    if found.attributes:
        out.print("hidden: " + ", ".join(f"{k} ({v})" for k, v in found.attributes.items()))
    for note in found.public:
        out.print(f"public: {note}")


def audit(
    prompt: Annotated[str, typer.Argument(help="The prompt to examine.")],
    pair: PairName = "emoji",
    policy: PolicyName = None,
    as_json: Json = False,
) -> None:
    """Check that every candidate of a prompt makes the same request bytes, and say what stays public."""
    settings = load_pair(pair)
    rules = load_policy(policy or settings.policy)
    found = candidate_set(prompt, rules)

    def request_bytes(text: str) -> bytes:
        return Request(
            pair=settings.digest, candidates=candidate_set(text, rules).prompts, negative_prompt="", seed=0,
            height=settings.height, width=settings.width, steps=settings.steps, handoff=settings.handoff,
            guidance=settings.guidance, solver=settings.solver,
        ).encode()  # fmt: skip

    distinct = len({request_bytes(text) for text in (prompt, *found.prompts)})
    if distinct != 1:
        raise PrivacyError(
            "the candidates of this prompt do not all make the same request; this is a defect, report it"
        )
    said = {
        "candidates": len(found.prompts),
        "attributes_hidden": sorted(found.attributes),
        "requests_equal": True,
        "guess_without_prior": 1 / len(found.prompts),
        "public": [*found.public, "which attributes the prompt mentions", "every other word of the prompt"],
        "not_measured": ["what the other words give away about the hidden ones"],
    }
    if as_json:
        emit(said)
        return
    out = console()
    out.print(f"{len(found.prompts)} candidates, all making the same request byte for byte")
    out.print(f"hidden: {', '.join(sorted(found.attributes)) or 'nothing'}")
    out.print(f"a cloud without prior knowledge guesses right with chance 1/{len(found.prompts)}")
    for note in said["public"]:  # type: ignore[attr-defined]
        out.print(f"public: {note}")
    out.print("not measured yet: what the other words give away about the hidden ones")
