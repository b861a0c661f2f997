"""One request on its way through the engine: its tokens, its place, and the states it may take."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from .errors import EngineFailed
from .events import Usage
from .request import PRIORITIES, Request, Resume
from .sampling import Sampler
from .text import TextAssembler

if TYPE_CHECKING:
    from .backends.base import Saved
    from .cells import Segment
    from .grammar import Matcher


class State(Enum):
    """Where a sequence stands."""

    WAITING = "waiting"  # accepted; nothing of it is in the cache
    PREFILL = "prefill"  # has a slot and cells; its tokens are being computed
    DECODE = "decode"  # a token, or a forced run of tokens, per step
    SUSPENDED = "suspended"  # gave its place to a more urgent one; waits again, with what it has said
    DONE = "done"  # slot and cells are free again


# Every legal move; `Sequence.move` allows no other, and docs/engine.md shows this table.
MOVES: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.PREFILL, State.DONE}),
    State.PREFILL: frozenset({State.DECODE, State.SUSPENDED, State.DONE}),
    State.DECODE: frozenset({State.SUSPENDED, State.DONE}),
    State.SUSPENDED: frozenset({State.PREFILL, State.DECODE, State.DONE}),
    State.DONE: frozenset(),
}

NO_SLOT = -1
NEVER = float("inf")


@dataclass(slots=True, eq=False)
class Sequence:
    """The engine's record of one request.

    ``tokens``     prompt and answer
    ``computed``   how many of them are in the KV cache (or saved on the host); the rest is to be computed
    ``rank``       0 control, 1 interactive, 2 background; ``grade``: the same, aged, when it got its place
    ``since``      when it began to wait, the last time
    ``due``        `time.perf_counter` of its deadline, or `NEVER`
    ``slot``       the backend's sequence number while it has one, else `NO_SLOT`
    ``tail``       its chain of KV cells; ``lease``: cells promised to it and not used yet
    ``saved``      the copy of its own cells on the host while it is suspended
    ``cached``     tokens of the prompt that were known when it got its place
    ``matcher``    what its form allows next; ``compiling``: the form is not ready yet
    ``behind``     an earlier request with the same key that it has to wait for
    """

    ticket: int
    request: Request
    tokens: list[int]
    sampler: Sampler
    text: TextAssembler
    submitted: float
    since: float
    rank: int = 1
    grade: int = 1
    due: float = NEVER
    state: State = State.WAITING
    slot: int = NO_SLOT
    computed: int = 0
    tail: Segment | None = None
    lease: int = 0
    saved: Saved | None = None
    cached: int = 0
    started: bool = False
    first_token: float | None = None
    matcher: Matcher | None = None
    compiling: bool = False
    behind: Sequence | None = None

    @classmethod
    def begin(cls, ticket: int, request: Request, submitted: float | None = None) -> Sequence:
        """Make the record of a request that was submitted at that `time.perf_counter` (default: now)."""
        at = time.perf_counter() if submitted is None else submitted
        said = request.resume or Resume()
        return cls(
            ticket, request, [*request.tokens, *said.tokens], Sampler(request.sampling, said.draws),
            TextAssembler(request.stop), at, at,
            rank=PRIORITIES.index(request.priority),
            due=NEVER if request.deadline is None else at + request.deadline,
            compiling=request.form is not None,
        )

    def move(self, state: State) -> None:
        """Go to another state; a move that is not in the table is a bug and raises EngineFailed."""
        if state not in MOVES[self.state]:
            raise EngineFailed(f"request {self.ticket} can not go from {self.state.value} to {state.value}")
        self.state = state

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.tokens)

    @property
    def answer_length(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - len(self.request.tokens)

    @property
    def pending(self) -> int:
        """Tokens that are not in the cache yet."""
        return len(self.tokens) - self.computed

    @property
    def ready(self) -> bool:
        """Whether nothing but room keeps it waiting."""
        return not self.compiling and self.behind is None

    def left(self, context: int) -> int:
        """Return how many more tokens its answer may have in a context of that many."""
        room = context - len(self.tokens)
        most = self.request.max_tokens
        return room if most is None else min(room, most - self.answer_length)

    def append(self, token: int, now: float) -> None:
        """Add a token of the answer."""
        if self.first_token is None:
            self.first_token = now
        self.tokens.append(token)

    def usage(self, now: float) -> Usage:
        """Sum up what the request took until now."""
        first = self.first_token if self.first_token is not None else now
        return Usage(
            self.prompt_length, self.answer_length, first - self.submitted, now - self.submitted,
            self.sampler.seed, self.sampler.draws, min(self.cached, self.prompt_length),
        )
