"""Every error ObCLIP raises, as one tree.

ObclipError                  exit code
├── RunError                 1   the run failed (bad numbers, I/O)
│   └── BundleError          1   a bundle is truncated, altered or of another schema
├── InputError               2   the request itself is wrong (prompt, size, option)
├── ModelMissingError        3   a model, bundle or extra is not here
├── CloudError               4   the cloud cannot be reached, or does not match
│   ├── CloudUnreachableError
│   ├── CloudMismatchError   the cloud runs another pair, schedule or protocol
│   └── CloudResponseError   the cloud answered with something that is not a whole, finite response
├── VerificationError        5   an exported model is further from its source than the floor allows
└── PrivacyError             6   sending this would reveal what should stay hidden
"""

from __future__ import annotations


class ObclipError(Exception):
    """Base of all errors; `exit_code` is what the command line returns for it."""

    exit_code = 1


class RunError(ObclipError):
    """The run failed."""


class BundleError(RunError):
    """A device bundle is incomplete, altered or unreadable."""


class InputError(ObclipError):
    """The input cannot be used as given."""

    exit_code = 2


class ModelMissingError(ObclipError):
    """A model, a bundle or an optional dependency is not installed here."""

    exit_code = 3


class CloudError(ObclipError):
    """Something about the cloud."""

    exit_code = 4


class CloudUnreachableError(CloudError):
    """No answer: refused, timed out, bad certificate."""


class CloudMismatchError(CloudError):
    """The cloud speaks another protocol version, or runs another pair or schedule."""


class CloudResponseError(CloudError):
    """The answer is not a whole, finite response to this request."""


class VerificationError(ObclipError):
    """An exported model differs from its source by more than its floor allows."""

    exit_code = 5


class PrivacyError(ObclipError):
    """The request was refused because it would reveal a protected attribute."""

    exit_code = 6
