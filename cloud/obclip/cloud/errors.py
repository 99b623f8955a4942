"""How a request can fail in the engine. No message here may quote a prompt: engines make them from fixed words.

RunError
├── CancelledError        the client went away, or asked to stop
├── OverloadedError       not taken in: as much is waiting as the engine takes
├── DrainingError         not taken in, or given up: the engine is being closed
├── QueueTimeoutError     taken in, but its turn did not come in time
├── ServiceTimeoutError   begun, but not done in time
├── NotFiniteError        the model made numbers that are not finite, also in float32
├── OutOfMemoryError      the batch did not fit; the engine goes on with smaller ones
├── FailedError           anything else that went wrong with this request alone
└── DeadEngineError       the device is gone; nothing will work until the process is started anew
"""

from __future__ import annotations

from obclip.core.errors import RunError


class CancelledError(RunError):
    """The request was given up at a step boundary."""


class OverloadedError(RunError):
    """Refused at once. retry_after_s: when it is worth trying again, more than 0."""

    def __init__(self, detail: str, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class DrainingError(RunError):
    """The engine takes no more work."""


class QueueTimeoutError(RunError):
    """The request waited for its turn for longer than it may."""


class ServiceTimeoutError(RunError):
    """The request was in work for longer than it may be."""


class NotFiniteError(RunError):
    """A latent is not finite; the request fails as a whole."""


class OutOfMemoryError(RunError):
    """The batch that the request was in did not fit the device's memory."""


class FailedError(RunError):
    """The model failed on this request; the next one may well work."""


class DeadEngineError(RunError):
    """The device is in a state that only a new process can leave."""
