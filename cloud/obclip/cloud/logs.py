"""Structured logs: an event, a few sizes and durations, never a prompt, a message of an exception, or anything about
one candidate.

The library only writes to loggers below `obclip`; handlers are set by `configure`, which the server process calls.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from typing import Any, Literal, TextIO

from obclip.core.errors import InputError

Format = Literal["text", "json"]
LEVELS = ("debug", "info", "warning", "error")
_FIELDS = "obclip_fields"


class Log:
    """A logger whose records are an event's name and fields: `log.info("denoised", rows=40)`."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **fields: Any) -> None:
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, error: BaseException | None = None, **fields: Any) -> None:
        self._write(logging.ERROR, event, fields if error is None else {**fields, **describe(error)})

    def _write(self, level: int, event: str, fields: dict[str, Any]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s", _line(event, fields), extra={_FIELDS: {"event": event, **fields}})


def describe(error: BaseException) -> dict[str, str]:
    """An exception's class and where it was raised. Its message could quote a prompt, so it is left out."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    where = " < ".join(f"{f.filename.rpartition('/')[2]}:{f.lineno} {f.name}" for f in reversed(frames))
    return {"error": type(error).__name__, "where": where}


class _Formatter(logging.Formatter):
    """One line a record. Other libraries' records (uvicorn's, asyncio's) are reduced to where they come from and the
    class of their exception: what they would print is not ours to vouch for."""

    def __init__(self, form: Format) -> None:
        super().__init__()
        self.form = form

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, _FIELDS, None)
        if fields is None:
            fields = {"event": "message", "line": f"{record.filename}:{record.lineno}"}
            if record.exc_info and record.exc_info[1] is not None:
                fields |= describe(record.exc_info[1])
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"
        level = record.levelname.lower()
        if self.form == "json":
            return json.dumps({"time": at, "level": level, "logger": record.name, **fields}, default=str)
        return f"{at} {level} {record.name} {_line(fields['event'], {k: v for k, v in fields.items() if k != 'event'})}"


def configure(form: Format = "text", level: str = "info", stream: TextIO | None = None) -> logging.Handler:
    """Send what `obclip`, `uvicorn` and `asyncio` log to `stream` (stderr), one line each. InputError for others."""
    if form not in ("text", "json"):
        raise InputError(f"log-format is {form!r}; choose text or json")
    if level not in LEVELS:
        raise InputError(f"log-level is {level!r}; choose one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Formatter(form))
    for name, at in (("obclip", level.upper()), ("uvicorn", "WARNING"), ("asyncio", "WARNING")):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(at)
    return handler


def _line(event: str, fields: dict[str, Any]) -> str:
    return " ".join([event, *(f"{k}={_short(v)}" for k, v in fields.items())])


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return json.dumps(text) if not text or " " in text or "\n" in text or '"' in text else text
