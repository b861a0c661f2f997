"""Who runs and what a step computes.  Arithmetic only: it calls no backend and knows no thread.

A step's batch, decode first, then prompts in chunks until the budget is used::

    row     0     1     2   | 3  4  5  6  ...            n-1
          seq a  seq b seq c| seq d: next chunk of its prompt
            one token each  |            logits wanted only for the row that ends the prompt
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from .errors import ContextOverflow, InvalidRequest
from .sequence import NO_SLOT, Sequence, State

if TYPE_CHECKING:
    from .backends.base import ModelInfo, StepBatch
    from .request import Request


def check_fits(info: ModelInfo, request: Request) -> None:
    """Raise ContextOverflow, with the numbers, for a request that can never fit, InvalidRequest for a strange token."""
    strange = next((token for token in request.tokens if not 0 <= token < info.vocabulary), None)
    if strange is not None:
        raise InvalidRequest(f"token {strange} is not in the vocabulary: they run from 0 to {info.vocabulary - 1}")
    prompt, answer = len(request.tokens), request.max_tokens or 0
    if prompt + max(1, answer) > info.context:
        raise ContextOverflow(prompt, answer, info.context)


def cells_for(info: ModelInfo, request: Request) -> int:
    """KV cells that a request reserves: prompt and the longest answer it may give."""
    if request.max_tokens is None:
        return info.context
    return len(request.tokens) + request.max_tokens


class Scheduler:
    """Admits requests in the order they came and fills the batch of each step.

    A request is admitted when a slot and the cells for its whole prompt and answer are free, so nothing that runs
    can fail for want of cells.
    """

    def __init__(self, info: ModelInfo) -> None:
        self.info = info
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._slots = list(range(info.streams))[::-1]
        self.free_cells = info.cells

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute."""
        return bool(self.running or self.waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence.  Raises ContextOverflow if it can never fit."""
        check_fits(self.info, sequence.request)
        self.waiting.append(sequence)

    def admit(self) -> None:
        """Give waiting sequences their slots and cells, first come first served."""
        while self.waiting and self._slots:
            cells = cells_for(self.info, self.waiting[0].request)
            if cells > self.free_cells:
                return
            sequence = self.waiting.popleft()
            sequence.cells = cells
            self.free_cells -= cells
            sequence.slot = self._slots.pop()
            sequence.move(State.PREFILL)
            self.running.append(sequence)

    def retire(self, sequence: Sequence) -> int | None:
        """Take a sequence out, wherever it stands; returns the slot that the backend must drop, if it had one."""
        slot, sequence.slot = sequence.slot, NO_SLOT
        if sequence.state is State.WAITING:
            self.waiting.remove(sequence)
        else:
            self.running.remove(sequence)
            self.free_cells += sequence.cells
        sequence.move(State.DONE)
        if slot == NO_SLOT:
            return None
        self._slots.append(slot)
        return slot

    def plan(self, batch: StepBatch) -> tuple[int, list[Sequence]]:
        """Fill the batch; returns its length and the sequences whose logits it asks for, in batch order.

        Counts what it planned as computed: if the step fails, its sequences must be retired.
        """
        wanted = [sequence for sequence in self.running if sequence.state is State.DECODE]
        n = len(wanted)
        if n:
            batch.tokens[:n] = [sequence.tokens[-1] for sequence in wanted]
            batch.positions[:n] = [sequence.computed for sequence in wanted]
            batch.sequences[:n] = [sequence.slot for sequence in wanted]
            batch.outputs[:n] = 1
            for sequence in wanted:
                sequence.computed += 1
        for sequence in self.running:
            if sequence.state is State.PREFILL and n < self.info.batch:
                n = self._chunk(sequence, batch, n)
                if sequence.computed == sequence.prompt_length:
                    wanted.append(sequence)
        return n, wanted

    def _chunk(self, sequence: Sequence, batch: StepBatch, at: int) -> int:
        size = min(sequence.prompt_length - sequence.computed, self.info.batch - at)
        first, end = sequence.computed, at + size
        batch.tokens[at:end] = sequence.tokens[first:first + size]
        batch.positions[at:end] = range(first, first + size)
        batch.sequences[at:end] = sequence.slot
        batch.outputs[at:end] = 0
        sequence.computed += size
        if sequence.computed == sequence.prompt_length:
            batch.outputs[end - 1] = 1
        return end
