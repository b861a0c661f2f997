"""Every error that arenite raises on purpose, and whose fault it is.

::

    Error                     base; never raised itself
    ├── RequestError          the request: change it, or send it later
    │   ├── InvalidRequest    a value is out of its range
    │   │   └── BadSchema     the form of the answer: not a schema, or more than this can compile
    │   ├── ContextOverflow   prompt and answer do not fit into the context
    │   ├── Busy              a bounded queue is full; ``retry_ms`` says when to come back
    │   ├── Cancelled         somebody cancelled it
    │   ├── DeadlineMissed    its deadline can not be met; says what could
    │   ├── KeyTaken          another request with its key is unfinished
    │   ├── UnknownSession    no session of that name
    │   └── BadAnswer         the model's answer is not what the request asked for
    ├── ModelError            the model: give another one, or convert it
    │   ├── ModelNotFound     no file or folder there
    │   ├── BadModel          damaged, or libllama refuses it; holds libllama's own last line
    │   └── UnsupportedModel  sound, but of a kind that this version does not know
    ├── MemoryPlanError       the memory plan
    │   ├── ArenaTooSmall     says how many bytes are needed, for what, and how many there are
    │   └── ArenaBusy         another Runtime of this process owns the memory
    ├── NoGPU                 a GPU was asked for, and there is none, or not enough of it
    ├── ConfigError           a setting; the command line exits with 78
    ├── MissingDependency     an extra package or program; says how to get it
    └── EngineError           ours
        ├── EngineClosed      the runtime was closed
        ├── EngineFailed      a step failed, or a wait ran out
        └── GrammarError      an answer can not go on within its form

A message is one line that says what is wrong and what to do.  ``code`` is stable and goes over the wire.
"""

from __future__ import annotations

from typing import Any, ClassVar

MACHINE = "this machine"  # where memory is short when no arena is the limit


class Error(Exception):
    """Base of all errors raised on purpose."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Let an error cross a process border, and be copied: each waiter raises a copy with a traceback of its own."""
        return restore_error, (type(self), str(self), dict(self.__dict__))


def restore_error(kind: type[Error], message: str, fields: dict[str, Any]) -> Error:
    """Make an error again from what `Error.__reduce__` gave."""
    error = kind.__new__(kind, message)
    error.args = (message,)
    error.__dict__.update(fields)
    return error


class RequestError(Error):
    """The request can not be served as it is."""

    code = "request"


class InvalidRequest(RequestError):
    """A value of the request is out of its range."""

    code = "invalid"


class BadSchema(InvalidRequest):
    """The form that the answer is to have can not be used; the message holds the compiler's own reason."""

    code = "bad_schema"


class ContextOverflow(RequestError):
    """Prompt plus answer is longer than the context.

    Attributes: ``prompt_tokens``, ``max_tokens`` (0: not asked for) and ``context``, all in tokens.
    """

    code = "context_overflow"

    def __init__(self, prompt_tokens: int, max_tokens: int, context: int) -> None:
        self.prompt_tokens, self.max_tokens, self.context = prompt_tokens, max_tokens, context
        asked = f" and {max_tokens} for the answer" if max_tokens else " and at least 1 for the answer"
        super().__init__(
            f"the prompt takes {prompt_tokens} tokens{asked}, the context holds {context}: "
            "shorten the prompt, ask for fewer tokens or, up to what it was trained for, load the model with a larger "
            "context"
        )


class Busy(RequestError):
    """A bounded queue is full.  ``retry_ms``: milliseconds after which a retry makes sense."""

    code = "busy"

    def __init__(self, message: str, retry_ms: int) -> None:
        self.retry_ms = retry_ms
        super().__init__(f"{message}; try again in {retry_ms} ms")


class Cancelled(RequestError):
    """The request was cancelled before it had an answer."""

    code = "cancelled"


class DeadlineMissed(RequestError):
    """The deadline can not be met, so the request is refused at once.  ``estimate_s``: seconds to its first token."""

    code = "deadline"

    def __init__(self, deadline_s: float, estimate_s: float) -> None:
        self.deadline_s, self.estimate_s = deadline_s, estimate_s
        super().__init__(
            f"the deadline is in {1e3 * deadline_s:.0f} ms, the first token would come after about "
            f"{1e3 * estimate_s:.0f} ms: allow more time, shorten the prompt or give it a higher priority"
        )


class KeyTaken(RequestError):
    """Another request with the same key is unfinished and this one was to give way."""

    code = "key_taken"


class UnknownSession(RequestError):
    """There is no session of that name, or it was forgotten after its time."""

    code = "unknown_session"


class BadAnswer(RequestError):
    """The model's answer is not of the form that the request asked for; ``text`` is what it said."""

    code = "bad_answer"

    def __init__(self, message: str, text: str) -> None:
        self.text = text
        super().__init__(message)


class ModelError(Error):
    """The model can not be used."""

    code = "model"


class ModelNotFound(ModelError):
    """There is no file or folder of that name."""

    code = "model_not_found"


class BadModel(ModelError):
    """The file is damaged, or the library that reads it refuses it.  ``reason`` is the library's own last line."""

    code = "bad_model"

    def __init__(self, message: str, reason: str = "") -> None:
        self.reason = reason
        super().__init__(f"{message}: {reason}" if reason else message)


class UnsupportedModel(ModelError):
    """The model is sound, but of a kind that this version does not know."""

    code = "unsupported_model"


class MemoryPlanError(Error):
    """The memory plan does not hold."""

    code = "memory"


class ArenaTooSmall(MemoryPlanError):
    """The arena (or the machine) has fewer bytes than the plan needs.

    Attributes: ``needed`` and ``available`` in bytes; ``items`` maps what the bytes are for to how many.
    """

    code = "arena_too_small"

    def __init__(self, needed: int, available: int, items: dict[str, int], where: str = "the arena") -> None:
        self.needed, self.available, self.items = needed, available, dict(items)
        parts = ", ".join(f"{name} {size:,}" for name, size in items.items())
        smaller = "a shorter context, fewer streams or a smaller model type"
        if where != MACHINE:
            advice = f"give a larger arena, {smaller}"
        else:
            advice = "give a smaller arena" if "arena" in items else f"take {smaller}"
        super().__init__(f"needs {needed:,} bytes ({parts}) but {where} has {available:,} free: {advice}")


class ArenaBusy(MemoryPlanError):
    """Another Runtime of this process owns the memory and this plan does not fit beside it."""

    code = "arena_busy"


class NoGPU(Error):
    """A GPU was asked for (``require_gpu``, or ``gpu_layers`` as a number or ``all``) and can not be had."""

    code: ClassVar[str] = "no_gpu"


class ConfigError(Error):
    """A setting is unknown or out of its range."""

    code = "config"
    exit_code = 78


class MissingDependency(Error):
    """A package or program that this needs is not installed; the message says how to get it."""

    code = "missing_dependency"


class EngineError(Error):
    """The engine is to blame."""

    code = "engine"


class EngineClosed(EngineError):
    """The runtime was closed before or while the request ran."""

    code = "closed"


class EngineFailed(EngineError):
    """A step of the engine failed; the requests that were in it end with this."""

    code = "engine_failed"


class GrammarError(EngineError):
    """The answer can not go on within its form: the form's states passed a limit, or nothing may come next."""

    code = "grammar"
