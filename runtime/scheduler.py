"""Who runs and what a step computes.  Knows no thread; the only backend calls are the pool's, on sequences.

A step's batch, decode first, then prompts in chunks until the step's budget is used::

    row     0     1     2  3  4 | 5  6  7  8  ...            n-1
          seq a  seq b  seq c   | seq d: next chunk of its prompt
         a token each, or a run |            logits wanted only for the row that ends the prompt
         of forced tokens       |

Order (`Scheduler.urgency`): class, then deadline, then age.  A request that waited for ``aging_s`` seconds counts as
one class more urgent, also against being suspended later; who set no deadline is given one (`PATIENCE`) for the order.
So background work that has waited is served in turn with interactive requests, but keeps no control request waiting.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .errors import ContextOverflow, InvalidRequest
from .pace import Pace
from .pool import GROWTH, LEAST_SPILLED, Pool
from .sequence import NEVER, Sequence, State

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from .backends.base import Backend, ModelInfo, StepBatch
    from .config import ModelOptions
    from .request import Request

PATIENCE = (1, 3, 3)  # by class: the deadline, in agings, of who has none
LOOK_S = 0.05  # seconds after which waiting requests are looked at again though nothing has changed
STEADY_CHUNK = 64  # tokens of a prompt per step in deterministic mode
Urgency = tuple[int, float, float, int]


def check_fits(info: ModelInfo, request: Request, context: int | None = None) -> None:
    """Raise ContextOverflow, with the numbers, for a request that can never fit, InvalidRequest for a strange token."""
    strange = next((token for token in request.tokens if not 0 <= token < info.vocabulary), None)
    if strange is not None:
        raise InvalidRequest(f"token {strange} is not in the vocabulary: they run from 0 to {info.vocabulary - 1}")
    request.sampling.check_vocabulary(info.vocabulary)
    prompt, answer = len(request.tokens), request.max_tokens or 0
    context = info.context if context is None else context
    if prompt + max(1, answer) > context:
        raise ContextOverflow(prompt, answer, context)


class Scheduler:
    """Admits requests by urgency and fills the batch of each step.

    Nothing that runs fails for want of cells: it has them promised, or somebody less urgent is suspended for it.
    ``clock``: seconds, as `time.perf_counter`.
    """

    def __init__(
        self, backend: Backend, options: ModelOptions, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.info: ModelInfo = backend.info
        self.options, self.clock = options, clock
        steady = options.deterministic
        self.pool = Pool(
            backend, reuse=not steady and options.remember > 0, host_bytes=options.host_bytes,
            margin=self.info.slots if steady else 0,
        )
        self.context = min(self.info.context, self.pool.cells.total)
        self.pace = Pace(options.step_ms / 1e3, self.info.tile)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.preempted = 0
        self.prompt_rows = 0  # of the step that was planned last
        self._depth = 0  # tokens before the first of them
        self._all_moved = 0.0  # when no decoding sequence was held for a control request, the last time
        self._fillers: list[int] = []  # slots whose row only fills the step up
        self._answers: list[int] = []  # rows of its logits that count; empty: all
        self._look_at = 0.0

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute."""
        return bool(self.running) or any(sequence.ready for sequence in self.waiting)

    # ---- order ----

    def grade(self, sequence: Sequence, now: float) -> int:
        """Return the class of a sequence, aged if it waits: 0 control, 1 interactive, 2 background."""
        if sequence.state in (State.WAITING, State.SUSPENDED):
            return max(0, sequence.rank - (now - sequence.since >= self.options.aging_s))
        return sequence.grade

    def urgency(self, sequence: Sequence, now: float) -> Urgency:
        """Return a key that sorts the most urgent first."""
        patience = PATIENCE[sequence.rank] * self.options.aging_s
        due = min(sequence.due, sequence.submitted + patience)
        return self.grade(sequence, now), due, sequence.submitted, sequence.ticket

    # ---- coming and going ----

    def check(self, sequence: Sequence) -> None:
        """Raise ContextOverflow if a sequence can never fit."""
        check_fits(self.info, sequence.request, self.context)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence.  Raises ContextOverflow if it can never fit."""
        self.check(sequence)
        self.waiting.append(sequence)
        self.look()

    def look(self) -> None:
        """Look at the waiting ones before the next step: something has changed."""
        self._look_at = 0.0

    def estimate_s(self, request: Request, rank: int) -> float:
        """Return about how long a request of that rank will wait for its first token, as far as is known.

        Prompts at least as urgent are computed before it; if all places are taken by such ones, that is not counted.
        """
        rivals = [s for s in (*self.running, *self.waiting) if s.rank <= rank and s.state is not State.DECODE]
        ahead = sum(self.pace.prompt_s(sequence.pending) for sequence in rivals)
        rows = sum(s.state is State.DECODE and (s.rank == 0 or rank > 0) for s in self.running)
        return ahead + self.pace.prompt_s(len(request.tokens), rows)

    def admit(self) -> list[Sequence]:
        """Give waiting sequences their places, most urgent first; returns those that got one.

        One that does not fit lets others pass, until it has waited for ``aging_s``; then nobody of its class or below
        does any more.
        """
        now = self.clock()
        if not self.waiting or (self.running and now < self._look_at):
            return []
        self._look_at = now + LOOK_S
        placed, closed = [], len(PATIENCE)
        for sequence in sorted((s for s in self.waiting if s.ready), key=lambda s: self.urgency(s, now)):
            if sequence.rank >= closed or self._twin_runs(sequence):
                continue
            if self._place(sequence, now):
                placed.append(sequence)
            elif len(self.running) == self.info.streams or now - sequence.since >= self.options.aging_s:
                closed = min(closed, sequence.rank)
        return placed

    def _extra(self, sequence: Sequence) -> int:
        """Cells to promise beyond the tokens that are known."""
        left = sequence.left(self.context)
        return left if self.options.admission == "reserve" else min(left, GROWTH)

    def _twin_runs(self, sequence: Sequence) -> bool:
        """Tell whether somebody computes a head of this very prompt now: waiting is cheaper than doing it twice."""
        if not self.pool.remember or self.pool.whole or len(sequence.tokens) <= LEAST_SPILLED:
            return False
        start = sequence.tokens[:LEAST_SPILLED]
        twins = [s for s in self.running if s.state is State.PREFILL and s.tokens[:LEAST_SPILLED] == start]
        if not twins:
            return False
        gain = self.pool.head(sequence) + LEAST_SPILLED
        return len(sequence.tokens) > gain and any(
            len(twin.tokens) >= gain and twin.tokens[:gain] == sequence.tokens[:gain] for twin in twins
        )

    def _place(self, sequence: Sequence, now: float) -> bool:
        extra = self._extra(sequence)
        victims = sorted((s for s in self.running if s.grade > sequence.rank), key=lambda s: self.urgency(s, now))
        while len(self.running) >= self.info.streams or not self.pool.place(sequence, extra):
            if not victims or not self._worth_it(sequence, extra, victims):
                return False
            self.suspend(victims.pop())
        sequence.grade = self.grade(sequence, now)
        self.waiting.remove(sequence)
        self.running.append(sequence)
        sequence.move(State.DECODE if self._decoding(sequence) else State.PREFILL)
        return True

    @staticmethod
    def _decoding(sequence: Sequence) -> bool:
        return sequence.state is State.SUSPENDED and sequence.computed >= sequence.prompt_length

    def _worth_it(self, sequence: Sequence, extra: int, victims: list[Sequence]) -> bool:
        """Tell whether suspending all victims would make room; suspending some for nothing helps nobody."""
        cells = self.pool.cells
        staying = [s.tail for s in self.running if s not in victims]
        promised = sum(s.lease for s in self.running if s not in victims)
        return len(sequence.tokens) + extra <= cells.total - cells.held(staying) - promised

    def suspend(self, sequence: Sequence) -> None:
        """Take a running sequence's place away; it waits, with its age and what it has said."""
        self.pool.suspend(sequence)
        self.running.remove(sequence)
        sequence.move(State.SUSPENDED)
        sequence.since = self.clock()
        self.waiting.append(sequence)
        self.preempted += 1

    def retire(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Take a sequence out, wherever it stands."""
        (self.waiting if sequence.state in (State.WAITING, State.SUSPENDED) else self.running).remove(sequence)
        sequence.move(State.DONE)
        self.pool.finish(sequence, keep=keep)
        self.look()

    # ---- a step ----

    def _drop_fillers(self) -> None:
        for slot in self._fillers:
            self.pool.backend.drop(slot)
        self._fillers, self._answers = [], []

    def computed(self, sequence: Sequence) -> None:
        """Let others share a prompt that is all in the cache now, and look at those who waited for that."""
        self.pool.publish(sequence)
        self.look()

    def after(self, n: int, seconds: float) -> None:
        """Take note of what the planned step of ``n`` rows cost."""
        self._drop_fillers()
        self.pace.note(n - self.prompt_rows, self.prompt_rows, self._depth, seconds)

    def plan(self, batch: StepBatch) -> tuple[int, list[Sequence]]:
        """Fill the batch; returns its length and the sequences whose logits it asks for, in batch order.

        Counts what it planned as computed: if the step fails, its sequences must be retired.
        """
        self.prompt_rows = 0
        if self.options.deterministic:
            return self._plan_steady(batch)
        now = self.clock()
        self._secure(now)
        prompts = [sequence for sequence in self.running if sequence.state is State.PREFILL]
        decoding = [sequence for sequence in self.running if sequence.state is State.DECODE]
        held = self._held(prompts, now)
        if held:
            decoding = [sequence for sequence in decoding if sequence.rank == 0]
        n, wanted = self._decode_rows(decoding, batch)
        if prompts:
            prompts.sort(key=lambda s: self.urgency(s, now))
            self._depth = prompts[0].computed
            pending = sum(s.pending for s in prompts if not held or s.rank == 0)
            budget = self.pace.chunk(n, self.info.batch - n, pending, self._depth, hurry=held)
            for sequence in prompts:
                if budget <= 0:
                    break
                size = min(sequence.pending, budget)
                n = self._rows(sequence, size, batch, n, wanted)
                budget -= size
        return n, wanted

    def _held(self, prompts: list[Sequence], now: float) -> bool:
        """Tell whether who decodes below control is passed over in this step, for a control request's prompt.

        Not for longer than ``aging_s`` at a stretch.
        """
        if any(sequence.rank == 0 for sequence in prompts) and now - self._all_moved < self.options.aging_s:
            return True
        self._all_moved = now
        return False

    def _secure(self, now: float) -> None:
        """See to it that every decoding sequence has the cells of this step; the least urgent give way."""
        if all(s.lease >= s.pending for s in self.running if s.state is State.DECODE):
            return
        for sequence in sorted(self.running, key=lambda s: self.urgency(s, now)):
            while sequence.state is State.DECODE and not self.pool.ensure(
                sequence, sequence.pending, sequence.pending + sequence.left(self.context)
            ):
                self.suspend(max(self.running, key=lambda s: self.urgency(s, now)))

    def _decode_rows(self, decoding: list[Sequence], batch: StepBatch) -> tuple[int, list[Sequence]]:
        n = 0
        wanted: list[Sequence] = []
        room = self.info.batch - len(decoding)  # for what forced runs have beyond one token each
        single = all(sequence.pending == 1 for sequence in decoding)
        if single and decoding:
            n = len(decoding)
            batch.tokens[:n] = [sequence.tokens[-1] for sequence in decoding]
            batch.positions[:n] = [sequence.computed for sequence in decoding]
            batch.sequences[:n] = [sequence.slot for sequence in decoding]
            batch.outputs[:n] = 1
            for sequence in decoding:
                self.pool.advance(sequence, 1)
            return n, list(decoding)
        for sequence in decoding:
            size = min(sequence.pending, 1 + room)
            room -= size - 1
            n = self._rows(sequence, size, batch, n, wanted)
        return n, wanted

    def _rows(self, sequence: Sequence, size: int, batch: StepBatch, at: int, wanted: list[Sequence]) -> int:
        """Put the next ``size`` tokens of a sequence into the batch; returns where the next row goes."""
        first, end = sequence.computed, at + size
        batch.tokens[at:end] = sequence.tokens[first:first + size]
        batch.positions[at:end] = range(first, first + size)
        batch.sequences[at:end] = sequence.slot
        batch.outputs[at:end] = 0
        self.pool.advance(sequence, size)
        if sequence.state is State.PREFILL:
            self.prompt_rows += size
        if not sequence.pending:
            batch.outputs[end - 1] = 1
            wanted.append(sequence)
        return end

    def _plan_steady(self, batch: StepBatch) -> tuple[int, list[Sequence]]:
        """Plan a step whose shape no neighbour changes: one prompt's chunk alone, or all streams' rows.

        Streams that have nothing to say get a row that means nothing, and is dropped after the step.
        """
        now = self.clock()
        self._drop_fillers()  # those of a step that failed
        prompts = [sequence for sequence in self.running if sequence.state is State.PREFILL]
        wanted: list[Sequence] = []
        if prompts:
            sequence = min(prompts, key=lambda s: self.urgency(s, now))
            size = min(sequence.pending, STEADY_CHUNK - sequence.computed % STEADY_CHUNK, self.info.batch)
            return self._rows(sequence, size, batch, 0, wanted), wanted
        self._secure(now)
        decoding = {sequence.slot: sequence for sequence in self.running if sequence.state is State.DECODE}
        if not decoding:
            return 0, wanted
        for slot in range(self.info.slots):  # in this order libllama computes them as one batch
            if slot in decoding:
                self._rows(decoding[slot], 1, batch, slot, wanted)
            else:
                batch.tokens[slot], batch.positions[slot], batch.sequences[slot] = 0, 0, slot
                self._fillers.append(slot)
            batch.outputs[slot] = 1
        self._answers = [slot for slot, sequence in decoding.items() if not sequence.pending]
        self._answers.sort()
        return self.info.slots, wanted

    def answers(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the rows of a step's logits that belong to the sequences that asked for them."""
        return logits[self._answers] if self._answers else logits

    @property
    def next_due(self) -> float:
        """The nearest deadline of all, or `NEVER`."""
        return min((s.due for s in (*self.running, *self.waiting)), default=NEVER)
