"""The audit of one prompt: what leaves the device, what its words give away, and what to change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

from obclip.core.pairs import Pair, load_pair
from obclip.core.wire import Request
from obclip.edge.audit.evidence import read_evidence
from obclip.edge.audit.model import AuditModel, Posterior, Prior, Word
from obclip.edge.audit.suggest import Suggestion, suggest
from obclip.edge.oblivious import CandidateSet, Options, Policy, candidate_set, load_policy

DIGITS = 4  # of the numbers in `as_dict`


@dataclass(frozen=True)
class AuditReport:
    """What the cloud learns from a prompt's candidate set. Equal for every prompt of the set.

    prompts: the set. hidden: labels of what differs between them. public: notes on what stays public. remainder: what
    they share, "_" for a slot. requests_equal: whether every one of them makes the same request, byte for byte.
    posterior: under the prior asked for; uniform, captions: under each of the two. suggestions: in order, each on top
    of the one before.
    """

    prompts: tuple[str, ...]
    hidden: tuple[str, ...]
    public: tuple[str, ...]
    remainder: str
    requests_equal: bool
    posterior: Posterior
    uniform: Posterior
    captions: Posterior
    suggestions: tuple[Suggestion, ...]

    @property
    def candidates(self) -> int:
        return len(self.prompts)

    @property
    def effective_n(self) -> float:
        return self.posterior.effective_n

    @property
    def words(self) -> Mapping[str, tuple[Word, ...]]:
        """Hidden label -> the words that speak about it, loudest first."""
        return self.posterior.words

    def as_dict(self) -> dict[str, Any]:
        """Plain lists, dictionaries, strings and numbers, for JSON."""
        said: dict[str, Any] = {
            "candidates": self.candidates,
            "attributes_hidden": list(self.hidden),
            "requests_equal": self.requests_equal,
            "guess_without_words": 1 / self.candidates,
            **_numbers(self.posterior),
            "prior": self.posterior.prior,
            "under": {p.prior: _numbers(p) for p in (self.uniform, self.captions)},
            "attributes": self.posterior.attributes,
            "probabilities": dict(zip(self.prompts, self.posterior.probabilities, strict=True)),
            "words": {label: [asdict(w) for w in words] for label, words in self.words.items()},
            "not_known": list(self.posterior.unknown),
            "remainder": self.remainder,
            "suggestions": [asdict(s) for s in self.suggestions],
            "public": list(self.public),
        }
        rounded: dict[str, Any] = _round(said)
        return rounded


def audit(
    prompt: str,
    policy: str | Policy | None = None,
    *,
    pair: str | Pair = "emoji",
    prior: Prior = "careful",
    model: AuditModel | None = None,
    suggestions: int = 3,
    options: Options | None = None,
) -> AuditReport:
    """Audit a prompt under a policy (by default the pair's) without sending anything.

    prior: see `AuditModel.posterior`; "careful", whichever prior leaves fewer candidates, is meant for users: an
    adversary may hold either. model: by default the shipped one. suggestions: how many rewordings at most. options: of
    `candidate_set`. InputError and PrivacyError as `candidate_set` raises them.
    """
    settings = pair if isinstance(pair, Pair) else load_pair(pair)
    rules = policy if isinstance(policy, Policy) else load_policy(policy or settings.policy)
    model = model or _shipped()
    found = candidate_set(prompt, rules, options)
    again = replace(options, protect=()) if options else None  # the set's own prompts carry their marks

    def expand(text: str) -> CandidateSet:
        return candidate_set(text, rules, again)

    requests = {_request(settings, expand(text).prompts) for text in found.marked}
    evidence = read_evidence(found)
    uniform, captions = (model.posterior(found, p, evidence=evidence) for p in ("uniform", "captions"))
    return AuditReport(
        prompts=found.prompts,
        hidden=tuple(found.attributes),
        public=(*found.public, "which attributes the prompt mentions", "every other word of the prompt"),
        remainder=evidence.remainder,
        requests_equal=requests == {_request(settings, found.prompts)},
        posterior=model.posterior(found, prior, evidence=evidence),
        uniform=uniform,
        captions=captions,
        suggestions=suggest(found, model, expand, prior, suggestions),
    )


@cache
def _shipped() -> AuditModel:
    return AuditModel.load()


def _request(pair: Pair, prompts: tuple[str, ...]) -> bytes:
    return Request(
        pair=pair.digest, candidates=prompts, negative_prompt="", seed=0, height=pair.height, width=pair.width,
        steps=pair.steps, handoff=pair.handoff, guidance=pair.guidance, solver=pair.solver,
    ).encode()  # fmt: skip


def _numbers(posterior: Posterior) -> dict[str, float]:
    return {
        "top1": posterior.top1,
        "entropy_bits": posterior.entropy_bits,
        "effective_n": posterior.effective_n,
    }


def _round(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, dict):
        return {k: _round(v) for k, v in value.items()}
    return [_round(v) for v in value] if isinstance(value, list) else value
