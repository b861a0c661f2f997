"""One answer on its way: the sending end, which every transport shares.  The other is `Receiver`.

::

    transcript of a channel, in bytes of UTF-8

    0        base            acked              sent               end
    |  gone  |  kept, known  |  under way       |  waits for credit |
                              `---- <= window ----'  (all channels together)

Chunks carry offsets, so loss, repetition, late joining and other cuts are one case: go on from an offset.  A stream
ends with exactly one `End` or `Failure`, said again only when asked.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import msgspec

from .limits import LIMITS, Limits
from .messages import (
    SAFE,
    TEXT,
    TOOL,
    Cancel,
    Channel,
    ChannelKey,
    Chunk,
    Coalesce,
    Code,
    Credit,
    Done,
    End,
    Failure,
    Resume,
    Timing,
    Usage,
)
from .refused import Refused

if TYPE_CHECKING:
    from ..runtime.events import Reason

SENTENCE_ENDS = (".", "!", "?", "…", "。", "\N{FULLWIDTH EXCLAMATION MARK}", "\N{FULLWIDTH QUESTION MARK}", "\n")
WIDEST = 6  # bytes of the longest character in JSON: a control character as \u0000
KEYS: dict[Channel, ChannelKey] = {0: "0", 1: "1", 2: "2"}
COALESCE = Coalesce()


@dataclass(slots=True)
class _Channel:
    """The transcript of one channel, from ``base`` on."""

    raw: bytearray = field(default_factory=bytearray)
    base: int = 0
    acked: int = 0
    sent: int = 0
    high: int = 0  # the furthest that was ever sent
    checksum: int = 0

    @property
    def end(self) -> int:
        return self.base + len(self.raw)

    def inside(self, offset: int) -> bool:
        """Whether a character that is kept goes on there."""
        at = offset - self.base
        return 0 <= at < len(self.raw) and self.raw[at] & 0xC0 == 0x80

    def push(self, raw: bytes) -> None:
        self.raw += raw
        self.checksum = zlib.crc32(raw, self.checksum)

    def drop(self, size: int) -> int:
        """Forget up to so many bytes of what is acknowledged; returns how many."""
        size = min(size, self.acked - self.base, self.sent - self.base)
        if size > 0:
            del self.raw[:size]
            self.base += size
        return max(0, size)

    def cut(self, room: int, packet: int) -> str:
        """Return the next text: at most ``room`` bytes, and ``packet`` when JSON has escaped it; whole characters."""
        start = self.sent - self.base
        size = min(room, packet, len(self.raw) - start)
        while size > 0:
            while size > 0 and start + size < len(self.raw) and self.raw[start + size] & 0xC0 == 0x80:
                size -= 1
            text = self.raw[start:start + size].decode()
            escaped = len(msgspec.json.encode(text)) - 2
            if escaped <= packet:
                return text
            size = min(size - 1, max(4, size * packet // escaped))
        return ""


class Sender:
    """Turns the pieces of an answer into chunks, as credit and coalescing allow.

    ``push`` takes text, ``take`` gives the messages that may go now, ``due`` says when to ask again if nothing else
    happens.  Times are seconds on any one clock.  Keeps at most ``keep`` bytes of text: what is acknowledged goes
    first, and when all is unacknowledged `push` refuses (`stalled`).  Not for several threads at once.
    """

    def __init__(
        self, rid: str, attempt: str, *, window: int = 4096, chunk: Coalesce = COALESCE, limits: Limits = LIMITS,
        keep: int | None = None,
    ) -> None:
        self.rid, self.attempt, self.window, self.chunk = rid, attempt, window, chunk
        self.keep = limits.transcript_bytes if keep is None else keep
        self.terminal: End | Failure | None = None
        self.settled = False  # the device has said `done`
        envelope = Chunk(rid=rid, attempt=attempt, offset=SAFE, text="", channel=TOOL, tokens=SAFE)
        self._packet = limits.chunk_bytes - len(msgspec.json.encode(envelope))
        if self._packet < WIDEST:
            needed = limits.chunk_bytes - self._packet + WIDEST
            raise Refused("bad_request", f"a chunk needs packets of {needed} bytes at least", rid=rid, attempt=attempt)
        self._channels: dict[Channel, _Channel] = {}
        self._pace = _Pace(chunk)
        self._tokens = 0
        self._terminal_sent = False
        self._starved_since: float | None = None

    def push(self, text: str, now: float, *, channel: Channel = TEXT, tokens: int = 1) -> None:
        """Take a piece of the answer, which ``tokens`` tokens made.

        Raises `Refused`: `stalled` if the unacknowledged text would be more than is kept (nothing was taken then),
        `internal` after the end, `bad_request` for text that UTF-8 does not have.
        """
        if self.terminal is not None:
            raise self._refused("internal", "text after the end")
        try:
            raw = text.encode()
        except UnicodeEncodeError as error:
            raise self._refused("bad_request", str(error)) from error
        self._make_room(len(raw))
        self._tokens += tokens
        if raw:
            self._channels.setdefault(channel, _Channel()).push(raw)
            self._pace.pushed(text, now)

    def finish(
        self, reason: Reason | Literal["tool"], *, usage: Usage | None = None, timing: Timing | None = None,
        result: object = None,
    ) -> None:
        """End the answer; `End` follows the last text.  Nothing happens if it has ended."""
        if self.terminal is None:
            said = {KEYS[channel]: known for channel, known in self._channels.items()}
            self.terminal = End(
                rid=self.rid, attempt=self.attempt, lengths={key: known.end for key, known in said.items()},
                checksums={key: known.checksum for key, known in said.items()}, reason=reason, usage=usage,
                timing=timing, result=result,
            )

    def fail(self, failure: Failure) -> None:
        """End without an answer: unsent text is not sent.  Nothing happens if it has ended."""
        if self.terminal is None:
            self.terminal = msgspec.structs.replace(failure, rid=self.rid, attempt=self.attempt)

    def take(self, now: float) -> list[Chunk | End | Failure]:
        """Return what may go now, and count it as sent."""
        going: list[Chunk | End | Failure] = []
        if not isinstance(self.terminal, Failure) and (self.terminal or self._pace.open(now, self._waiting())):
            going.extend(self._chunks())
            if going and not self._waiting():
                self._pace.emptied()
        failed = isinstance(self.terminal, Failure)
        if self.terminal is not None and not self._terminal_sent and (failed or not self._waiting()):
            self._terminal_sent = True
            going.append(self.terminal)
        starved = self._waiting() > 0 and not failed and self._room() < 4
        self._starved_since = (self._starved_since if self._starved_since is not None else now) if starved else None
        return going

    def due(self) -> float | None:
        """Return the time at which `take` may have something though nothing happens, or None."""
        return self._pace.due() if self._waiting() and self.terminal is None and self._starved_since is None else None

    def starved_s(self, now: float) -> float:
        """Return for how many seconds text has been waiting for credit; 0 if none is."""
        return 0.0 if self._starved_since is None else max(0.0, now - self._starved_since)

    def hear(self, said: Credit | Resume | Done | Cancel) -> None:
        """Take what the device says of this stream; of another request or attempt it means nothing.

        Raises what `credit` and `resume` raise.  A `Cancel` is for whoever makes the answer: nothing happens here.
        """
        if said.rid != self.rid or said.attempt not in {"", self.attempt}:
            return
        if isinstance(said, Credit):
            self.credit(said.offset, said.channel)
        elif isinstance(said, Resume):
            self.resume(said.offset, said.channel)
        elif isinstance(said, Done):
            self.done()

    def credit(self, offset: int, channel: Channel = TEXT) -> None:
        """Everything before the offset has arrived.  Refused (`bad_request`) if it was never sent."""
        known = self._known(offset, channel)
        known.acked = max(known.acked, offset)
        known.sent = max(known.sent, known.acked)

    def resume(self, offset: int, channel: Channel = TEXT) -> None:
        """Go on from the offset, and say the end again if it was said.

        Refused: `bad_request` if it was never sent, `expired` if the text there is no longer kept.
        """
        known = self._known(offset, channel)
        if offset < known.base:
            raise self._refused("expired", f"text before byte {known.base} is no longer kept: ask anew")
        self.rewind()  # the other channels too: the device may not know yet that there are any
        known.acked = known.sent = offset

    def rewind(self) -> None:
        """Send again what is unacknowledged: the link has lost it, or this device has asked the same again."""
        for known in self._channels.values():
            known.sent = max(known.base, known.acked)
        self._terminal_sent = False
        self._pace.urgent = True

    def done(self) -> None:
        """Forget the text, which the device has, and keep the terminal; before the end nothing happens."""
        if self.terminal is not None:
            self.settled = self._terminal_sent = True
            for known in self._channels.values():
                known.acked = known.sent = known.high = known.end
                known.drop(len(known.raw))

    @property
    def kept(self) -> int:
        """Bytes of text that are kept now."""
        return sum(len(known.raw) for known in self._channels.values())

    @property
    def under_way(self) -> int:
        """Bytes that were sent and are not acknowledged."""
        return sum(known.sent - known.acked for known in self._channels.values())

    def _chunks(self) -> list[Chunk]:
        chunks = []
        for channel, known in self._channels.items():
            while text := known.cut(min(self._room(), max(self.chunk.bytes, 4)), self._packet):
                chunks.append(Chunk(rid=self.rid, attempt=self.attempt, offset=known.sent, text=text, channel=channel,
                                    tokens=self._tokens))
                known.sent += len(text.encode())
                known.high = max(known.high, known.sent)
        return chunks

    def _room(self) -> int:
        return max(0, self.window - self.under_way) if self.window else SAFE

    def _waiting(self) -> int:
        return sum(known.end - known.sent for known in self._channels.values())

    def _make_room(self, size: int) -> None:
        over = self.kept + size - self.keep
        for known in self._channels.values():
            if over > 0:
                over -= known.drop(over)
        if over > 0:
            raise self._refused("stalled", f"{self.keep:,} bytes of text wait for the device: it gives no credit")

    def _known(self, offset: int, channel: Channel) -> _Channel:
        known = self._channels.get(channel) or _Channel()
        if not 0 <= offset <= known.high:
            raise self._refused("bad_request", f"channel {channel} has sent {known.high} bytes, not {offset}")
        if known.inside(offset):
            raise self._refused("bad_request", f"byte {offset} of channel {channel} is inside a character")
        return known

    def _refused(self, code: Code, message: str) -> Refused:
        return Refused(code, message, rid=self.rid, attempt=self.attempt)


@dataclass(slots=True)
class _Pace:
    """When text that waits may go: at once for the first, then as `Coalesce` says."""

    chunk: Coalesce
    since: float | None = None  # when the oldest of it came
    urgent: bool = True

    def pushed(self, text: str, now: float) -> None:
        self.since = now if self.since is None else self.since
        if self.chunk.flush == "sentence" and text.rstrip(" ").endswith(SENTENCE_ENDS):
            self.urgent = True

    def open(self, now: float, waiting: int) -> bool:
        due = self.due()
        return self.urgent or waiting >= self.chunk.bytes or (due is not None and now >= due)

    def due(self) -> float | None:
        return None if self.since is None else self.since + self.chunk.ms / 1e3

    def emptied(self) -> None:
        self.since, self.urgent = None, False
