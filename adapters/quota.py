"""How much one device and one node may ask for: counts and rates, by a clock of the caller's."""

from __future__ import annotations

from collections import Counter, deque

from .limits import LIMITS, Limits
from .refused import RETRY_MS, Refused


class Quota:
    """Counts the requests of each device: those that wait and those whose answer is in the making."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.limits = limits
        self._queued: Counter[str] = Counter()
        self._active: Counter[str] = Counter()
        self.queued = 0

    def enter(self, device: str, *, rid: str = "", retry_ms: int = RETRY_MS) -> None:
        """Let a request wait.  Raises `Refused` (`busy`, with ``retry_ms``) if the device or the node has too many."""
        if self.queued >= self.limits.queued:
            raise Refused("busy", f"{self.queued} requests wait at this node", rid=rid, retry_ms=retry_ms)
        if self._queued[device] >= self.limits.queued_per_device:
            raise Refused("busy", f"{self._queued[device]} requests of this device wait", rid=rid, retry_ms=retry_ms)
        self._queued[device] += 1
        self.queued += 1

    def start(self, device: str) -> bool:
        """Move a waiting request to the active ones; False, and nothing changes, if the device has enough of them."""
        if self._active[device] >= self.limits.active_per_device:
            return False
        self.leave(device)
        self._active[device] += 1
        return True

    def leave(self, device: str) -> None:
        """Count a waiting request out."""
        self.queued -= 1
        _less(self._queued, device)

    def end(self, device: str) -> None:
        """Count an active request out."""
        _less(self._active, device)


def _less(counter: Counter[str], device: str) -> None:
    counter[device] -= 1
    if counter[device] <= 0:
        del counter[device]


class Rate:
    """A token bucket for what a device may say in a second; a burst of one second is let through."""

    def __init__(self, per_s: float = LIMITS.controls_per_s) -> None:
        self.per_s = per_s
        self._level = per_s
        self._at: float | None = None

    def allow(self, now: float) -> bool:
        """Whether one more may be heard now."""
        passed = 0.0 if self._at is None else max(0.0, now - self._at)
        self._at = now
        self._level = min(self.per_s, self._level + passed * self.per_s)
        if self._level < 1:
            return False
        self._level -= 1
        return True


class Outbound:
    """Encoded messages that wait for one device, in order: chunks within a bound, everything else always."""

    def __init__(self, size: int = LIMITS.outbound_bytes) -> None:
        self.size = size
        self.bytes = 0
        self._waiting: deque[bytes] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether a stream should take no more chunks now."""
        return self.bytes >= self.size

    def put(self, raw: bytes, *, chunk: bool = False) -> bool:
        """Queue a message; False, and nothing is queued, for a chunk beyond the bound (then `Sender.rewind`)."""
        if chunk and self.bytes + len(raw) > self.size:
            return False
        self._waiting.append(raw)
        self.bytes += len(raw)
        return True

    def first(self) -> bytes | None:
        """Return the message to be sent next; it stays until `sent`."""
        return self._waiting[0] if self._waiting else None

    def sent(self) -> None:
        """Drop the first message."""
        self.bytes -= len(self._waiting.popleft())
