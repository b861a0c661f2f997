"""arenite: quantized models on edge boxes that must stay up, inside one fixed memory arena.

::

    import arenite

    with arenite.Runtime(arena="2GiB") as runtime:
        llm = runtime.load("assistant.gguf", context=4096, streams=8)
        for piece in llm.stream("Turn on the kitchen light"):
            print(piece, end="", flush=True)
"""

import typing

from .runtime.api import Model, Runtime
from .runtime.arena import Plan, Snapshot
from .runtime.config import ModelOptions
from .runtime.errors import (
    ArenaBusy,
    ArenaTooSmall,
    BadAnswer,
    BadModel,
    BadSchema,
    Busy,
    Cancelled,
    ConfigError,
    ContextOverflow,
    DeadlineMissed,
    EngineClosed,
    EngineError,
    EngineFailed,
    Error,
    GrammarError,
    InvalidRequest,
    KeyTaken,
    MemoryPlanError,
    MissingDependency,
    ModelError,
    ModelNotFound,
    NoGPU,
    RequestError,
    UnknownSession,
    UnsupportedModel,
)
from .runtime.events import Usage
from .runtime.forms import Form
from .runtime.remote import Isolation
from .runtime.request import Request, Sampling
from .runtime.sampling import TokenLogprob
from .runtime.session import Session
from .runtime.stats import Status
from .runtime.ticket import Completion, Ticket, wait_all

if typing.TYPE_CHECKING:
    from .adapters.client import connect
else:

    def __getattr__(name: str) -> object:
        """Import what talks to a service when it is asked for: without one nobody waits for ZeroMQ."""
        if name == "connect":
            from .adapters.client import connect  # noqa: PLC0415

            return connect
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__version__ = "0.1.0"

__all__ = [
    "ArenaBusy",
    "ArenaTooSmall",
    "BadAnswer",
    "BadModel",
    "BadSchema",
    "Busy",
    "Cancelled",
    "Completion",
    "ConfigError",
    "ContextOverflow",
    "DeadlineMissed",
    "EngineClosed",
    "EngineError",
    "EngineFailed",
    "Error",
    "Form",
    "GrammarError",
    "InvalidRequest",
    "Isolation",
    "KeyTaken",
    "MemoryPlanError",
    "MissingDependency",
    "Model",
    "ModelError",
    "ModelNotFound",
    "ModelOptions",
    "NoGPU",
    "Plan",
    "Request",
    "RequestError",
    "Runtime",
    "Sampling",
    "Session",
    "Snapshot",
    "Status",
    "Ticket",
    "TokenLogprob",
    "UnknownSession",
    "UnsupportedModel",
    "Usage",
    "__version__",
    "connect",
    "wait_all",
]
