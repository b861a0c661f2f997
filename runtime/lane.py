"""One loaded model at work: its backend, its scheduler, and a step on one screen: plan, decode, commit."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from .errors import DeadlineMissed, EngineError, EngineFailed, Error, KeyTaken
from .events import Accepted, Event, Failed, Finished, Progress, Reason, Started
from .grammar import Compiler
from .scheduler import Scheduler
from .sequence import NEVER, Sequence, State
from .stats import Counters, ModelStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from .backends.base import Backend
    from .config import ModelOptions
    from .grammar import Grammar
    from .request import Request
    from .sampling import Choice, TokenLogprob

LEAST_RETRY_S, MOST_RETRY_S = 0.05, 10.0
FOLLOW = 0.1


class Lane:
    """Everything of one model that belongs to the engine's thread.  ``events`` collects what a step has to say."""

    def __init__(
        self, backend: Backend, options: ModelOptions, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.backend, self.clock = backend, clock
        self.scheduler = Scheduler(backend, options, clock)
        self.compiler = Compiler(backend.vocabulary)
        self.counters = Counters()
        self.events: list[Event] = []
        self.stepped = 0.0  # when, for turns among models
        self._sequences: dict[int, Sequence] = {}
        self._keys: dict[str, list[Sequence]] = {}
        self._closing = False
        self._next_due = NEVER
        self._service_s = 0.0  # what a request takes, as a moving average

    def urgency(self, now: float) -> tuple[int, float, float]:
        """Return a key that sorts the lane that should step first to the front; some sequence must be able to run."""
        scheduler = self.scheduler
        able = [*scheduler.running, *(sequence for sequence in scheduler.waiting if sequence.ready)]
        passed_over = now - self.stepped >= scheduler.options.aging_s
        grade = min(scheduler.grade(sequence, now) for sequence in able) - passed_over
        return grade, min(sequence.due for sequence in able), self.stepped

    def interrupt(self) -> None:
        """Cut the running step short, for the end.  Any thread."""
        self._closing = True
        self.backend.interrupt()

    # ---- requests ----

    def submit(self, ticket: int, request: Request, submitted: float) -> bool:
        """Queue a request that was submitted at that `time.perf_counter`; false if it is refused."""
        try:
            sequence = Sequence.begin(ticket, request, submitted)
            self._replay(sequence)
            self._check_deadline(sequence)
            self._take_key(sequence)
            self.scheduler.add(sequence)
        except Error as error:
            self.events.append(Failed(ticket, error))
            return False
        self._sequences[ticket] = sequence
        if request.key is not None:
            self._keys.setdefault(request.key, []).append(sequence)
        self._next_due = min(self._next_due, sequence.due)
        self.counters.requests += 1
        self.events.append(Accepted(ticket))
        if sequence.request.resume is not None and (reason := self._over(sequence)):
            self._finish(sequence, reason)
            return False
        return True

    def _replay(self, sequence: Sequence) -> None:
        """Bring the text of a resumed answer to where it stood; what was shown then is not shown again."""
        if (said := sequence.request.resume) is not None:
            for token in said.tokens:
                sequence.text.push(self.backend.vocabulary.piece(token))

    def _over(self, sequence: Sequence) -> Reason | None:
        """Return why an answer can not go on, None if it can."""
        if sequence.text.stopped:
            return "stop"
        full = len(sequence.tokens) >= self.scheduler.context
        return "length" if full or sequence.answer_length == sequence.request.max_tokens else None

    def _check_deadline(self, sequence: Sequence) -> None:
        deadline = sequence.request.deadline
        if deadline is not None and sequence.request.resume is None:  # what was accepted once runs to its deadline
            estimate = self.scheduler.estimate_s(sequence.request, sequence.rank)
            if self.clock() + estimate > sequence.due:
                raise DeadlineMissed(deadline, estimate)

    def _take_key(self, sequence: Sequence) -> None:
        """Apply the policy of a request to unfinished ones with the same key."""
        rivals = list(self._keys.get(sequence.request.key or "", ()))
        if not rivals:
            return
        match sequence.request.policy:
            case "reject":
                raise KeyTaken(f"a request with key {sequence.request.key!r} is unfinished: wait for it or cancel it")
            case "latest":
                self.scheduler.check(sequence)  # before anybody goes: a request that can not run must end nobody
                for rival in rivals:
                    self._finish(rival, "superseded")
            case _:
                sequence.behind = rivals[-1]

    def compiled(self, ticket: int, grammar: Grammar | Error) -> None:
        """Take the form that a request waited for, or the error that refuses it."""
        if (sequence := self._sequences.get(ticket)) is None:
            return
        if isinstance(grammar, Error):
            self._fail(sequence, grammar)
            return
        sequence.compiling = False
        try:
            sequence.matcher = grammar.matcher()
            if (said := sequence.request.resume) is not None:
                sequence.matcher.accept(said.tokens)
            self._force(sequence)
        except EngineError as error:
            self._fail(sequence, error)
        self.scheduler.look()

    def cancel(self, ticket: int) -> None:
        """End a request between two steps; its slot is free before anybody hears of it."""
        if sequence := self._sequences.get(ticket):
            self._finish(sequence, "cancelled")

    @property
    def next_due(self) -> float:
        """The nearest deadline, or `NEVER`."""
        return self._next_due

    def expire(self) -> None:
        """End what has come to its deadline, with the answer that there is."""
        now = self.clock()
        if now < self._next_due:
            return
        for sequence in [s for s in self._sequences.values() if s.due <= now]:
            self._finish(sequence, "deadline")
        self._next_due = self.scheduler.next_due

    def retry_ms(self) -> int:
        """Return after how many milliseconds a refused request may find room."""
        ahead = (len(self.scheduler.waiting) + 1) / self.backend.info.streams
        return int(1e3 * min(MOST_RETRY_S, max(LEAST_RETRY_S, ahead * self._service_s)))

    # ---- a step ----

    def step(self) -> float:
        """Compute one batch: plan, decode, commit.  Returns the seconds that the backend took."""
        scheduler = self.scheduler
        for sequence in scheduler.admit():
            if not sequence.started:
                sequence.started = True
                self.events.append(Started(sequence.ticket))
        n, wanted = scheduler.plan(self.backend.batch)
        if not n:
            self._nobody_fits()
            return 0.0
        start = self.clock()
        try:
            logits = scheduler.answers(self.backend.decode(n))
        except EngineError as error:
            if not self._closing:
                self._fail_running(error)
            return self.clock() - start
        decode_s = self.clock() - start
        scheduler.after(n, decode_s)
        self._commit(wanted, logits)
        counters = self.counters
        counters.steps += 1
        counters.prompt_tokens += scheduler.prompt_rows
        counters.decode_s += decode_s
        return decode_s

    def _commit(self, wanted: list[Sequence], logits: NDArray[np.float32]) -> None:
        """Choose a token for each row and move each sequence along."""
        plain = all(sequence.request.sampling.argmax_only and sequence.matcher is None for sequence in wanted)
        best = logits.argmax(axis=1) if plain and wanted else None
        if best is not None and not np.isfinite(logits[np.arange(len(wanted)), best]).all():
            best = None  # one by one, so that only the sequence at fault fails
        chosen = None if best is None else best.tolist()
        for row, sequence in enumerate(wanted):
            if sequence.state is State.PREFILL:
                sequence.move(State.DECODE)
                self.scheduler.computed(sequence)
            try:
                if chosen:
                    self._accept(sequence, (chosen[row],))
                else:
                    self._accept_choice(sequence, self._pick(sequence, logits[row]))
            except EngineError as error:
                self._fail(sequence, error)

    @staticmethod
    def _pick(sequence: Sequence, logits: NDArray[np.float32]) -> Choice:
        mask = sequence.matcher.mask if sequence.matcher is not None else None
        return sequence.sampler.pick(logits, sequence.tokens, mask)

    def _accept_choice(self, sequence: Sequence, choice: Choice) -> None:
        if sequence.matcher is None or self._ends(sequence, choice.token):
            self._accept(sequence, (choice.token,), (choice.logprob,))
            return
        sequence.matcher.accept((choice.token,))
        self._accept(sequence, (choice.token,), (choice.logprob,))
        if sequence.state is not State.DONE:
            self._force(sequence)

    def _force(self, sequence: Sequence) -> None:
        """Append what the form leaves no choice about; end the answer if the form is complete."""
        matcher = sequence.matcher
        if matcher is None:
            return
        forced = matcher.forced() if self.scheduler.options.forced_tokens else []
        if forced:
            matcher.accept(forced)
            self.counters.forced_tokens += len(forced)
            self._accept(sequence, tuple(forced))
        if matcher.stopped and sequence.state is not State.DONE:
            self._finish(sequence, "stop")

    def _ends(self, sequence: Sequence, token: int) -> bool:
        return self.backend.vocabulary.is_end(token) and not sequence.request.ignore_end

    def _accept(
        self, sequence: Sequence, tokens: tuple[int, ...], logprobs: tuple[TokenLogprob | None, ...] = ()
    ) -> None:
        """Commit tokens of the answer, up to its end if that is among them."""
        request, taken, text, now = sequence.request, 0, "", self.clock()
        reason: Reason | None = None
        for token in tokens:
            if self._ends(sequence, token):
                reason = "stop"
                break
            sequence.append(token, now)
            taken += 1
            text += sequence.text.push(self.backend.vocabulary.piece(token))
            reason = self._over(sequence)
            if reason:
                break
        self.counters.answer_tokens += taken
        if taken:
            if request.sampling.logprobs is None:
                logprobs = ()
            draws = sequence.sampler.draws
            self.events.append(Progress(sequence.ticket, tokens[:taken], text, logprobs[:taken], draws))
        if reason:
            self._finish(sequence, reason)

    # ---- ends ----

    def _finish(self, sequence: Sequence, reason: Reason) -> None:
        if rest := sequence.text.finish():
            self.events.append(Progress(sequence.ticket, (), rest, draws=sequence.sampler.draws))
        usage = sequence.usage(self.clock())
        self.counters.cached_tokens += usage.cached_tokens
        self._service_s += FOLLOW * (usage.total_s - self._service_s)
        self._retire(sequence, Finished(sequence.ticket, reason, usage))

    def _fail(self, sequence: Sequence, error: Error, *, keep: bool = True) -> None:
        self.counters.failed += 1
        self._retire(sequence, Failed(sequence.ticket, error), keep=keep)

    def _fail_running(self, error: Error) -> None:
        """End everything that runs: the backend's memory can not be trusted after a failed step."""
        for sequence in list(self.scheduler.running):
            self._fail(sequence, error, keep=False)
        self.scheduler.pool.clear()

    def _nobody_fits(self) -> None:
        """Nothing runs and nobody waiting got a place, though all is free: a bug of ours ends one, not all."""
        ready = [sequence for sequence in self.scheduler.waiting if sequence.ready]
        if ready and not self.scheduler.running:
            self._fail(ready[0], EngineFailed("no place was found for this request though nothing runs"))

    def _retire(self, sequence: Sequence, end: Finished | Failed, *, keep: bool = True) -> None:
        """Free slot and cells.  The end is noted first, so that a bug below loses none; it goes out after the step."""
        del self._sequences[sequence.ticket]
        self.events.append(end)
        if sequence.request.key is not None:
            self._leave_key(sequence, sequence.request.key)
        self.scheduler.retire(sequence, keep=keep)

    def _leave_key(self, sequence: Sequence, key: str) -> None:
        """Let who waited behind a request wait behind the one before it, or no longer."""
        others = self._keys[key]
        others.remove(sequence)
        for other in others:
            if other.behind is sequence:
                other.behind = sequence.behind
        if not others:
            del self._keys[key]

    def close(self, error: Error) -> None:
        """End every request with ``error`` and free the model; asks neither scheduler nor backend about them."""
        self.events += [Failed(ticket, error) for ticket in self._sequences]
        self._sequences.clear()
        self._keys.clear()
        self.compiler.close()
        self.backend.close()

    def status(self) -> ModelStatus:
        """Return a frozen picture of the lane."""
        counters = Counters(*(getattr(self.counters, name) for name in Counters.__slots__))
        scheduler = self.scheduler
        counters.preempted = scheduler.preempted
        scheduler.pool.audit()
        return ModelStatus(
            self.backend.info, self.backend.plan, self.backend.memory, len(scheduler.running),
            len(scheduler.waiting), scheduler.pool.available, counters, scheduler.pool.status(),
        )


def turn(lanes: Iterable[Lane], now: float) -> Lane | None:
    """Return the lane whose step is next, None if there is nothing to compute."""
    busy = [lane for lane in lanes if lane.scheduler.busy]
    if len(busy) < 2:
        return busy[0] if busy else None
    return min(busy, key=lambda lane: lane.urgency(now))
