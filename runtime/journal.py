"""What an engine was asked and what it has committed, kept by whoever outlives it.

An entry holds all that another engine needs to go on where the first one stood: the request with its actual seed,
every committed token (sent as text or still held back) and the number of random draws.  The journal is bounded in
bytes; an entry is charged with the longest answer it may get, so that a running one is never dropped.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from .errors import Busy
from .events import Accepted, Event, Finished, Progress, Started
from .request import Request, Resume
from .sampling import real_seed

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN_BYTES, ANSWER_BYTES = 36, 5  # of a prompt, a tuple of Python's numbers; of an answer, an array that grows
ENTRY_BYTES = 4096  # what an entry takes beside its tokens and its form
DEATHS = 2  # engine deaths after which a request that was present at each is given up


@dataclass(slots=True)
class Entry:
    """One unfinished request.

    ``sent``     whether the engine that runs now has it; ``deaths``: of engines that had it
    ``accepted``, ``started``  whether its owner has heard so; ``cancelled``: whether its owner wants no more
    ``tokens``, ``draws``      of the answer, committed so far
    """

    ticket: int
    model: int
    request: Request
    submitted: float
    cost: int
    sent: bool = False
    deaths: int = 0
    accepted: bool = False
    started: bool = False
    cancelled: bool = False
    tokens: array[int] = field(default_factory=lambda: array("i"))
    draws: int = 0
    first_token: float | None = None

    def continuation(self) -> Request:
        """Return the request that gives the rest of the answer, word for word.

        Once it was accepted its key has done its work: it waits for others, and nobody is superseded twice.
        """
        if not self.accepted:
            return self.request
        return replace(self.request, policy="queue", resume=Resume(tuple(self.tokens), self.draws))


class Journal:
    """The unfinished requests, oldest first.  Not thread-safe: its owner serialises."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit, self.used = limit_bytes, 0
        self._entries: dict[int, Entry] = {}

    def add(self, ticket: int, model: int, request: Request, submitted: float, context: int) -> Entry:
        """Note a request, with a real seed in place of a random one.  Raises Busy if its answer may not fit."""
        answer = min(request.max_tokens or context, max(0, context - len(request.tokens)))
        form = len(request.form.text) if request.form is not None else 0
        cost = ENTRY_BYTES + TOKEN_BYTES * len(request.tokens) + ANSWER_BYTES * answer + form
        if self.used + cost > self.limit:
            raise Busy(f"the journal of unfinished requests is full ({self.limit:,} bytes)", 500)
        sampling = replace(request.sampling, seed=real_seed(request.sampling.seed))
        entry = Entry(ticket, model, replace(request, sampling=sampling), submitted, cost)
        self._entries[ticket] = entry
        self.used += cost
        return entry

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, ticket: int) -> Entry | None:
        """Return an unfinished request, None if it has ended."""
        return self._entries.get(ticket)

    def drop(self, ticket: int) -> None:
        """Forget a request that has ended."""
        if entry := self._entries.pop(ticket, None):
            self.used -= entry.cost

    def note(self, event: Event, now: float) -> Event | None:
        """Take an event of the engine; returns what its owner has to hear of it, None if nothing new."""
        entry = self._entries.get(event.ticket)
        if entry is None:
            return None
        match event:
            case Accepted():
                fresh, entry.accepted = not entry.accepted, True
                return event if fresh else None
            case Started():
                fresh, entry.started = not entry.started, True
                return event if fresh else None
            case Progress():
                entry.tokens.extend(event.tokens)
                entry.draws = event.draws
                if event.tokens and entry.first_token is None:
                    entry.first_token = now
                return event
            case Finished():
                self.drop(event.ticket)
                if entry.deaths and entry.first_token is not None:  # the last engine knows only its own first token
                    first = entry.first_token - entry.submitted
                    return replace(event, usage=replace(event.usage, first_token_s=first))
                return event
            case _:
                self.drop(event.ticket)
                return event
