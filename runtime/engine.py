"""The engine: one thread owns scheduler, sequences, arena and backends; everybody else sends it messages.

::

    any thread --submit, cancel, call--> Mailbox --> engine thread: take messages, step each busy lane, deliver
               <------------------------- deliver(events of the step), on the engine's thread

One lane is stepped per pass: the one with the most urgent class, then the nearest deadline, then the one that waited
for its turn longest.

Every submitted request ends in exactly one `Finished` or `Failed`, also when the engine is closed or a bug ends it.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from .config import NULL_MODEL
from .errors import Busy, ConfigError, EngineClosed, EngineError, EngineFailed, Error
from .events import Event, Failed, Finished
from .lane import Lane, turn
from .mailbox import Mailbox
from .sequence import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable

    from .arena import Plan
    from .backends.base import ModelInfo, Vocabulary
    from .backends.loader import Loader
    from .config import ModelOptions
    from .forms import Form
    from .grammar import Grammar
    from .request import Request
    from .stats import Status

T = TypeVar("T")
RETRY_MS = 500  # before anything is known


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a caller may know and use of a loaded model.  ``number``: no other model of the engine ever has it."""

    number: int
    info: ModelInfo
    vocabulary: Vocabulary


@dataclass(frozen=True, slots=True)
class _Submit:
    ticket: int
    model: int
    request: Request
    at: float


@dataclass(frozen=True, slots=True)
class _Cancel:
    ticket: int


@dataclass(frozen=True, slots=True)
class _Call:
    """Something to run on the engine's thread between two steps."""

    function: Callable[[], Any]
    result: Future[Any]


class Engine:
    """Runs models on a thread of its own.

    ``make_loader`` is called on that thread.  ``deliver`` receives the events of a step, on that thread: it must be
    quick and must not raise.  ``limit``: requests that may be unfinished at a time; one more is answered Busy.
    """

    def __init__(
        self, make_loader: Callable[[], Loader], deliver: Callable[[list[Event]], None], *, limit: int = 1024
    ) -> None:
        self._mailbox: Mailbox[_Submit | _Cancel | _Call] = Mailbox()
        self._deliver = deliver
        self._room = threading.BoundedSemaphore(limit)
        self._tickets = itertools.count(1)
        self._numbers = itertools.count(1)
        self._lanes: dict[int, Lane] = {}
        self._stop = False
        self._retry_ms = RETRY_MS
        self._fate: Error = EngineClosed("the runtime is closed: make a new one")
        self._closed = False
        # Held for a post, and to close: no message is left behind unanswered.  Re-entrant, because a garbage
        # collection inside may finalize another Runtime on this thread.
        self._gate = threading.RLock()
        ready: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._main, args=(make_loader, ready), name="arenite-engine", daemon=True
        )
        self._thread.start()
        ready.result()

    # ---- any thread ----

    def next_ticket(self) -> int:
        """Return a number that no request had yet."""
        return next(self._tickets)

    def submit(self, ticket: int, model: int, request: Request, submitted: float | None = None) -> None:
        """Hand a request over, submitted at that `time.perf_counter` (default: now).

        Raises Busy when too many are unfinished, EngineClosed after `close`.
        """
        if not self._room.acquire(blocking=False):
            raise Busy("too many requests are unfinished", self._retry_ms)
        try:
            at = time.perf_counter() if submitted is None else submitted
            self._post(_Submit(ticket, model, request, at))
        except EngineError:
            self._room.release()
            raise

    def cancel(self, ticket: int) -> None:
        """Ask for the end of a request; it comes after the running decode call.  Unknown tickets are ignored."""
        with contextlib.suppress(EngineError):
            self._post(_Cancel(ticket))

    def _call(self, function: Callable[[], T]) -> T:
        """Run something on the engine's thread between two steps and return what it returns."""
        result: Future[T] = Future()
        self._post(_Call(function, result))
        return result.result()

    def load(self, options: ModelOptions) -> Loaded:
        """Load a model.  The file is examined here, in the caller's thread, so that running streams do not wait."""
        if options.path != NULL_MODEL:
            self.plan(options)
        return self._call(lambda: self._load(options))

    def plan(self, options: ModelOptions) -> Plan:
        """Return what loading would take."""
        self._check_open()
        return self._loader.plan(options)

    def unload(self, model: int) -> None:
        """End a model's requests with EngineClosed and free it.  An unknown number is ignored: it is gone already."""
        self._call(lambda: self._unload(model))

    def ping(self) -> None:
        """Return when the engine's thread is between two steps."""
        self._call(lambda: None)

    def status(self) -> Status:
        """Return a frozen picture of everything."""
        return self._call(self._status)

    def forget(self, model: int, tokens: list[int]) -> None:
        """Drop what the cache remembers of sequences that begin with these tokens, or are a head of them."""
        self._call(lambda: self._forget(model, tokens))

    def stop(self) -> None:
        """Ask for the end and return at once; the running decode call is cut short."""
        with contextlib.suppress(EngineError):
            self._post(_Call(self._request_stop, Future()))
            for lane in list(self._lanes.values()):
                lane.interrupt()

    def close(self) -> None:
        """End all requests, free everything and stop the thread.  Closing twice is harmless."""
        self.stop()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _check_open(self) -> None:
        if self._closed:
            raise copy.copy(self._fate)

    def _post(self, message: _Submit | _Cancel | _Call) -> None:
        with self._gate:
            self._check_open()
            self._mailbox.post(message)

    # ---- the engine's thread ----

    def _main(self, make_loader: Callable[[], Loader], ready: Future[None]) -> None:
        try:
            self._loader = make_loader()
        except BaseException as error:  # noqa: BLE001 - it is handed to the thread that waits for us
            ready.set_exception(error)
            return
        ready.set_result(None)
        try:
            self._loop()
        except Exception as error:  # noqa: BLE001 - a bug of ours must end requests, not strand them
            self._fate = EngineFailed(f"the engine ended with {type(error).__name__}: {error}")
            self._fate.__cause__ = error
        self._end(self._fate)

    def _request_stop(self) -> None:
        self._stop = True

    def _loop(self) -> None:
        while not self._stop:
            begin, inside = time.perf_counter(), 0.0
            for message in self._mailbox.take():
                self._handle(message)
            for each in self._lanes.values():
                each.expire()
            lane = turn(self._lanes.values(), begin)
            if lane is not None and not self._stop:
                inside = lane.step()
                lane.stepped = begin
                self._retry_ms = lane.retry_ms()
            self._send()
            if lane is not None:  # what a pass costs in Python: all of it but the backend's decoding
                lane.counters.python_s += time.perf_counter() - begin - inside
            elif not self._stop:
                self._mailbox.wait(self._until_due())

    def _until_due(self) -> float | None:
        """Return the seconds to the nearest deadline of requests that wait for something else than a step."""
        due = min((lane.next_due for lane in self._lanes.values()), default=NEVER)
        return None if due == NEVER else max(0.0, due - time.perf_counter())

    def _handle(self, message: _Submit | _Cancel | _Call) -> None:
        match message:
            case _Submit():
                self._submit(message)
            case _Cancel():
                for lane in self._lanes.values():
                    lane.cancel(message.ticket)
            case _Call():
                try:
                    message.result.set_result(message.function())
                except BaseException as error:  # noqa: BLE001 - it is handed to the thread that waits for us
                    message.result.set_exception(error)

    def _submit(self, message: _Submit) -> None:
        lane = self._lanes.get(message.model)
        if lane is None:
            self._post_end(message.ticket, EngineClosed("the model is not loaded any more"))
            return
        try:
            accepted = lane.submit(message.ticket, message.request, message.at)
            if accepted and message.request.form is not None:
                again = message.request.resume is not None
                self._compile(lane, message.ticket, message.request.form, accepted=again)
        except Exception as error:  # noqa: BLE001 - a request that trips over a bug ends alone
            self._post_end(message.ticket, EngineFailed(f"the request failed with {type(error).__name__}: {error}"))

    def _compile(self, lane: Lane, ticket: int, form: Form, *, accepted: bool) -> None:
        """Have a form compiled on a worker's thread; the request waits for it, nobody else does."""

        def done(future: Future[Grammar]) -> None:
            error = future.exception()
            if error is not None and not isinstance(error, Error):
                error = EngineFailed(f"the form failed with {type(error).__name__}: {error}")
            outcome = future.result() if error is None else error
            with contextlib.suppress(EngineError):
                self._post(_Call(lambda: lane.compiled(ticket, outcome), Future()))

        lane.compiler.submit(form, accepted=accepted).add_done_callback(done)

    def _send(self) -> None:
        """Hand over the events of all lanes in one go."""
        events: list[Event] = []
        for lane in self._lanes.values():
            if lane.events:
                events += lane.events
                lane.events = []
        if events:
            self._hand_over(events)

    def _hand_over(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, (Finished, Failed)):
                self._room.release()
        self._deliver(events)

    def _post_end(self, ticket: int, error: Error) -> None:
        self._hand_over([Failed(ticket, error)])

    def _load(self, options: ModelOptions) -> Loaded:
        if options.name in {lane.backend.info.name for lane in self._lanes.values()}:
            raise ConfigError(f"a model called {options.name} is loaded already: give this one another name")
        backend = self._loader.load(options)
        number = next(self._numbers)
        self._lanes[number] = Lane(backend, options)
        return Loaded(number, backend.info, backend.vocabulary)

    def _unload(self, model: int) -> None:
        if lane := self._lanes.get(model):
            lane.close(EngineClosed(f"model {lane.backend.info.name} was unloaded"))
            self._send()
            del self._lanes[model]

    def _forget(self, model: int, tokens: list[int]) -> None:
        if lane := self._lanes.get(model):
            lane.scheduler.pool.forget(tokens)

    def _status(self) -> Status:
        return self._loader.status(tuple(lane.status() for lane in self._lanes.values()))

    def _end(self, error: Error) -> None:
        """Leave nothing behind: end requests, answer what is still in the mailbox, free models and arena."""
        with self._gate:
            self._closed = True
        for lane in self._lanes.values():
            with contextlib.suppress(Exception):  # the others still have to hear of their end
                lane.close(error)
        self._send()
        self._lanes.clear()
        for message in self._mailbox.take():
            if isinstance(message, _Submit):
                self._post_end(message.ticket, error)
            elif isinstance(message, _Call) and message.function != self._request_stop:
                message.result.set_exception(error)
        with contextlib.suppress(Error):  # buffers that a failed model left: the slab waits for the next owner
            self._loader.close()
