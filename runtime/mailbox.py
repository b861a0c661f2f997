"""The only place where other threads meet the engine's thread.

A poster appends to a deque and sets an event; the engine takes everything at once.  Safe because an append and a
popleft of a deque are each one atomic step, and because the engine clears the event *before* it empties the deque: a
message posted in between sets it again, so none sleeps unseen.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

M = TypeVar("M")


class Mailbox(Generic[M]):
    """Messages from any thread to one.  Unbounded in itself: who posts requests counts them before (see `Engine`)."""

    def __init__(self) -> None:
        self._messages: deque[M] = deque()
        self._arrived = threading.Event()

    def post(self, message: M) -> None:
        """Leave a message and wake the engine."""
        self._messages.append(message)
        self._arrived.set()

    def wait(self, timeout: float | None = None) -> None:
        """Sleep until a message is there; the engine calls this when it has nothing to compute."""
        self._arrived.wait(timeout)

    def take(self) -> Iterator[M]:
        """Yield what has arrived, oldest first; costs almost nothing when there is nothing."""
        if self._messages or self._arrived.is_set():
            self._arrived.clear()
            while self._messages:
                yield self._messages.popleft()
