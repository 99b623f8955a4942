"""From one prompt to the closed set of candidate prompts that differ only in protected attributes."""

from obclip.edge.oblivious.candidates import CandidateSet, Options, candidate_set, check_negative
from obclip.edge.oblivious.marks import unmark
from obclip.edge.oblivious.parse import Mention
from obclip.edge.oblivious.policy import Policy, load_policy

__all__ = ["CandidateSet", "Mention", "Options", "Policy", "candidate_set", "check_negative", "load_policy", "unmark"]
