"""Requests that came before: none is run twice, and a finished one is kept for a while to be said again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from .limits import LIMITS, Limits
from .refused import RETRY_MS, Refused

if TYPE_CHECKING:
    from .messages import Generate

T = TypeVar("T")
Key = tuple[str, str]


def fingerprint(request: Generate) -> bytes:
    """Return 32 bytes that stand for what is asked; how much time is left changes nothing about it."""
    asked = msgspec.structs.replace(request, sent=None, lifetime_ms=None, deadline_ms=None)
    return hashlib.sha256(msgspec.json.encode(asked, order="deterministic")).digest()


@dataclass(slots=True)
class _Known(Generic[T]):
    print: bytes
    value: T
    size: int = 0


class Deduplicator(Generic[T]):
    """Knows requests by device and request id, each with a value of the caller's (a stream).

    Unfinished ones are never dropped; a new one is refused (`busy`) when there are ``replay_requests`` of them.
    Finished ones go, those that the device is done with first and the oldest first, beyond ``replay_requests`` or
    ``replay_bytes``, and after ``replay_done_s`` or ``replay_s``.  Times are seconds on any one clock.
    """

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.limits = limits
        self._running: dict[Key, _Known[T]] = {}
        self._ended: dict[Key, tuple[_Known[T], float]] = {}  # oldest first, with the time of the end
        self._settled: dict[Key, tuple[_Known[T], float]] = {}  # the same, with the time of `done`
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._running) + len(self._ended) + len(self._settled)

    def find(self, device: str, request: Generate, now: float) -> T | None:
        """Return what is known of the same request, or None if it is new.

        Raises `Refused` (`conflict`) if the id stands for something else.
        """
        self.sweep(now)
        known = self._known((device, request.rid))
        if known is None:
            return None
        if known.print != fingerprint(request):
            raise Refused("conflict", "another request has this id: give each its own", rid=request.rid)
        return known.value

    def add(self, device: str, request: Generate, value: T, now: float) -> None:
        """Keep a new request.  Raises `Refused` (`busy`) if too many are unfinished, `conflict` if it is known."""
        self.sweep(now)
        key = (device, request.rid)
        if self._known(key) is not None:
            raise Refused("conflict", "another request has this id: give each its own", rid=request.rid)
        if len(self._running) >= self.limits.replay_requests:
            raise Refused("busy", "too many unfinished requests", rid=request.rid, retry_ms=RETRY_MS)
        self._running[key] = _Known(fingerprint(request), value)

    def get(self, device: str, rid: str) -> T | None:
        """Return the value of a known request, for what the device says about it later."""
        known = self._known((device, rid))
        return None if known is None else known.value

    def finished(self, device: str, rid: str, size: int, now: float) -> None:
        """Note its terminal, and that ``size`` bytes are kept of it.  Nothing happens if it is not running."""
        known = self._running.pop((device, rid), None)
        if known is not None:
            known.size = size
            self.bytes += size
            self._ended[device, rid] = known, now
            self.sweep(now)

    def done(self, device: str, rid: str, now: float, size: int | None = None) -> None:
        """Note that the device has everything; ``size``: bytes that are kept from now on."""
        known, _ = self._ended.pop((device, rid), (None, 0.0))
        if known is not None:
            kept = known.size if size is None else size
            self.bytes += kept - known.size
            known.size = kept
            self._settled[device, rid] = known, now

    def forget(self, device: str, rid: str) -> None:
        """Drop a request, running or not: it was refused after all."""
        key = (device, rid)
        self._running.pop(key, None)
        for kept in (self._settled, self._ended):
            if key in kept:
                self.bytes -= kept.pop(key)[0].size

    def sweep(self, now: float) -> None:
        """Drop what is too old or too much."""
        for kept, age in ((self._settled, self.limits.replay_done_s), (self._ended, self.limits.replay_s)):
            while kept and (self._over() or now - next(iter(kept.values()))[1] >= age):
                known, _ = kept.pop(next(iter(kept)))
                self.bytes -= known.size

    def _over(self) -> bool:
        finished = len(self._ended) + len(self._settled)
        return finished > self.limits.replay_requests or self.bytes > self.limits.replay_bytes

    def _known(self, key: Key) -> _Known[T] | None:
        if key in self._running:
            return self._running[key]
        ended = self._ended.get(key) or self._settled.get(key)
        return ended[0] if ended else None
