"""The engine in a process of its own: the interface of `engine.Engine`, and streams that outlive the process.

If the child dies (a native abort, ``kill -9``) or stands still, another is started, the models are loaded again, and
every unfinished request goes on from its journal entry: what was delivered is never changed, repeated or lost; whoever
follows a ticket sees a pause.  A request that was present at two deaths is ended with EngineFailed.

::

    any thread --> journal, outbox --writer thread--> child (`worker`)
    tickets <--messenger thread-- journal <--reader thread-- child
                    supervisor thread: pings, hang bound, restart with backoff, deadlines while nobody runs

Events go out on the messenger's thread and under no lock, so whoever hears of one may call the engine.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import queue
import threading
import time
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import machine
from .child import LOG, Child, Died
from .config import NULL_MODEL
from .engine import RETRY_MS, Loaded
from .errors import Busy, ConfigError, EngineClosed, EngineError, EngineFailed, Error, MemoryPlanError, NoGPU
from .events import Event, Failed, Finished, Reason, Usage
from .journal import DEATHS, Entry, Journal
from .stats import EngineStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from .arena import Plan
    from .backends.base import ModelInfo
    from .config import ModelOptions
    from .request import Request
    from .stats import Status

CLOSE_S = 10.0  # seconds for a process to end by itself
HANG_STEPS = 20  # slowest recent answers after which a process is hung
RECENT = 60  # pings that count as recent
PING_S, TICK_S = 1.0, 0.1
RELOADS = 5  # times that loading a model again may fail for want of memory
REPEATABLE = {"plan", "forget", "encode", "pieces", "ping"}  # calls that a new child may answer instead
PIECES = 4096  # pieces of a vocabulary that are kept here


@dataclass(frozen=True, slots=True)
class Isolation:
    """How an engine's process is watched and replaced.

    ``journal_bytes``     what the unfinished requests may take, each counted with its longest answer
    ``start_s``, ``load_s``  seconds that a start, and loading a model, may last
    ``hang_s``            a process is hung after so many seconds without an answer, or after 20 times its slowest
                          recent one, if that is longer
    ``first_pause_s``, ``longest_pause_s``  the wait before a new start: it doubles, until a process has served
    """

    journal_bytes: int = 64 << 20
    start_s: float = 60.0
    load_s: float = 900.0
    hang_s: float = 10.0
    first_pause_s: float = 0.1
    longest_pause_s: float = 5.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise ConfigError(f"{each.name} is {value!r}: give a number above 0")


@dataclass(slots=True)
class _Model:
    """A model that shall be loaded.

    ``there``: its number in the child that runs now, None while it has none.  ``deaths``: of children over loading it;
    ``failures``: to load it again in a row.
    """

    number: int
    options: ModelOptions
    info: ModelInfo
    there: int | None
    deaths: int = 0
    failures: int = 0


DEFAULTS = Isolation()


class RemoteVocabulary:
    """The tokenizer of a model in the child; pieces are kept, texts are encoded there.  Any thread may use it."""

    def __init__(self, engine: Engine, model: int) -> None:
        self._engine, self._model = engine, model
        self._pieces: dict[int, tuple[bytes, bool]] = {}

    def encode(self, text: str, *, special: bool, start: bool) -> list[int]:
        """Return the tokens of ``text``; see `backends.base.Vocabulary`."""
        found: list[int] = self._engine.call_model("encode", self._model, text, special, start)
        return found

    def piece(self, token: int) -> bytes:
        """Return the bytes that a token stands for."""
        return self._look(token)[0]

    def is_end(self, token: int) -> bool:
        """Tell whether the token ends an answer."""
        return self._look(token)[1]

    def matcher_tokenizer(self) -> Any:
        """Raise EngineFailed: forms are compiled where the engine is."""
        raise EngineFailed("forms are compiled in the engine's process")

    def _look(self, token: int) -> tuple[bytes, bool]:
        if token not in self._pieces:
            if len(self._pieces) >= PIECES:
                self._pieces.clear()
            (self._pieces[token],) = self._engine.call_model("pieces", self._model, [token])
        return self._pieces[token]


class Engine:
    """Runs models in a supervised child.  Arguments as those of `engine.Engine`, and the sizes of its arenas.

    ``deliver`` is called on a thread of ours.  ``changed`` is called without arguments when the state of the child has
    changed.
    """

    def __init__(
        self, arena: str | int, gpu_arena: str | int, deliver: Callable[[list[Event]], None], *, limit: int = 1024,
        isolation: Isolation = DEFAULTS, changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._arguments = (arena, gpu_arena, limit + DEATHS)
        self._tell, self._changed, self._rules = deliver, changed, isolation
        self._limit = limit
        self._tickets, self._numbers, self._calls = itertools.count(1), itertools.count(1), itertools.count(1)
        self._lock = threading.RLock()  # guards all below
        self._journal = Journal(isolation.journal_bytes)
        self._models: dict[int, _Model] = {}
        self._up = threading.Event()
        self._closed = False
        self._restarts, self._trouble, self._pause = 0, "", isolation.first_pause_s
        self._wake = threading.Event()
        self._events: queue.SimpleQueue[list[Event] | None] = queue.SimpleQueue()  # in their order
        self._lost: dict[str, str] = {}  # names of models that could not be loaded again, and why
        first: Future[Child] = Future()
        # A child ends with the thread that started it (PR_SET_PDEATHSIG), so one thread starts them all.
        self._supervisor = threading.Thread(
            target=self._supervise, args=(first,), name="arenite-supervisor", daemon=True
        )
        self._messenger = threading.Thread(target=self._deliver, name="arenite-messenger", daemon=True)
        self._supervisor.start()
        self._child = first.result()
        self._messenger.start()
        self._up.set()
        self._last: Status = self._call("status")

    # ---- any thread: the interface of the engine ----

    def next_ticket(self) -> int:
        """Return a number that no request had yet."""
        return next(self._tickets)

    def submit(self, ticket: int, model: int, request: Request, submitted: float | None = None) -> None:
        """Hand a request over.  Raises Busy when too many are unfinished, EngineClosed after `close`."""
        at = time.perf_counter() if submitted is None else submitted
        with self._lock:
            self._check_open()
            if len(self._journal) >= self._limit:
                raise Busy("too many requests are unfinished", RETRY_MS)
            known = self._models.get(model)
            if known is None:
                self._hand_over([Failed(ticket, EngineClosed("the model is not loaded any more"))])
                return
            self._send_entry(self._journal.add(ticket, model, request, at, known.info.context))

    def cancel(self, ticket: int) -> None:
        """Ask for the end of a request; unknown tickets are ignored."""
        with self._lock:
            entry = self._journal.get(ticket)
            if entry is not None and entry.sent:
                entry.cancelled = True  # if the child dies over it, the next one is not asked
                self._child.send("cancel", ticket)
            elif entry is not None:  # no engine has it at the moment
                self._end_here(entry, "cancelled")

    def load(self, options: ModelOptions) -> Loaded:
        """Load a model; it is loaded again after a death.  Raises as the engine does."""
        if options.path != NULL_MODEL:  # another child may be started from another folder
            options = replace(options, path=str(Path(options.path).absolute()))
        there, info, child = self._call("load", options, whose=True)
        with self._lock:
            if child is not self._child or not self._up.is_set():
                raise EngineFailed(f"the engine's process died over load: {self._trouble}")
            number = next(self._numbers)
            self._models[number] = _Model(number, options, info, there)
            self._lost.pop(options.name, None)
        return Loaded(number, info, RemoteVocabulary(self, number))

    def plan(self, options: ModelOptions) -> Plan:
        """Return what loading would take."""
        found: Plan = self._call("plan", options)
        return found

    def unload(self, model: int) -> None:
        """End a model's requests and free it.  An unknown number is ignored."""
        with self._lock:
            known = self._models.pop(model, None)
        if known is None:
            return
        try:
            with self._lock:
                future = self._ask_child(self._child, "unload", (known.there,)) if known.there is not None else None
            if future is not None:
                with contextlib.suppress(Died):  # and the model with it
                    future.result(self._rules.load_s)
        finally:
            with self._lock:  # what the child has ended is not in the journal any more
                for entry in self._journal:
                    if entry.model == model:
                        self._fail(entry, EngineClosed(f"model {known.info.name} was unloaded"))

    def status(self) -> Status:
        """Return a frozen picture; while no engine runs the last one, degraded, with the reason."""
        last = self._last
        if self._up.is_set():
            with contextlib.suppress(EngineFailed):  # it died over that
                last = self._call("status")
        with self._lock:
            self._last = last
            return self._with_engine(last)

    def forget(self, model: int, tokens: list[int]) -> None:
        """Drop what the cache remembers of sequences that begin with these tokens, or are a head of them."""
        self.call_model("forget", model, tokens)

    def stop(self) -> None:
        """Ask for the end and return at once."""
        with self._lock:
            self._closed = True
        self._wake.set()

    def close(self) -> None:
        """End all requests and the process.  Closing twice is harmless."""
        self.stop()
        for thread in (self._supervisor, self._messenger):
            if threading.current_thread() is not thread:
                thread.join()

    def call_model(self, name: str, model: int, *arguments: Any) -> Any:
        """Make a call about a model, by its number here."""

        def now() -> tuple[Any, ...]:
            known = self._models.get(model)
            if known is None or known.there is None:
                raise EngineClosed("the model is not loaded any more")
            return (known.there, *arguments)

        return self._call(name, now)

    # ---- calls ----

    def _call(self, name: str, *arguments: Any, timeout: float | None = None, whose: bool = False) -> Any:
        """Ask the child and wait for the answer; a repeatable call is made again if the child dies over it.

        ``whose``: return the child that answered as well.
        """
        attempts, timeout = DEATHS if name in REPEATABLE else 0, timeout or self._rules.load_s
        while True:
            child, future = self._ask(name, arguments)
            try:
                found = future.result(timeout)
            except FutureTimeout:
                raise EngineFailed(f"the engine's process did not answer {name} within {timeout:g} s") from None
            except Died:
                if not attempts:
                    raise EngineFailed(f"the engine's process died over {name}: {self._trouble}") from None
                attempts -= 1
            else:
                return (*found, child) if whose else found

    def _ask(self, name: str, arguments: tuple[Any, ...]) -> tuple[Child, Future[Any]]:
        while True:
            if not self._up.wait(self._rules.start_s + self._rules.load_s):
                raise EngineFailed(f"no engine could be started: {self._trouble}")
            with self._lock:
                self._check_open()
                if not self._up.is_set():  # it died just now
                    continue
                if len(arguments) == 1 and callable(arguments[0]):
                    arguments = arguments[0]()
                return self._child, self._ask_child(self._child, name, arguments)

    def _ask_child(self, child: Child, name: str, arguments: tuple[Any, ...]) -> Future[Any]:
        future: Future[Any] = Future()
        number = next(self._calls)
        child.calls[number] = name, future, time.monotonic()
        if child.gone.is_set():
            self._fail_calls(child)
        child.send("call", number, name, arguments)
        return future

    @staticmethod
    def _fail_calls(child: Child) -> None:
        calls, child.calls = child.calls, {}
        for _, future, _ in calls.values():
            with contextlib.suppress(InvalidStateError):
                future.set_exception(Died())

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosed("the runtime is closed: make a new one")

    # ---- the reader's thread ----

    def _on_gone(self, child: Child) -> None:
        """Let nobody take a dead child for a living one, from the moment that its socket is closed."""
        with self._lock:
            if child is getattr(self, "_child", None):
                self._up.clear()
            self._fail_calls(child)

    def _on_message(self, child: Child, message: tuple[Any, ...]) -> None:
        match message:
            case ("events", events):
                with self._lock:
                    if child is self._child:
                        now, child.served = time.perf_counter(), True
                        self._hand_over([e for event in events if (e := self._journal.note(event, now)) is not None])
            case ("answer" | "error" as kind, number, value):
                self._settle(child, kind, number, value)
            case ("ready",):
                child.ready.set_result(None)
            case ("failed", error):
                child.ready.set_exception(error)

    def _settle(self, child: Child, kind: str, number: int, value: Any) -> None:
        with self._lock:
            name, future, asked = child.calls.pop(number, ("", None, 0.0))
            if name == "ping" and kind == "error":  # its engine's thread has ended
                self._trouble = f"the engine's thread ended: {value}"
                child.kill()
            elif name == "ping":
                child.answers = [*child.answers[-RECENT:], time.monotonic() - asked]
        if future is not None:
            with contextlib.suppress(InvalidStateError):
                future.set_exception(value) if kind == "error" else future.set_result(value)

    def _hand_over(self, events: list[Event]) -> None:
        if events:
            self._events.put(events)

    def _deliver(self) -> None:
        while (events := self._events.get()) is not None:
            for event in events:
                try:
                    self._tell([event])
                except Exception:  # noqa: BLE001 - it is the follower's: nobody else's events must be lost over it
                    LOG.exception("whoever follows request %d failed", event.ticket)

    # ---- entries ----

    def _send_entry(self, entry: Entry) -> None:
        """Hand an entry to the child, if its model is loaded there."""
        there = self._models[entry.model].there if entry.model in self._models else None
        if self._up.is_set() and there is not None and not self._child.gone.is_set():
            entry.sent = True
            self._child.send("submit", entry.ticket, there, entry.continuation(), entry.submitted)

    def _end_here(self, entry: Entry, reason: Reason) -> None:
        now = time.perf_counter()
        first = entry.first_token or now
        usage = Usage(
            len(entry.request.tokens), len(entry.tokens), first - entry.submitted, now - entry.submitted,
            entry.request.sampling.seed or 0, entry.draws,
        )
        self._journal.drop(entry.ticket)
        self._hand_over([Finished(entry.ticket, reason, usage)])

    def _fail(self, entry: Entry, error: Error) -> None:
        self._journal.drop(entry.ticket)
        self._hand_over([Failed(entry.ticket, copy.copy(error))])

    # ---- the supervisor's thread ----

    def _start(self) -> Child:
        """Start a child and wait until it is ready.  Raises its error, or EngineFailed."""
        child = Child(self._arguments, self._on_message, self._on_gone)
        try:
            until = time.monotonic() + self._rules.start_s
            while not child.ready.done():
                if self._closed or (child.gone.is_set() and not child.ready.done()):
                    child.kill()
                    raise EngineFailed(f"the engine's process {child.fate()} before it was ready")
                if time.monotonic() > until:
                    raise EngineFailed(f"the engine's process was not ready within {self._rules.start_s:g} s")
                child.gone.wait(0.005)
            child.ready.result()
        except BaseException:
            child.close()
            raise
        return child

    def _supervise(self, first: Future[Child]) -> None:
        try:
            child = self._start()
        except BaseException as error:  # noqa: BLE001 - it is handed to the thread that waits for us
            first.set_exception(error)
            return
        first.set_result(child)
        self._child = child
        try:
            while not self._closed:
                self._look_after(self._child)
                self._wake.wait(TICK_S)
        finally:  # also over a bug of ours: nobody must wait for ever
            self._closed = True
            self._shut_down()

    def _look_after(self, child: Child) -> None:
        if child.gone.is_set() or self._hangs(child):
            self._replace(child)
            return
        with self._lock:
            asked = any(name == "ping" for name, _, _ in child.calls.values())
            if not asked and time.monotonic() - child.pinged >= PING_S:
                child.pinged = time.monotonic()
                self._ask_child(child, "ping", ())

    def _hangs(self, child: Child) -> bool:
        """Tell whether the child owes an answer for longer than it may; if so, it is killed."""
        now = time.monotonic()
        with self._lock:
            owed = [(name, now - asked) for name, _, asked in child.calls.values()]
            slowest = max(child.answers, default=0.0)
        loading = any(name in ("load", "unload", "plan") for name, _ in owed)
        bound = self._rules.load_s if loading else max(self._rules.hang_s, HANG_STEPS * slowest)
        late = max((seconds for name, seconds in owed if name == "ping"), default=0.0)
        if late <= bound:
            return False
        self._trouble = f"the engine stood still for {late:.1f} s"
        child.kill()
        child.gone.wait(CLOSE_S)
        return True

    def _replace(self, child: Child) -> None:
        """Bury a child, start another, load the models again, and send it what is unfinished."""
        self._bury(child)
        self._changed()
        if child.served:
            self._pause = self._rules.first_pause_s
        while not self._closed:
            self._rest(self._pause)
            self._pause = min(2 * self._pause, self._rules.longest_pause_s)
            fresh = None
            try:
                fresh = self._start()
                there = self._reload(fresh)
            except Exception as error:  # noqa: BLE001 - whatever it is (no descriptors, no memory): try again
                if fresh is not None:
                    fresh.close()
                what = f"it {fresh.fate()} while it loaded its models" if isinstance(error, Died) and fresh else error
                self._trouble = f"{self._trouble}; the next: {what}"[-500:]
                continue
            self._put_to_work(fresh, there)
            return

    def _bury(self, child: Child) -> None:
        """Take a dead child's work back; a request that was present at too many deaths ends, and a cancelled one."""
        child.close()
        with self._lock:
            self._up.clear()
            self._fail_calls(child)
            self._trouble = self._trouble or f"the engine's process {child.fate()}"
            for model in self._models.values():
                model.there = None
            for entry in self._journal:
                entry.deaths += entry.sent
                entry.sent = False
                if entry.cancelled:
                    self._end_here(entry, "cancelled")
                elif entry.model not in self._models:
                    self._fail(entry, EngineClosed("the model was unloaded"))
                elif entry.deaths >= DEATHS:
                    self._fail(entry, EngineFailed(
                        f"the engine died {DEATHS} times with this request under way ({self._trouble}): change it"
                    ))

    def _put_to_work(self, fresh: Child, there: dict[int, int]) -> None:
        with self._lock:
            self._child, self._restarts, self._trouble = fresh, self._restarts + 1, ""
            for number, loaded in there.items():
                if number in self._models:
                    self._models[number].there = loaded
                else:  # it was unloaded meanwhile
                    self._ask_child(fresh, "unload", (loaded,))
            if not fresh.gone.is_set():
                self._up.set()
                for entry in self._journal:
                    self._send_entry(entry)
        self._changed()

    def _rest(self, seconds: float) -> None:
        """Wait before the next start; deadlines strike meanwhile."""
        until = time.monotonic() + seconds
        while not self._closed and time.monotonic() < until:
            self._strike()
            self._wake.wait(min(TICK_S, seconds))

    def _strike(self) -> None:
        now = time.perf_counter()
        with self._lock:
            for entry in self._journal:
                deadline = entry.request.deadline
                if not entry.sent and deadline is not None and now > entry.submitted + deadline:
                    self._end_here(entry, "deadline")

    def _reload(self, child: Child) -> dict[int, int]:
        """Load every model into a new child; returns their numbers there.

        One that can not be loaded any more ends its requests, not the others.  Raises Died if the child does, and the
        error of a model that may yet be loaded: its memory may still be on its way back.
        """
        there = {}
        with self._lock:
            models = list(self._models.values())
        for model in models:
            future, until = self._ask_child(child, "load", (model.options,)), time.monotonic() + self._rules.load_s
            while not future.done():
                self._strike()
                with contextlib.suppress(FutureTimeout, Error, Died):
                    future.result(TICK_S)
                if self._closed or time.monotonic() > until:
                    child.kill()
                if child.gone.is_set():
                    self._fail_calls(child)
            try:
                there[model.number], model.info = future.result()
            except Died:
                model.deaths += 1
                if model.deaths >= DEATHS:
                    self._give_up(model, EngineFailed(f"the engine died {DEATHS} times over loading it"))
                raise
            except (MemoryPlanError, NoGPU, EngineError) as error:
                model.failures += 1
                if model.failures < RELOADS:
                    raise
                self._give_up(model, error)
            except Error as error:
                self._give_up(model, error)
            else:
                model.failures = 0
        return there

    def _give_up(self, model: _Model, error: Error) -> None:
        """Drop a model that can not be loaded again, and end its requests."""
        with self._lock:
            self._models.pop(model.number, None)
            self._lost[model.options.name] = str(error)
            for entry in self._journal:
                if entry.model == model.number:
                    self._fail(entry, error)

    def _shut_down(self) -> None:
        with self._lock:
            self._up.set()  # who waits for an engine hears that there will be none
            error = EngineClosed("the runtime is closed: make a new one")
            for entry in self._journal:
                self._fail(entry, error)
            self._child.send("stop")
        self._events.put(None)
        self._child.gone.wait(CLOSE_S)
        self._fail_calls(self._child)
        self._child.close()

    def _with_engine(self, status: Status) -> Status:
        """Add what is known of the process."""
        up, process = self._up.is_set() and not self._child.gone.is_set(), self._child.process
        memory, threads = machine.process_facts(process.pid) if up else (0, 0)
        engine = EngineStatus(process.pid if up else None, memory, threads, self._restarts, len(self._journal),
                              self._journal.used, self._journal.limit)
        if up and not self._lost:
            return replace(status, engine=engine)
        if up:
            name, why = next(iter(self._lost.items()))
            reason = f"model {name} could not be loaded again: {why}"
            return replace(status, state="degraded", reason=reason, engine=engine)
        trouble = self._trouble or f"the engine's process {self._child.fate()}"
        return replace(status, state="degraded", reason=f"restarting: {trouble}", engine=engine)
