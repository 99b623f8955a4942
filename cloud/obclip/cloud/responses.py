"""Problem documents as HTTP responses, and which one each error of the engine becomes."""

from __future__ import annotations

from starlette.responses import Response as HttpResponse

from obclip.cloud import errors
from obclip.cloud.limits import retry_after
from obclip.core.errors import RunError
from obclip.core.problems import MEDIA_TYPE, Problem

_MAX_DETAIL_CHARS = 300  # some quote a field's value, which is the client's own, but may be long
_RESTART_S = 10.0

# the kinds that a denoise request can be refused with before any work is done for it
REFUSALS = frozenset(
    {
        "invalid-request", "prompt-too-long", "too-many-candidates", "pair-mismatch", "body-timeout", "body-too-large",
        "unsupported-media-type", "rate-limited", "overloaded", "draining",
    }
)  # fmt: skip

_OF_ENGINE: dict[type[RunError], tuple[str, str]] = {
    errors.QueueTimeoutError: ("queue-timeout", "the server is busy; nothing was done, try again later"),
    errors.ServiceTimeoutError: ("service-timeout", "the request was given up; ask for fewer candidates or steps"),
    errors.NotFiniteError: ("not-finite", "nothing of the request is returned; another seed may do"),
    errors.OutOfMemoryError: ("out-of-memory", "nothing of the request is returned; try again"),
    errors.CancelledError: ("internal", "the request was cancelled"),
    errors.FailedError: ("internal", "the model failed on this request; nothing of it is returned"),
}


class ProblemError(Exception):
    """Ends a request with a problem document. Its detail goes to the client, who may be quoted, and to no log."""

    def __init__(self, slug: str, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(slug)
        self.problem, self.headers = Problem.of(slug, detail[:_MAX_DETAIL_CHARS]), headers or {}


def problem_of(error: RunError) -> ProblemError:
    """What a client is told of an error that an engine raised or put into a future."""
    if isinstance(error, errors.OverloadedError):
        return ProblemError("overloaded", str(error), retry_after(error.retry_after_s))
    if isinstance(error, errors.DrainingError):
        return draining()
    if isinstance(error, errors.DeadEngineError):
        return ProblemError("engine-dead", "nothing was returned; try again", retry_after(_RESTART_S))
    slug, detail = _OF_ENGINE.get(type(error), ("internal", "the server failed; nothing is returned"))
    return ProblemError(slug, detail)


def draining(detail: str = "the server is going down; another one may take its place") -> ProblemError:
    return ProblemError("draining", detail, retry_after(2.0))


def respond(error: ProblemError) -> HttpResponse:
    problem = error.problem
    return HttpResponse(problem.encode(), status_code=problem.status, media_type=MEDIA_TYPE, headers=error.headers)
