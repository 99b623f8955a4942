"""The cloud over HTTP: one handshake, one request, one whole answer."""

from __future__ import annotations

import ipaddress
import os
import time
from collections.abc import Callable
from types import TracebackType

import httpx

from obclip.core.errors import (
    CloudError,
    CloudMismatchError,
    CloudResponseError,
    CloudUnreachableError,
    InputError,
    PrivacyError,
)
from obclip.core.pairs import Pair
from obclip.core.problems import Problem
from obclip.core.schedule import Schedule, build_schedule
from obclip.core.schedule_config import ScheduleConfig
from obclip.core.wire import CAPABILITIES_PATH, DENOISE_PATH, Capabilities, Request, Response

_RETRIED = (429, 502, 503)
_RETRIED_KINDS = ("out-of-memory", "queue-timeout")  # with other statuses; the next try may find the cloud free
_REFUSED_S = 2.0  # how long a cloud that has never been heard of is waited for
_SLACK_BYTES = 65_536


class Client:
    """A connection to one cloud.

    TLS is verified; plain http is taken on loopback only. Proxies and credentials of the environment are not used, and
    redirects not followed, so that requests go where `url` says. A retry sends the same bytes again.

    token: sent as a bearer token, by default OBCLIP_TOKEN. timeout_s: for a whole answer; connecting gets 10.
    patience_s: how long a cloud that is busy, starting or lost in mid-answer is waited for. transport: for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = 300.0,
        patience_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = _checked(url)
        self.patience_s, self._sleep = patience_s, sleep
        token = (token or os.environ.get("OBCLIP_TOKEN") or "").strip()
        if not (token.isascii() and token.isprintable()):
            raise InputError("the token has characters that cannot be sent; it must be printable ASCII")
        self.timeout_s = timeout_s
        self._heard = False  # anything of the cloud, by this client
        self._http = httpx.Client(
            base_url=self.url,
            headers={"User-Agent": "obclip"} | ({"Authorization": f"Bearer {token}"} if token else {}),
            timeout=httpx.Timeout(timeout_s, connect=min(10.0, timeout_s)),
            transport=transport,
            trust_env=False,
            follow_redirects=False,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def capabilities(self) -> Capabilities:
        """What the cloud offers. CloudUnreachableError, CloudMismatchError."""
        return Capabilities.decode(self._exchange("GET", CAPABILITIES_PATH, b"", 1_000_000))

    def check(self, pair: Pair, schedule: Schedule, candidates: int) -> Capabilities:
        """The handshake, before any prompt is sent. CloudMismatchError, with both sides' values, if they differ."""
        offered = self.capabilities()
        if offered.pair != pair.digest:
            raise CloudMismatchError(
                f"the cloud runs the pair {offered.pair_name} ({offered.pair[:12]}…), this device {pair.name} "
                f"({pair.digest[:12]}…); use the same settings on both sides"
            )
        if schedule.solver not in offered.solvers:
            raise CloudMismatchError(f"the cloud does not offer {schedule.solver}; it has {', '.join(offered.solvers)}")
        try:
            theirs = build_schedule(ScheduleConfig.from_dict(offered.schedule_config), schedule.solver, schedule.steps)
        except InputError as error:
            raise CloudMismatchError(f"the cloud's schedule cannot be used: {error}") from error
        if theirs.digest != schedule.digest:
            raise CloudMismatchError(
                "cloud and device models have different noise schedules: they are no pair, or were made by different "
                "versions; export the bundle again, or update the cloud"
            )
        if candidates > offered.max_candidates:
            raise CloudMismatchError(
                f"the prompt has {candidates} candidates, the cloud takes {offered.max_candidates}"
            )
        if schedule.steps > offered.max_steps:
            raise CloudMismatchError(f"steps is {schedule.steps}, the cloud takes {offered.max_steps}")
        return offered

    def denoise(self, request: Request, schedule: Schedule, latent_shape: tuple[int, int, int]) -> Response:
        """Send `request`; returns all N latents, every one of them checked. CloudError and its kinds."""
        channels, h, w = latent_shape
        expected = len(request.candidates) * channels * h * w * 2 * (2 if request.want_x0 else 1)
        body = self._exchange("POST", DENOISE_PATH, request.encode(), expected + _SLACK_BYTES)
        response = Response.decode(body, request, latent_shape)
        if response.schedule != schedule.digest:
            raise CloudMismatchError("the cloud's answer was made with another schedule; nothing of it is used")
        return response

    def _exchange(self, method: str, path: str, body: bytes, limit: int) -> bytes:
        """One request, sent again unchanged while the cloud is busy, coming up or gone, for `patience_s` at most.

        A connection that breaks before the whole answer is here counts as a cloud that is gone: nothing of such an
        answer is used, and the cloud learns no more from the same bytes a second time.
        """
        waited, delay = 0.0, 0.5
        while True:
            delay = min(delay * 2, 8.0)
            retry_after = None
            try:
                status, retry_after, answer = self._once(method, path, body, limit)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                patience = self.patience_s if self._heard else min(self.patience_s, _REFUSED_S)
                failure: CloudError = CloudUnreachableError(f"no cloud answers at {self.url} ({error}); is it running?")
            except httpx.TimeoutException as error:
                raise CloudUnreachableError(f"the cloud at {self.url} did not answer in time; try again") from error
            except httpx.TransportError as error:
                self._heard, patience = True, self.patience_s
                failure = CloudUnreachableError(f"the connection to {self.url} broke ({error}); try again")
            except httpx.HTTPError as error:
                raise CloudUnreachableError(f"the answer of {self.url} cannot be read ({error})") from error
            else:
                self._heard, patience = True, self.patience_s
                if status == 200:
                    return answer
                problem = Problem.decode(answer, status)
                gone = status >= 500 and problem.from_elsewhere  # a proxy in front of a server that is not there
                if status not in _RETRIED and problem.slug not in _RETRIED_KINDS and not gone:
                    raise _error(problem, retry_after)
                failure = _error(problem, retry_after)
            if waited >= patience:
                raise failure
            nap = min(delay if retry_after is None else max(retry_after, 0.5), self.patience_s - waited)
            waited += nap
            self._sleep(nap)

    def _once(self, method: str, path: str, body: bytes, limit: int) -> tuple[int, float | None, bytes]:
        # The connection ends with the answer: how long the device then takes, or that it gave up, shows in none
        headers = {"Content-Type": "application/json", "Connection": "close"} if body else {}
        deadline = time.monotonic() + self.timeout_s
        with self._http.stream(method, path, content=body or None, headers=headers) as answer:
            chunks, size = [], 0
            for chunk in answer.iter_bytes():
                size += len(chunk)
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("the answer took too long as a whole")
                if size > limit:
                    raise CloudResponseError(f"the cloud's answer is over {limit} bytes; nothing of it is used")
                chunks.append(chunk)
            after = answer.headers.get("retry-after", "")
            return answer.status_code, float(after) if after.isascii() and after.isdigit() else None, b"".join(chunks)


def _error(problem: Problem, retry_after_s: float | None = None) -> CloudError:
    text = f"{problem.title}: {problem.detail}"
    if problem.slug == "unauthorized":
        return CloudError(f"{text}; set OBCLIP_TOKEN")
    if problem.slug == "forbidden":
        return CloudError(f"{text}; set OBCLIP_TOKEN to another key")
    if problem.status in (404, 405, 409, 413, 415, 422):
        return CloudMismatchError(f"the cloud refused the request. {text}")
    later = "try again" if retry_after_s is None else f"try again in {retry_after_s:.0f} s"
    if problem.slug == "rate-limited":
        return CloudUnreachableError(f"the cloud takes no more from this key for now. {text}; {later}")
    if problem.slug in ("body-timeout", "queue-timeout") or problem.status in _RETRIED:
        return CloudUnreachableError(f"the cloud is busy or starting. {text}; {later}")
    return CloudResponseError(f"the cloud failed ({problem.status}). {text}; try again")


def _checked(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InputError(f"the cloud's address cannot be read ({error}); wanted https://HOST") from error
    if parsed.userinfo:
        raise InputError("the cloud's address holds a user or password; leave it out and set OBCLIP_TOKEN")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InputError(f"{url!r} is no address of a cloud; wanted https://HOST or http://127.0.0.1:PORT")
    if parsed.scheme == "http" and not _loopback(parsed.host):
        raise PrivacyError(f"{url} would carry the candidates in the clear; use https, or a cloud on this machine")
    return url.rstrip("/")


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
