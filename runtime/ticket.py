"""The handle of one request: iterate over its text, wait for its result, or cancel it; with or without asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from .errors import BadAnswer, DeadlineMissed, EngineFailed
from .events import Event, Failed, Finished, Progress, Reason, Started, Usage
from .sampling import TokenLogprob  # noqa: TC001 - the annotations of frozen values are read at run time by codecs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator

    from .request import Policy, Priority


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished answer.

    ``reason``: ``stop`` or ``length``; or ``cancelled``, ``deadline``, ``superseded``: then ``text`` is what there was.
    ``logprobs``: one per token if the request asked for them, else empty; None where a form forced the token.
    """

    text: str
    tokens: tuple[int, ...]
    reason: Reason
    usage: Usage
    logprobs: tuple[TokenLogprob | None, ...] = ()

    def json(self) -> Any:
        """Parse the answer as JSON.  Raises BadAnswer, with the text, if it is none."""
        try:
            return json.loads(self.text)
        except (ValueError, RecursionError):
            raise BadAnswer(f"the answer is not JSON: {self.text[:80]!r}", self.text) from None


State = Literal["accepted", "executing", "canceling", "succeeded", "canceled", "aborted"]
GRACE_S = 0.25  # beyond a deadline, before a result with a fallback no longer waits for the engine's word
NOTHING: Any = object()
LOG = logging.getLogger("arenite")


class Ticket:
    """One request under way.  Names and states are those of ROS 2 actions.

    ``for piece in ticket`` and ``async for piece in ticket`` give its text as it comes, from the beginning, as often
    as wanted; ``ticket.result()`` and ``await ticket`` give the result: the `Completion`, or what ``decode`` makes of
    its text.  All four raise the request's error if it failed.  Leaving a loop early does not cancel: call `cancel`,
    or use the ticket as a context manager.

    ``fallback``: what the result is if the deadline strikes, or could not be met; then `fell_back` is true.
    """

    def __init__(
        self, number: int, cancel: Callable[[int], None], *, priority: Priority = "interactive",
        deadline: float | None = None, key: str | None = None, policy: Policy = "queue",
        decode: Callable[[str], Any] | None = None, fallback: Any = NOTHING,
    ) -> None:
        self.number, self.priority, self.deadline, self.key, self.policy = number, priority, deadline, key, policy
        self.fell_back = False
        self._cancel, self._decode, self._fallback = cancel, decode, fallback
        self._submitted = time.monotonic()
        self._changed = threading.Condition()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._callbacks: list[Callable[[Ticket], None]] = []
        self._follower: Callable[[Event], None] | None = None
        self._pieces: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob | None] = []
        self._executing = self._canceling = False
        self._end: Finished | Failed | None = None

    def deliver(self, event: Event) -> None:
        """Take an event from the engine; called on the engine's thread, in order."""
        callbacks: list[Callable[[Ticket], None]] = []
        with self._changed:
            if self._follower is not None:
                self._follower(event)
            if isinstance(event, Progress):
                self._executing = True
                self._tokens += event.tokens
                self._logprobs += event.logprobs
                if not event.text:
                    return
                self._pieces.append(event.text)
            elif isinstance(event, (Finished, Failed)):
                self._end = event
                callbacks, self._callbacks = self._callbacks, []
            else:
                self._executing |= isinstance(event, Started)
                return
            waiters, self._waiters = self._waiters, []
            self._changed.notify_all()
        for callback in callbacks:
            try:
                callback(self)
            except Exception:  # it is the caller's: it must not end the engine, and with it everybody's requests
                LOG.exception("a function given to on_done failed")
        for loop, waiter in waiters:
            with contextlib.suppress(RuntimeError):  # that loop was closed: nobody waits there any more
                loop.call_soon_threadsafe(_wake, waiter)

    @property
    def done(self) -> bool:
        """Whether the end has come."""
        return self._end is not None

    @property
    def state(self) -> State:
        """Where the request stands: accepted, executing, canceling, then succeeded, canceled or aborted."""
        end = self._end
        if end is None:
            return "canceling" if self._canceling else "executing" if self._executing else "accepted"
        if isinstance(end, Finished):
            return _END_STATES[end.reason]
        return "aborted"

    def partial(self) -> str:
        """Return the text until now."""
        with self._changed:
            return "".join(self._pieces)

    def cancel(self, wait: bool | float = False) -> None:
        """Ask for the end; it comes as a `Completion` with reason ``cancelled`` after the running step.

        ``wait``: return only when the end has come, and with it the place for others; a number is a limit in seconds.
        """
        if not self.done:
            self._canceling = True
            self._cancel(self.number)
        if wait is not False:
            with self._changed:
                self._changed.wait_for(lambda: self._end is not None, None if wait is True else wait)

    def on_done(self, callback: Callable[[Ticket], None]) -> None:
        """Have ``callback(ticket)`` called once at the end, on the engine's thread: it must be quick.

        What it raises there is logged (logger ``arenite``).
        """
        with self._changed:
            if self._end is None:
                self._callbacks.append(callback)
                return
        callback(self)

    def follow(self, callback: Callable[[Event], None]) -> None:
        """Have every event handed on in order, what came before first; on the engine's thread, so it must be quick."""
        with self._changed:
            if self._executing:
                callback(Progress(self.number, tuple(self._tokens), "".join(self._pieces), tuple(self._logprobs)))
            if self._end is not None:
                callback(self._end)
            self._follower = callback

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the result, at most ``timeout`` seconds (then TimeoutError; the request goes on).

        With a deadline and a fallback it never takes much longer than the deadline, whatever the engine does.
        """
        patience = self._patience()
        limit = patience if timeout is None else timeout if patience is None else min(timeout, patience)
        with self._changed:
            if not self._changed.wait_for(lambda: self._end is not None, limit):
                if limit != patience:
                    raise TimeoutError(f"no end within {timeout} s")
                return self._fall_back()
        return self._result()

    def _patience(self) -> float | None:
        if self._fallback is NOTHING or self.deadline is None:
            return None
        return max(0.0, self._submitted + self.deadline + GRACE_S - time.monotonic())

    def _fall_back(self) -> Any:
        self.fell_back = True
        self._cancel(self.number)
        return self._fallback

    def _result(self) -> Any:
        if self._fallback is not NOTHING and self._too_late():
            self.fell_back = True
            return self._fallback
        completion = self.completion()
        if self._decode is None:
            return completion
        if completion.reason != "stop":
            raise BadAnswer(f"the answer was cut off ({completion.reason}): {completion.text[:80]!r}", completion.text)
        return self._decode(completion.text)

    def _too_late(self) -> bool:
        end = self._end
        if isinstance(end, Failed):
            return isinstance(end.error, DeadlineMissed)
        return end is not None and end.reason == "deadline"

    def completion(self) -> Completion:
        """Return text, tokens and usage of a finished answer, whatever its form; raises the error of a failed one."""
        end = self._end
        if isinstance(end, Failed):
            raise copy.copy(end.error)  # each waiter gets an error with a traceback of its own
        if end is None:
            raise EngineFailed("the request has no end yet")
        return Completion(
            "".join(self._pieces), tuple(self._tokens), end.reason, end.usage, tuple(self._logprobs)
        )

    def __iter__(self) -> Iterator[str]:
        at = 0
        while True:
            with self._changed:
                while len(self._pieces) == at and self._end is None:
                    self._changed.wait()
                new, end = self._pieces[at:], self._end
            yield from new
            at += len(new)
            if end is not None:
                self.completion()
                return

    async def _arrival(self, at: int) -> None:
        """Return when there is more than ``at`` pieces, or the end."""
        loop = asyncio.get_running_loop()
        with self._changed:
            if len(self._pieces) > at or self._end is not None:
                return
            waiter: asyncio.Future[None] = loop.create_future()
            self._waiters.append((loop, waiter))
        await waiter

    async def __aiter__(self) -> AsyncIterator[str]:
        at = 0
        while True:
            await self._arrival(at)
            new, end = self._pieces[at:], self._end
            for piece in new:
                yield piece
            at += len(new)
            if end is not None and at == len(self._pieces):
                self.completion()
                return

    def __await__(self) -> Generator[Any, None, Any]:
        return self._finished().__await__()

    async def _finished(self) -> Any:
        try:
            while not self.done:
                patience = self._patience()
                try:
                    await asyncio.wait_for(self._arrival(len(self._pieces)), patience)
                except TimeoutError:
                    if not self.done:
                        return self._fall_back()
        except asyncio.CancelledError:
            self.cancel()
            raise
        return self._result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


_END_STATES: dict[Reason, State] = {
    "stop": "succeeded", "length": "succeeded", "cancelled": "canceled", "superseded": "canceled",
    "deadline": "aborted",
}


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def wait_all(tickets: list[Ticket], timeout: float | None = None) -> list[Any]:
    """Return the results of many tickets, in their order; ``timeout`` seconds for all of them together."""
    until = None if timeout is None else time.monotonic() + timeout
    return [ticket.result(None if until is None else max(0.0, until - time.monotonic())) for ticket in tickets]
