"""Errors on the wire: a typed refusal, and the way of arenite's own errors there and back."""

from __future__ import annotations

from typing import Any

from ..runtime import errors
from .messages import DAY_MS, Code, Failure

LONGEST_MESSAGE = 400  # characters; what a device sent may stand in it
RETRY_MS = 1000


class Refused(Exception):
    """A message that can not be served, as the wire says it.

    Attributes: ``code`` (one of ARN1's), ``message`` (what is wrong and what to do), ``rid`` (empty: it could not be
    read), ``attempt`` (empty: nothing was accepted), ``retry_ms`` (milliseconds after which a retry makes sense).
    """

    def __init__(
        self, code: Code, message: str, *, rid: str = "", attempt: str = "", retry_ms: int | None = None
    ) -> None:
        self.code, self.message = code, shorten(message)
        self.rid, self.attempt, self.retry_ms = rid, attempt, retry_ms
        super().__init__(f"{code}: {self.message}")

    @property
    def reply(self) -> Failure:
        """The message that says so."""
        return Failure(
            rid=self.rid, attempt=self.attempt, code=self.code, message=self.message, retry_ms=self.retry_ms
        )


def shorten(message: str) -> str:
    """Return the message in a length that fits any reply, and in characters that UTF-8 has."""
    message = message.encode("utf-8", "replace").decode()
    return message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE - 1]}…"


# Our code -> the wire's.  The first of a wire code's is what it becomes where the wire said no more.
WIRE: dict[type[errors.Error], Code] = {
    errors.InvalidRequest: "bad_request", errors.BadSchema: "bad_request", errors.BadAnswer: "bad_request",
    errors.RequestError: "bad_request", errors.ContextOverflow: "too_large", errors.Busy: "busy",
    errors.Cancelled: "cancelled", errors.DeadlineMissed: "deadline", errors.KeyTaken: "conflict",
    errors.UnknownSession: "no_session", errors.ModelNotFound: "no_model", errors.ModelError: "not_loaded",
    errors.BadModel: "not_loaded", errors.UnsupportedModel: "not_loaded", errors.MemoryPlanError: "not_loaded",
    errors.ArenaTooSmall: "not_loaded", errors.ArenaBusy: "not_loaded", errors.NoGPU: "not_loaded",
    errors.EngineClosed: "node_lost", errors.EngineFailed: "internal", errors.GrammarError: "internal",
    errors.EngineError: "internal", errors.ConfigError: "internal", errors.MissingDependency: "internal",
    errors.Error: "internal",
}
KINDS = {kind.code: kind for kind in WIRE}
# A wire code that came without our own, or with one that this version does not know.
PLAIN: dict[Code, type[errors.Error]] = {
    "bad_request": errors.InvalidRequest, "unsupported_version": errors.InvalidRequest,
    "unauthorized": errors.RequestError, "no_model": errors.ModelNotFound, "not_loaded": errors.ModelError,
    "busy": errors.Busy, "too_large": errors.InvalidRequest, "expired": errors.DeadlineMissed,
    "deadline": errors.DeadlineMissed, "cancelled": errors.Cancelled, "conflict": errors.InvalidRequest,
    "no_session": errors.UnknownSession, "node_lost": errors.EngineClosed, "stalled": errors.EngineFailed,
    "internal": errors.EngineFailed,
}
# Documented attributes, with what they are where the wire did not say.
ATTRIBUTES: dict[type[errors.Error], dict[str, Any]] = {
    errors.Busy: {"retry_ms": RETRY_MS},
    errors.ContextOverflow: {"prompt_tokens": 0, "max_tokens": 0, "context": 0},
    errors.DeadlineMissed: {"deadline_s": 0.0, "estimate_s": 0.0},
    errors.BadAnswer: {"text": ""},
    errors.BadModel: {"reason": ""},
    errors.ArenaTooSmall: {"needed": 0, "available": 0, "items": {}},
}


def failure_of(error: Exception, *, rid: str = "", attempt: str = "") -> Failure:
    """Return the wire's words for an error; one that is none of ours becomes `internal` and shows nothing of itself."""
    if isinstance(error, Refused):
        reply = error.reply
        return Failure(rid=reply.rid or rid, attempt=reply.attempt or attempt, code=reply.code, message=reply.message,
                       retry_ms=reply.retry_ms)
    if not isinstance(error, errors.Error):
        return Failure(rid=rid, attempt=attempt, code="internal", message="the node failed: its log says more")
    kind = next(base for base in type(error).__mro__ if base in WIRE)
    details = {name: getattr(error, name, default) for name, default in ATTRIBUTES.get(kind, {}).items()}
    retry = details.pop("retry_ms", None)
    return Failure(
        rid=rid, attempt=attempt, code=WIRE[kind], message=shorten(str(error)),
        retry_ms=None if retry is None else min(max(0, int(retry)), DAY_MS), kind=kind.code,
        details={name: shorten(value) if isinstance(value, str) else value for name, value in details.items()},
    )


def error_of(failure: Failure | Refused) -> errors.Error:
    """Return the error that a failure on the wire stands for, with every documented attribute."""
    if isinstance(failure, Refused):
        failure = failure.reply
    kind = KINDS.get(failure.kind, PLAIN[failure.code])
    if WIRE[kind] != failure.code:
        kind = PLAIN[failure.code]
    error = kind.__new__(kind, failure.message or failure.code)
    said: dict[str, Any] = dict(failure.details)
    if failure.retry_ms is not None:
        said["retry_ms"] = failure.retry_ms
    for name, default in ATTRIBUTES.get(kind, {}).items():
        error.__dict__[name] = _like(said.get(name, default), default)
    return error


def _like(value: Any, default: Any) -> Any:
    """Return the value if it is of the default's kind, else the default."""
    if isinstance(default, float) and type(value) in (int, float):
        return float(value)
    return value if type(value) is type(default) else default
