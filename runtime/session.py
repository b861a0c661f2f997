"""Conversations with a memory: what was said is kept for a time, and its keys and values stay warm in the cache.

A turn is the session's whole conversation with the new words behind it; the engine finds what it computed before
(`prefix`), so the second turn starts at once.
"""

from __future__ import annotations

import secrets
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from .chat import check_messages
from .errors import Busy, ConfigError, InvalidRequest, UnknownSession

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .chat import Message
    from .ticket import Ticket

MAX_SESSIONS = 1024
RETRY_MS = 200


class _Answers(Protocol):
    """What a session needs of a model."""

    def submit(self, prompt: Any, **settings: Any) -> Ticket: ...

    def tokenize(self, prompt: Any) -> list[int]: ...

    def forget(self, tokens: Sequence[int]) -> None: ...


class Session:
    """One conversation.  Any thread may use it; one turn at a time.

    ``ttl``: seconds after the last use after which it is forgotten.  ``max_turns``: older turns are left out of what
    the model sees; None keeps all, until the context refuses more.  ``system``: what stands before all turns.
    """

    def __init__(
        self, model: _Answers, name: str, *, ttl: float = 600.0, max_turns: int | None = None, system: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if isinstance(ttl, bool) or not isinstance(ttl, (int, float)) or not ttl > 0:
            raise ConfigError(f"ttl is {ttl!r}: give seconds above 0")
        if max_turns is not None and (isinstance(max_turns, bool) or not isinstance(max_turns, int) or max_turns < 1):
            raise ConfigError(f"max_turns is {max_turns!r}: give a whole number from 1, or None")
        self.name, self.ttl, self.max_turns = name, ttl, max_turns
        self._model, self._clock = model, clock
        self._system: list[Message] = [{"role": "system", "content": system}] if system else []
        self._turns: list[tuple[Message, Message]] = []
        self._lock = threading.Lock()
        self._running: Ticket | None = None
        self._used = clock()
        self._gone = False

    @property
    def messages(self) -> list[Message]:
        """What the model would see before the next words, oldest first."""
        with self._lock:
            return self._seen()

    @property
    def expired(self) -> bool:
        """Whether it was forgotten, or its time has passed; a turn under way keeps it."""
        return self._gone or (self._running is None and self._clock() - self._used > self.ttl)

    def submit(self, words: str, **settings: Any) -> Ticket:
        """Say something; the turn is remembered when its answer is whole.

        Raises Busy while a turn is under way, UnknownSession after `forget`, and what `Model.submit` raises.
        """
        if not isinstance(words, str):
            raise InvalidRequest("a session's next turn is one text: it has the conversation itself")
        asked: Message = {"role": "user", "content": words}
        with self._lock:
            if self._gone:
                raise UnknownSession(f"session {self.name!r} was forgotten: open it again")
            if self._running is not None:
                raise Busy(f"session {self.name!r} has a turn under way", RETRY_MS)
            ticket = self._running = self._model.submit(check_messages([*self._seen(), asked]), **settings)
            self._used = self._clock()
        ticket.on_done(lambda ended: self._remember(asked, ended))
        return ticket

    def generate(self, words: str, **settings: Any) -> Any:
        """Say something and wait for the answer."""
        return self.submit(words, **settings).result()

    def stream(self, words: str, **settings: Any) -> Ticket:
        """Say something; iterate over the ticket for the answer's text."""
        return self.submit(words, **settings)

    def _seen(self) -> list[Message]:
        turns = self._turns if self.max_turns is None else self._turns[-self.max_turns:]
        return [*self._system, *(message for turn in turns for message in turn)]

    def _remember(self, asked: Message, ended: Ticket) -> None:
        with self._lock:
            self._running = None
            self._used = self._clock()
            if ended.state == "succeeded" and not self._gone:
                self._turns.append((asked, {"role": "assistant", "content": ended.partial()}))
                if self.max_turns is not None:
                    del self._turns[: -self.max_turns]

    def fork(self, name: str = "") -> Session:
        """Return a new session that begins with this one's turns; it is its caller's own, not in the model's list."""
        twin = Session(
            self._model, name or secrets.token_hex(4), ttl=self.ttl, max_turns=self.max_turns, clock=self._clock
        )
        with self._lock:
            twin._system, twin._turns = list(self._system), list(self._turns)
        return twin

    def forget(self) -> None:
        """Drop the conversation, and what the cache remembers of it.  A turn under way is cancelled."""
        with self._lock:
            running, seen, self._gone = self._running, self._seen(), True
            self._turns.clear()
        if running is not None:
            running.cancel(wait=True)
        if seen[len(self._system):]:
            self._model.forget(self._model.tokenize(seen))


class Sessions:
    """A model's sessions by name; those whose time has passed are forgotten when others are asked for."""

    def __init__(self, model: _Answers, clock: Callable[[], float] = time.monotonic) -> None:
        self._model, self._clock = model, clock
        self._lock = threading.Lock()
        self._known: dict[str, Session] = {}

    def open(self, name: str = "", **settings: Any) -> Session:
        """Return the session of that name, made with these settings if there is none; Busy if there are too many."""
        with self._lock:
            self._sweep()
            if (known := self._known.get(name)) is not None:
                return known
            if len(self._known) >= MAX_SESSIONS:
                raise Busy(f"{MAX_SESSIONS} sessions are open: forget one", RETRY_MS)
            made = Session(self._model, name or secrets.token_hex(4), clock=self._clock, **settings)
            self._known[made.name] = made
            return made

    def get(self, name: str) -> Session:
        """Return a session; UnknownSession if there is none, or its time has passed."""
        with self._lock:
            self._sweep()
            if (known := self._known.get(name)) is None:
                raise UnknownSession(f"there is no session {name!r}: open it first, or again")
            return known

    def forget(self, name: str) -> None:
        """Forget a session.  Raises UnknownSession if there is none."""
        self.get(name).forget()
        with self._lock:
            self._known.pop(name, None)

    def __len__(self) -> int:
        with self._lock:
            self._sweep()
            return len(self._known)

    def _sweep(self) -> None:
        for name in [name for name, session in self._known.items() if session.expired]:
            del self._known[name]
