"""The engine's own process: an `Engine` behind a socket.  The other end is `remote.Engine`.

::

    parent --("submit" | "cancel" | "call" | "stop")--> reader thread: submits at once, calls on a pool
           <--("events", [...])------------------------ engine thread: one message per step
           <--("answer" | "error", call, value)-------- pool

Messages are pickled: both ends are this package, and the parent reads back nothing but values of this package
(`read_value`), since the process that reads model files is the one that may be wrong.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import io
import os
import pickle
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from . import spawn
from .backends.loader import Loader
from .engine import Engine
from .errors import EngineFailed, Error, restore_error
from .events import Failed

if TYPE_CHECKING:
    from collections.abc import Callable

    from .engine import Loaded
    from .events import Event

CALLS = 8  # calls that may be under way at a time
_PLAIN = {"set", "frozenset", "bytearray"}  # classes that pickles of plain values name


class _Reader(pickle.Unpickler):
    """Reads values of this package and plain ones; nothing else is ever imported or called."""

    def find_class(self, module: str, name: str) -> Any:
        package = __name__.split(".", maxsplit=1)[0]
        if module == "builtins" and name in _PLAIN:
            return getattr(builtins, name)
        if module.startswith(f"{package}.runtime.") and "." not in name:
            found = super().find_class(module, name)
            value = isinstance(found, type) and (dataclasses.is_dataclass(found) or issubclass(found, (Error, Enum)))
            if value or found is restore_error:
                return found
        raise pickle.UnpicklingError(f"the engine's process sent a {module}.{name}")


def read_value(data: bytes) -> Any:
    """Read a message.  Raises UnpicklingError for anything but values of this package."""
    return _Reader(io.BytesIO(data)).load()


class Worker:
    """Serves one engine to one parent."""

    def __init__(self, connection: Connection, arena: str | int, gpu_arena: str | int, limit: int) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._pool = ThreadPoolExecutor(CALLS, thread_name_prefix="arenite-call")
        self._pings = ThreadPoolExecutor(1, thread_name_prefix="arenite-ping")  # calls that wait must not keep them
        self._loaded: dict[int, Loaded] = {}
        self.engine = Engine(lambda: Loader(arena, gpu_arena), self._deliver, limit=limit)

    def serve(self) -> None:
        """Answer until the parent says stop, or is gone."""
        self._send("ready")
        with contextlib.suppress(EOFError, OSError):
            while True:
                what, *rest = pickle.loads(self._connection.recv_bytes())  # noqa: S301 - our parent's own words
                if what == "stop":
                    break
                getattr(self, f"_on_{what}")(*rest)
        self.engine.close()
        for pool in (self._pool, self._pings):
            pool.shutdown(cancel_futures=True)

    def _send(self, *message: Any) -> None:
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        with self._sending, contextlib.suppress(OSError):  # a parent that is gone ends us anyway
            self._connection.send_bytes(data)

    def _deliver(self, events: list[Event]) -> None:
        self._send("events", events)

    def _on_submit(self, ticket: int, model: int, request: Any, submitted: float) -> None:
        try:
            self.engine.submit(ticket, model, request, submitted)
        except Error as error:
            self._deliver([Failed(ticket, error)])

    def _on_cancel(self, ticket: int) -> None:
        self.engine.cancel(ticket)

    def _on_call(self, call: int, name: str, arguments: tuple[Any, ...]) -> None:
        pool = self._pings if name == "ping" else self._pool
        pool.submit(self._answer, call, getattr(self, f"_do_{name}"), arguments)

    def _answer(self, call: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        try:
            self._send("answer", call, function(*arguments))
        except Error as error:
            self._send("error", call, error)
        except Exception as error:  # noqa: BLE001 - a bug of ours must answer, too
            self._send("error", call, EngineFailed(f"the engine's process: {type(error).__name__}: {error}"))

    # ---- calls ----

    def _do_ping(self) -> None:
        self.engine.ping()

    def _do_load(self, options: Any) -> tuple[int, Any]:
        loaded = self.engine.load(options)
        self._loaded[loaded.number] = loaded
        return loaded.number, loaded.info

    def _do_unload(self, model: int) -> None:
        self.engine.unload(model)
        self._loaded.pop(model, None)

    def _do_plan(self, options: Any) -> Any:
        return self.engine.plan(options)

    def _do_status(self) -> Any:
        return self.engine.status()

    def _do_forget(self, model: int, tokens: list[int]) -> None:
        self.engine.forget(model, tokens)

    def _do_encode(self, model: int, text: str, special: bool, start: bool) -> list[int]:
        found: list[int] = self._vocabulary(model).encode(text, special=special, start=start)
        return found

    def _do_pieces(self, model: int, tokens: list[int]) -> list[tuple[bytes, bool]]:
        vocabulary = self._vocabulary(model)
        return [(vocabulary.piece(token), vocabulary.is_end(token)) for token in tokens]

    def _vocabulary(self, model: int) -> Any:
        if (loaded := self._loaded.get(model)) is None:
            raise EngineFailed("the model is not loaded any more: load it again")
        return loaded.vocabulary


def main(descriptor: int, parent: int, arena: str | int, gpu_arena: str | int, limit: int) -> None:
    """Run in the child process until the parent says stop or ends."""
    spawn.die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    connection = Connection(os.dup(descriptor))
    os.close(descriptor)
    try:
        worker = Worker(connection, arena, gpu_arena, limit)
    except Error as error:
        connection.send_bytes(pickle.dumps(("failed", error)))
        return
    worker.serve()


