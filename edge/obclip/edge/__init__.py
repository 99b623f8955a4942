"""The device: a prompt in, a picture out, and a cloud that never learns which candidate was meant.

    from obclip.edge import Bundle, Client, generate

    with Client("https://cloud.example") as client:
        result = generate("a portrait of an old man", bundle=Bundle.open("emoji"), client=client)
    result.save("portrait.png")

Stable from 0.1: the names in `__all__`, their parameters and fields. Everything else may change in any release.
"""

from obclip.core.errors import (
    BundleError,
    CloudError,
    InputError,
    ModelMissingError,
    ObclipError,
    PrivacyError,
    RunError,
)
from obclip.core.received import Received
from obclip.edge.audit import AuditReport, audit
from obclip.edge.bundle import Bundle
from obclip.edge.client import Client
from obclip.edge.generate import Result, generate, resume
from obclip.edge.oblivious import CandidateSet, Options, Policy, candidate_set, load_policy

__all__ = [
    "AuditReport",
    "Bundle",
    "BundleError",
    "CandidateSet",
    "Client",
    "CloudError",
    "InputError",
    "ModelMissingError",
    "ObclipError",
    "Options",
    "Policy",
    "PrivacyError",
    "Received",
    "Result",
    "RunError",
    "audit",
    "candidate_set",
    "generate",
    "load_policy",
    "resume",
]
