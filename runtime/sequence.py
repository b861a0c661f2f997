"""One request on its way through the engine: its tokens, its place, and the states it may take."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum

from .errors import EngineFailed
from .events import Usage
from .request import Request  # noqa: TC001 - dataclass fields are read at run time
from .sampling import Sampler
from .text import TextAssembler


class State(Enum):
    """Where a sequence stands."""

    WAITING = "waiting"  # accepted; no slot yet
    PREFILL = "prefill"  # has a slot and cells; its prompt is being computed
    DECODE = "decode"  # one token per step
    DONE = "done"  # slot and cells are free again


# Every legal move; `Sequence.move` allows no other, and docs/engine.md shows this table.
MOVES: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.PREFILL, State.DONE}),
    State.PREFILL: frozenset({State.DECODE, State.DONE}),
    State.DECODE: frozenset({State.DONE}),
    State.DONE: frozenset(),
}


NO_SLOT = -1


@dataclass(slots=True, eq=False)
class Sequence:
    """The engine's record of one request.

    ``tokens``: prompt and answer.  ``computed``: how many of them are in the KV cache; the rest is to be computed.
    ``cells``: KV cells that it holds.  ``slot``: the backend's sequence number while it has one, else `NO_SLOT`.
    """

    ticket: int
    request: Request
    tokens: list[int]
    sampler: Sampler
    text: TextAssembler
    submitted: float
    state: State = State.WAITING
    slot: int = NO_SLOT
    computed: int = 0
    cells: int = 0
    first_token: float | None = None

    @classmethod
    def begin(cls, ticket: int, request: Request, submitted: float | None = None) -> Sequence:
        """Make the record of a request that was submitted at that `time.perf_counter` (default: now)."""
        at = time.perf_counter() if submitted is None else submitted
        sampler = Sampler(request.sampling)
        return cls(ticket, request, list(request.tokens), sampler, TextAssembler(request.stop), at)

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

    def append(self, token: int) -> None:
        """Add a token of the answer."""
        if self.first_token is None:
            self.first_token = time.perf_counter()
        self.tokens.append(token)

    def usage(self) -> Usage:
        """Sum up what the request took until now."""
        now = time.perf_counter()
        first = self.first_token if self.first_token is not None else now
        return Usage(
            self.prompt_length, self.answer_length, first - self.submitted, now - self.submitted,
            self.sampler.seed, self.sampler.draws,
        )
