"""A count of what was let through, for tests that take a refusal for an answer: refusing all must not pass them."""

from __future__ import annotations

from obclip.core.errors import ObclipError, PrivacyError
from obclip.edge.oblivious import CandidateSet, Options, Policy, candidate_set


class Tally:
    """refusals: the errors that are taken for an answer. tried, accepted: prompts, and those that were not refused."""

    def __init__(self, *refusals: type[ObclipError]) -> None:
        self.refusals = refusals or (PrivacyError,)
        self.tried = self.accepted = 0

    def candidates(self, prompt: str, policy: Policy, options: Options | None = None) -> CandidateSet | None:
        """None where it is refused."""
        self.tried += 1
        try:
            found = candidate_set(prompt, policy, options)
        except self.refusals:
            return None
        self.accepted += 1
        return found

    def check(self, least: float) -> None:
        """That at least this share was not refused, of one prompt or more."""
        assert self.tried > 0
        assert self.accepted >= least * self.tried, f"{self.accepted} of {self.tried} not refused, wanted {least:.0%}"
