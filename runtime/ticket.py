"""The handle of one request: iterate over its text, wait for its result, or cancel it; with or without asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from .errors import BadAnswer, EngineFailed
from .events import Event, Failed, Finished, Progress, Reason, Usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished answer.  ``reason``: ``stop``, ``length`` or ``cancelled`` (then ``text`` is what there was)."""

    text: str
    tokens: tuple[int, ...]
    reason: Reason
    usage: Usage

    def json(self) -> Any:
        """Parse the answer as JSON.  Raises BadAnswer, with the text, if it is none."""
        try:
            return json.loads(self.text)
        except ValueError:
            raise BadAnswer(f"the answer is not JSON: {self.text[:80]!r}", self.text) from None


class Ticket:
    """One request under way.

    ``for piece in ticket`` and ``async for piece in ticket`` give its text as it comes, from the beginning, as often
    as wanted; ``ticket.result()`` and ``await ticket`` give the `Completion`.  All four raise the request's error if
    it failed.  Leaving a loop early does not cancel: call `cancel`, or use the ticket as a context manager.
    """

    def __init__(self, number: int, cancel: Callable[[int], None]) -> None:
        self.number = number
        self._cancel = cancel
        self._changed = threading.Condition()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._pieces: list[str] = []
        self._tokens: list[int] = []
        self._end: Finished | Failed | None = None

    def deliver(self, event: Event) -> None:
        """Take an event from the engine; called on the engine's thread, in order."""
        with self._changed:
            if isinstance(event, Progress):
                self._tokens += event.tokens
                if not event.text:
                    return
                self._pieces.append(event.text)
            elif isinstance(event, (Finished, Failed)):
                self._end = event
            else:
                return
            waiters, self._waiters = self._waiters, []
            self._changed.notify_all()
        for loop, waiter in waiters:
            with contextlib.suppress(RuntimeError):  # that loop was closed: nobody waits there any more
                loop.call_soon_threadsafe(_wake, waiter)

    @property
    def done(self) -> bool:
        """Whether the end has come."""
        return self._end is not None

    def cancel(self) -> None:
        """Ask for the end; it comes as a `Completion` with reason ``cancelled`` after the running step."""
        if not self.done:
            self._cancel(self.number)

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the end, at most ``timeout`` seconds (then TimeoutError; the request goes on)."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._end is not None, timeout):
                raise TimeoutError(f"no end within {timeout} s")
        return self._completion()

    def _completion(self) -> Completion:
        end = self._end
        if isinstance(end, Failed):
            raise copy.copy(end.error)  # each waiter gets an error with a traceback of its own
        if end is None:
            raise EngineFailed("the request has no end yet")
        return Completion("".join(self._pieces), tuple(self._tokens), end.reason, end.usage)

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
                self._completion()
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
                self._completion()
                return

    def __await__(self) -> Generator[Any, None, Completion]:
        return self._finished().__await__()

    async def _finished(self) -> Completion:
        try:
            while not self.done:
                await self._arrival(len(self._pieces))
        except asyncio.CancelledError:
            self.cancel()
            raise
        return self._completion()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def wait_all(tickets: list[Ticket], timeout: float | None = None) -> list[Completion]:
    """Return the results of many tickets, in their order; ``timeout`` seconds for all of them together."""
    until = None if timeout is None else time.monotonic() + timeout
    return [ticket.result(None if until is None else max(0.0, until - time.monotonic())) for ticket in tickets]
