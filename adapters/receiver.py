"""One answer as it arrives: the receiving end, which every transport shares.

The one rule, for loss, repetition, reordering and late joining alike (``next``: bytes that were delivered)::

    trim = next - offset
    trim <  0           a gap: drop it, ask to resume from next
    trim >= length      known: drop it
    otherwise           deliver what follows the first trim bytes

Text is delivered once, in order and only if it follows without a gap; the checksum at the end covers all of it.
"""

from __future__ import annotations

import zlib
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .messages import TEXT, Accept, Cancel, Channel, ChannelKey, Chunk, Credit, Done, End, Failure, Progress, Resume

if TYPE_CHECKING:
    from .wire import ToDevice

UNLIMITED_STEP = 16 << 10  # bytes after which credit is given where the window has no limit: the sender may forget
RESUME_S = 0.5  # between two resumes of a channel
IDLE_S, LONGEST_IDLE_S = 1.5, 15.0  # without new text before asking, doubled each time
CHANNELS: dict[ChannelKey, Channel] = {"0": 0, "1": 1, "2": 2}


@dataclass(frozen=True, slots=True)
class Deliver:
    """Show this text; it follows on what was delivered of its channel."""

    text: str
    channel: Channel = TEXT


@dataclass(frozen=True, slots=True)
class Send:
    """Say this to the node; it may be lost."""

    message: Credit | Resume | Done | Cancel


@dataclass(frozen=True, slots=True)
class Restart:
    """Forget what was delivered: another attempt begins from the start."""


@dataclass(frozen=True, slots=True)
class Finished:
    """All of the answer was delivered, and its checksum holds."""

    end: End


@dataclass(frozen=True, slots=True)
class Failed:
    """The node ended it without an answer; `error_of` makes an error of it."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Broken:
    """It can not become a right answer any more, and why."""

    reason: str


Action = Deliver | Send | Restart | Finished | Failed | Broken


@dataclass(slots=True)
class _Arrived:
    """What has arrived of one channel."""

    next: int = 0
    credited: int = 0
    checksum: int = 0
    resumed_at: float = float("-inf")
    repeated_at: float = float("-inf")


class Receiver:
    """Says what to do about each message of one request, and about silence.

    ``take`` and ``poll`` return what to do now, in order; an empty list is: ignore it.  Exactly one of `Finished`,
    `Failed` and `Broken` comes, and nothing is delivered after it.  Times are seconds on any one clock; ``silence_s``:
    broken after so long without a word (None: never).  Keeps no text.
    """

    def __init__(self, rid: str, now: float, *, window: int = 4096, silence_s: float | None = 60.0) -> None:
        self.rid, self.window, self.silence_s = rid, window, silence_s
        self.attempt = self.node = self.boot = ""
        self.closed = False
        self._channels: dict[Channel, _Arrived] = {}
        self._end: End | None = None
        self._abandoned: deque[str] = deque(maxlen=8)
        self._heard_at = now
        self._idle_at, self._idle_s = now + IDLE_S, IDLE_S

    def take(self, message: ToDevice, now: float) -> list[Action]:
        """Return what to do about a message."""
        if not isinstance(message, Accept | Progress | Chunk | End | Failure) or message.rid != self.rid:
            return []
        if isinstance(message, Accept):
            return self._accepted(message, now)
        if self.closed:
            again = isinstance(message, End | Failure) and message.attempt == self.attempt != ""
            return [Send(self._done())] if again else []
        if message.attempt in self._abandoned:
            return []
        if isinstance(message, Failure):
            return self._failed(message)
        anew = [] if self.attempt else self._begin(message.attempt, now)
        if message.attempt != self.attempt:
            return []
        self._heard_at = now
        if isinstance(message, Chunk):
            return anew + self._chunk(message, now)
        return anew + self._ended(message, now) if isinstance(message, End) else anew

    def poll(self, now: float) -> list[Action]:
        """Return what to do because of the time: ask to resume, or give up."""
        if self.closed:
            return []
        if self.silence_s is not None and now - self._heard_at >= self.silence_s:
            return self._broken(f"nothing came for {self.silence_s:g} s")
        if not self.attempt or now < self._idle_at:
            return []
        self._idle_s = min(2 * self._idle_s, LONGEST_IDLE_S)
        self._idle_at = now + self._idle_s
        self._channels.setdefault(TEXT, _Arrived())
        return [self._resume(channel, now) for channel in self._channels]

    def due(self) -> float | None:
        """Return the time at which `poll` has something to do though nothing comes, or None."""
        times = [self._idle_at] if self.attempt else []
        if self.silence_s is not None:
            times.append(self._heard_at + self.silence_s)
        return None if self.closed or not times else min(times)

    def resume(self, now: float) -> list[Action]:
        """Return what to say after the link was away."""
        self._idle_at, self._idle_s = now, IDLE_S
        return self.poll(now)

    def lose(self, now: float) -> None:
        """Give the attempt up: its node has restarted or is gone.  Send the request again; the next attempt counts."""
        if self.attempt and not self.closed:
            self._abandoned.append(self.attempt)
            self.attempt = self.node = self.boot = ""
            self._heard_at = now

    def delivered(self, channel: Channel = TEXT) -> int:
        """Return how many bytes of the channel were delivered."""
        return self._channels[channel].next if channel in self._channels else 0

    def _accepted(self, accept: Accept, now: float) -> list[Action]:
        if accept.attempt in self._abandoned:
            return []
        if not self.closed and self.node == accept.node and self.boot != accept.boot:
            self.lose(now)
        if self.closed or (self.attempt and accept.attempt != self.attempt):
            ours = accept.attempt == self.attempt
            return [] if ours else [Send(Cancel(rid=self.rid, attempt=accept.attempt))]
        anew: list[Action] = []
        if not self.attempt:
            anew = self._begin(accept.attempt, now)
        self._heard_at = now
        self.node, self.boot, self.window = accept.node, accept.boot, accept.window
        return anew

    def _begin(self, attempt: str, now: float) -> list[Action]:
        shown = any(got.next for got in self._channels.values())
        self.attempt, self._end = attempt, None
        self._channels = {}
        self._idle_at, self._idle_s = now + IDLE_S, IDLE_S
        return [Restart()] if shown else []

    def _chunk(self, chunk: Chunk, now: float) -> list[Action]:
        got = self._channels.setdefault(chunk.channel, _Arrived())
        raw, trim = chunk.text.encode(), got.next - chunk.offset
        if trim < 0:
            return self._ask(chunk.channel, now)
        if trim >= len(raw):
            return self._again(got, now)
        try:
            text = raw[trim:].decode()
        except UnicodeDecodeError:
            return self._broken(f"byte {got.next} of channel {chunk.channel} is inside a character")
        got.next += len(raw) - trim
        got.checksum = zlib.crc32(raw[trim:], got.checksum)
        self._idle_at, self._idle_s = now + IDLE_S, IDLE_S
        rest = self._whole(now, ask=False) if self._end else self._credits(self.window // 2 or UNLIMITED_STEP)
        return [Deliver(text, chunk.channel), *rest]

    def _again(self, got: _Arrived, now: float) -> list[Action]:
        """Known text came again: perhaps the credit for it was lost."""
        if now - got.repeated_at < RESUME_S:
            return []
        got.repeated_at = now
        got.credited = min(got.credited, max(0, got.next - 1))
        return self._credits(1)

    def _credits(self, step: int) -> list[Action]:
        fresh = {channel: got for channel, got in self._channels.items() if got.next > got.credited}
        if sum(got.next - got.credited for got in fresh.values()) < step:
            return []
        for got in fresh.values():
            got.credited = got.next
        return [Send(Credit(rid=self.rid, attempt=self.attempt, offset=got.next, channel=channel))
                for channel, got in fresh.items()]

    def _ended(self, end: End, now: float) -> list[Action]:
        self._end = self._end or end
        return self._whole(now, ask=True)

    def _whole(self, now: float, *, ask: bool) -> list[Action]:
        """Compare what arrived with what the end says; what is missing is asked for."""
        end = self._end
        if end is None:
            return []
        lengths = {CHANNELS[key]: length for key, length in end.lengths.items()}
        for channel, got in self._channels.items():
            if got.next > lengths.get(channel, 0):
                return self._broken(f"channel {channel} is longer than its end says")
        missing = [channel for channel, length in lengths.items() if self.delivered(channel) < length]
        if missing:
            return [action for channel in missing for action in self._ask(channel, now)] if ask else []
        for channel, got in self._channels.items():
            if got.next and end.checksums.get(_KEYS[channel]) != got.checksum:
                return self._broken(f"channel {channel} has another checksum than its end says")
        self.closed = True
        return [Send(self._done()), Finished(end)]

    def _ask(self, channel: Channel, now: float) -> list[Action]:
        got = self._channels.setdefault(channel, _Arrived())
        return [self._resume(channel, now)] if now - got.resumed_at >= RESUME_S else []

    def _resume(self, channel: Channel, now: float) -> Send:
        got = self._channels[channel]
        got.resumed_at, got.credited = now, got.next
        return Send(Resume(rid=self.rid, attempt=self.attempt, offset=got.next, channel=channel))

    def _failed(self, failure: Failure) -> list[Action]:
        if self.attempt and failure.attempt != self.attempt:
            return []
        if failure.code == "expired" and any(got.credited for got in self._channels.values()):
            return []  # the answer to an old resume that came late: we have acknowledged what is gone
        self.closed, self.attempt = True, failure.attempt
        done: list[Action] = [Send(self._done())] if failure.attempt else []
        return [*done, Failed(failure)]

    def _broken(self, reason: str) -> list[Action]:
        self.closed = True
        stop: list[Action] = [] if self._end else [Send(Cancel(rid=self.rid, attempt=self.attempt))]
        return [*stop, Broken(reason)]

    def _done(self) -> Done:
        return Done(rid=self.rid, attempt=self.attempt)


_KEYS: dict[Channel, ChannelKey] = {channel: key for key, channel in CHANNELS.items()}
