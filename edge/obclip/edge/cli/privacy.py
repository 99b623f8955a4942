"""`obclip candidates` and `obclip audit`: what would leave the device."""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from obclip.core.errors import ObclipError, PrivacyError
from obclip.core.pairs import load_pair
from obclip.edge.cli.output import Json, console, emit
from obclip.edge.oblivious import CandidateSet, Options, Policy, candidate_set, load_policy

PolicyName = Annotated[
    str | None, typer.Option(help="default, emoji, sensitive, world, or a policy file; by default the pair's.")
]
PairName = Annotated[str, typer.Option(help="A shipped pair, or a pair file.")]

Allow = Annotated[list[str] | None, typer.Option(help="A word or span to let through as it is; may be repeated.")]
Protect = Annotated[list[str] | None, typer.Option(help="'Alice|Bob|Carol': hide Alice among these; may be repeated.")]
Tie = Annotated[bool, typer.Option("--tie", help="Move the values of several people together: fewer candidates.")]
Pad = Annotated[int | None, typer.Option(help="Send exactly this many prompts, so that sizes say nothing.")]
Hide = Annotated[list[str] | None, typer.Option(help="An attribute to hide even where the prompt does not say it.")]


def make_options(
    allow: list[str] | None, protect: list[str] | None, tie: bool, pad: int | None, hide: list[str] | None
) -> Options:
    return Options(tuple(allow or ()), tuple(protect or ()), tie, pad, tuple(hide or ()))


def candidates(
    prompt: Annotated[str, typer.Argument(help="The prompt, or - to read one a line from stdin.")],
    pair: PairName = "emoji",
    policy: PolicyName = None,
    allow: Allow = None,
    protect: Protect = None,
    tie: Tie = False,
    pad: Pad = None,
    hide: Hide = None,
    as_json: Json = False,
) -> None:
    """Show the candidate prompts that would be sent for a prompt."""
    rules, options = load_policy(policy or load_pair(pair).policy), make_options(allow, protect, tie, pad, hide)
    if prompt == "-":
        for line in sys.stdin:
            emit(_line(line.rstrip("\n"), rules, options))
        return
    found = candidate_set(prompt, rules, options)
    if as_json:
        emit(_as_dict(prompt, found))
    else:
        show_candidates(found)


def _line(prompt: str, rules: Policy, options: Options) -> dict[str, Any]:
    try:
        return _as_dict(prompt, candidate_set(prompt, rules, options))
    except ObclipError as error:
        return {"prompt": prompt, "refused": str(error), "type": type(error).__name__}


def _as_dict(prompt: str, found: CandidateSet) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "candidates": list(found.prompts),
        "index": found.index,
        "attributes": found.attributes,
        "public": list(found.public),
        "unsent": list(found.unsent),
    }


def show_candidates(found: CandidateSet) -> None:
    out = console()
    n = len(found.prompts)
    title = _leaving(n, found.attributes)
    table = Table("", "candidate", title=f"{title}; the mark does not" if n > 1 else title)
    for i, text in enumerate(found.prompts):
        table.add_row("*" if i == found.index else "", Text(text))
    out.print(table)
    if found.attributes:
        out.print("hidden: " + ", ".join(f"{k} ({v})" for k, v in found.attributes.items()))
    for note in found.public:
        out.print(f"public: {note}")
    for word in found.unsent:
        out.print(f"not sent: {word} (the policy has no value for it; this device keeps it)")


def _leaving(count: int, hidden: Collection[str]) -> str:
    """What `generate` does with such a set."""
    if not hidden:
        return "generate refuses this prompt, in which nothing is hidden; with --allow-public this is what leaves"
    return f"{count} prompts leave the device" if count > 1 else "1 prompt leaves the device"


def audit(
    prompt: Annotated[str, typer.Argument(help="The prompt to examine.")],
    pair: PairName = "emoji",
    policy: PolicyName = None,
    allow: Allow = None,
    protect: Protect = None,
    tie: Tie = False,
    pad: Pad = None,
    hide: Hide = None,
    language_model: Annotated[
        str | None, typer.Option(help="A masked or causal language model (folder or hub id) as a second adversary.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what leaves the device, whether it tells the candidates apart, and what its other words give away."""
    from obclip.edge.audit import audit as examine

    options = make_options(allow, protect, tie, pad, hide)
    report = examine(prompt, policy, pair=pair, options=options)
    if not report.requests_equal:
        raise PrivacyError(
            "the candidates of this prompt do not all make the same request; this is a defect, report it"
        )
    said = report.as_dict()
    if language_model:
        from obclip.edge.audit.language_model import LanguageModel

        rules = load_policy(policy or load_pair(pair).policy)
        judged = LanguageModel.load(language_model).posterior(candidate_set(prompt, rules, options), "uniform")
        said["language_model"] = {"name": language_model, "top1": judged.top1, "effective_n": judged.effective_n}
    if as_json:
        emit(said)
        return
    out = console()
    n = report.candidates
    out.print(_leaving(n, report.hidden) + (", all making the same request byte for byte:" if n > 1 else ":"))
    for text in report.prompts:
        out.print(f"  {text}")
    out.print(f"hidden: {', '.join(report.hidden) or 'nothing'}")
    for note in report.public:
        out.print(f"public: {note}")
    if not report.hidden:
        return
    out.print(
        f"what the other words say: the best guess is right with chance {report.posterior.top1:.2f} "
        f"(1/{n} = {1 / n:.2f} without them); effective N is {report.effective_n:.2f} of {n}"
    )
    for label, words in report.words.items():
        for word in words[:3]:
            out.print(f"  {label}: {word.text!r} speaks for {word.value} ({word.share:.0%} of the evidence)")
    if language_model:
        out.print(f"{language_model}: top-1 {judged.top1:.2f}, effective N {judged.effective_n:.2f}")
    for suggestion in report.suggestions:
        out.print(f"drop {suggestion.drop!r}: effective N {suggestion.effective_n:.2f}")
