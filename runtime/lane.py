"""One loaded model at work: its backend, its scheduler, and a step on one screen: plan, decode, commit."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from .errors import EngineError, Error
from .events import Accepted, Event, Failed, Finished, Progress, Reason
from .scheduler import Scheduler
from .sequence import Sequence, State
from .stats import Counters, ModelStatus

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .backends.base import Backend
    from .request import Request


class Lane:
    """Everything of one model that belongs to the engine's thread.  ``events`` collects what a step has to say."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.scheduler = Scheduler(backend.info)
        self.counters = Counters()
        self.events: list[Event] = []
        self._sequences: dict[int, Sequence] = {}

    def submit(self, ticket: int, request: Request, submitted: float) -> None:
        """Queue a request that was submitted at that `time.perf_counter`, or refuse it."""
        try:
            sequence = Sequence.begin(ticket, request, submitted)
            self.scheduler.add(sequence)
        except Error as error:
            self.events.append(Failed(ticket, error))
            return
        self._sequences[ticket] = sequence
        self.counters.requests += 1
        self.events.append(Accepted(ticket))

    def cancel(self, ticket: int) -> None:
        """End a request between two steps; its slot is free before anybody hears of it."""
        if sequence := self._sequences.get(ticket):
            self._finish(sequence, "cancelled")

    def step(self) -> float:
        """Compute one batch: plan, decode, commit.  Returns the seconds that the backend took."""
        self.scheduler.admit()
        n, wanted = self.scheduler.plan(self.backend.batch)
        start = time.perf_counter()
        try:
            logits = self.backend.decode(n)
        except EngineError as error:
            self._fail_running(error)
            return time.perf_counter() - start
        decode_s = time.perf_counter() - start
        decoding = sum(sequence.state is State.DECODE for sequence in wanted)
        self._commit(wanted, logits)
        counters = self.counters
        counters.steps += 1
        counters.prompt_tokens += n - decoding
        counters.decode_s += decode_s
        return decode_s

    def _commit(self, wanted: list[Sequence], logits: NDArray[np.float32]) -> None:
        """Choose a token for each row and move each sequence along."""
        plain = all(sequence.request.sampling.greedy and not sequence.request.sampling.penalised
                    for sequence in wanted)
        best = logits.argmax(axis=1) if plain and wanted else None
        if best is not None and not np.isfinite(logits[np.arange(len(wanted)), best]).all():
            best = None  # one by one, so that only the sequence at fault fails
        chosen = None if best is None else best.tolist()
        for row, sequence in enumerate(wanted):
            if sequence.state is State.PREFILL:
                sequence.move(State.DECODE)
            try:
                token = chosen[row] if chosen else sequence.sampler.choose(logits[row], sequence.tokens)
                self._accept(sequence, token)
            except EngineError as error:
                self._fail(sequence, error)

    def _accept(self, sequence: Sequence, token: int) -> None:
        request = sequence.request
        if self.backend.vocabulary.is_end(token) and not request.ignore_end:
            self._finish(sequence, "stop")
            return
        sequence.append(token)
        self.counters.answer_tokens += 1
        text = sequence.text.push(self.backend.vocabulary.piece(token))
        self.events.append(Progress(sequence.ticket, (token,), text))
        full = len(sequence.tokens) >= self.backend.info.context
        if sequence.text.stopped:
            self._finish(sequence, "stop")
        elif full or sequence.answer_length == request.max_tokens:
            self._finish(sequence, "length")

    def _finish(self, sequence: Sequence, reason: Reason) -> None:
        if rest := sequence.text.finish():
            self.events.append(Progress(sequence.ticket, (), rest))
        self._retire(sequence, Finished(sequence.ticket, reason, sequence.usage()))

    def _fail(self, sequence: Sequence, error: Error) -> None:
        self.counters.failed += 1
        self._retire(sequence, Failed(sequence.ticket, error))

    def _fail_running(self, error: Error) -> None:
        """End everything that runs: the backend's memory can not be trusted after a failed step."""
        for sequence in list(self.scheduler.running):
            self._fail(sequence, error)

    def _retire(self, sequence: Sequence, end: Finished | Failed) -> None:
        """Free slot and cells.  The end is noted first, so that a bug below loses none; it goes out after the step."""
        del self._sequences[sequence.ticket]
        self.events.append(end)
        slot = self.scheduler.retire(sequence)
        if slot is not None:
            self.backend.drop(slot)

    def close(self, error: Error) -> None:
        """End every request with ``error`` and free the model; asks neither scheduler nor backend about them."""
        self.events += [Failed(ticket, error) for ticket in self._sequences]
        self._sequences.clear()
        self.backend.close()

    def status(self) -> ModelStatus:
        """Return a frozen picture of the lane."""
        counters = Counters(*(getattr(self.counters, name) for name in Counters.__slots__))
        return ModelStatus(
            self.backend.info, self.backend.plan, self.backend.memory, len(self.scheduler.running),
            len(self.scheduler.waiting), self.scheduler.free_cells, counters,
        )


