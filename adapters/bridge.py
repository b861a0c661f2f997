"""One request from its arrival to its last token, whatever brought it.

::

    transport --take--> quota --> waiting of a device --> submitter thread --> Model.submit --> Ticket
    transport <--send-- Sender <-- turn (the transport's thread) <-- events <-- engine's thread (Ticket.follow)

Everything here belongs to one thread, the transport's; the engine's thread only appends to a deque and calls ``wake``,
and the submitter waits for tokenizers so that nobody else does.  Every request that was accepted gets one terminal.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

from ..runtime.errors import EngineClosed, Error
from ..runtime.events import Accepted, Failed, Finished, Progress, Started, Usage
from ..runtime.ticket import Ticket
from . import asked
from .limits import LIMITS, Limits
from .messages import Accept, Cancel, Credit, Done, Failure, Forget, Generate, List, Listed, Resume
from .messages import Progress as Said
from .quota import Quota, Rate
from .refused import RETRY_MS, Refused, failure_of
from .replay import Deduplicator
from .streams import Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..runtime.api import Model
    from ..runtime.events import Event
    from .wire import ToDevice, ToNode

LOG = logging.getLogger("arenite")
SIGN_S = 5.0  # between two signs of life while no text flows
NOTHING_USED = Usage(0, 0, 0.0, 0.0, 0, 0)
LOST_MESSAGE = "no such request is known here: send it again"


class Transport(Protocol):
    """What a bridge needs of whoever carries its messages; all of it returns at once."""

    def room(self, device: str) -> bool:
        """Tell whether the device is there and takes more chunks now."""

    def send(self, device: str, message: ToDevice) -> bool:
        """Send, or queue; False if neither was possible."""


class House(Protocol):
    """What a bridge needs of the service: its models, and what it tells of itself."""

    def find(self, name: str) -> Model:
        """Return a model that answers; an empty name stands for the first.  Raises `Refused`."""

    def items(self, what: str) -> list[dict[str, Any]]:
        """Return what `List` asks for; streams and sessions are the bridge's own."""


class Bridge:
    """Serves the messages of devices.  ``device`` is a name that the transport vouches for; one sees only its own.

    ``wake`` is called from any thread when `turn` has something to do.  `tick` is to be called while `busy` every few
    milliseconds (chunks are gathered), else a few times a second.
    """

    def __init__(
        self, house: House, transport: Transport, wake: Callable[[], None], *, node: str = "arenite", boot: str = "",
        limits: Limits = LIMITS, clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.house, self.node, self.boot, self.limits = house, node, boot or secrets.token_hex(8), limits
        self.draining = False
        self.counters = dict.fromkeys(("accepted", "refused", "ended", "failed", "resumed", "stalled", "ignored"), 0)
        self._transport, self._wake, self._clock = transport, wake, clock
        self._quota = Quota(limits)
        self._known: Deduplicator[Stream] = Deduplicator(limits)
        self._open: dict[tuple[str, str], Stream] = {}  # without a terminal, or with one that was not sent yet
        self._waiting: dict[str, list[Stream]] = {}
        self._rates: dict[str, Rate] = {}
        self._events: deque[tuple[Stream, Event | Ticket | Exception]] = deque()
        self._replies: deque[tuple[str, Failure]] = deque()
        self._sessions = asked.Conversations(house)
        self._submitter = ThreadPoolExecutor(1, "arenite-submit")

    # ---- from the transport ----

    def take(self, device: str, message: ToNode) -> None:
        """Serve one message; every answer, refusals included, goes through the transport."""
        try:
            match message:
                case Generate():
                    self._generate(device, message)
                case Cancel() | Credit() | Resume() | Done():
                    self._control(device, message)
                case Forget():
                    self._submitter.submit(self._forget, device, message.session)
                case List():
                    self._transport.send(device, self._listed(device, message))
                case _:
                    pass  # hello, ping and bye are the transport's own
        except (Refused, Error) as error:
            self.counters["refused"] += isinstance(message, Generate)
            self._transport.send(device, failure_of(error, rid=getattr(message, "rid", "")))

    def arrived(self, device: str) -> None:
        """Note that the device is (again) reachable: what was under way may be lost."""
        for stream in self._of(device):
            stream.sender.rewind()
            self._pump(stream)

    def drained(self, device: str) -> None:
        """Note that the device takes chunks again."""
        for stream in self._of(device):
            self._pump(stream)

    def left(self, device: str) -> None:
        """Note that the device is gone: its streams go on without it, or end if it asked for that."""
        self._rates.pop(device, None)
        for stream in self._of(device):
            if stream.request.absent == "cancel":
                self._cancel(stream)

    def turn(self) -> None:
        """Take what the engine said, and send what may go."""
        touched: dict[Stream, None] = {}
        while self._replies:
            self._transport.send(*self._replies.popleft())
        while self._events:
            stream, event = self._events.popleft()
            touched[stream] = None
            if isinstance(event, Exception):
                self._fail(stream, failure_of(event))
            elif isinstance(event, Ticket):
                stream.hold(event)
            elif not isinstance(event, Accepted):
                self._event(stream, event)
        for stream in touched:
            self._pump(stream)

    def tick(self) -> None:
        """Do what is due because of the time."""
        now = self._clock()
        for stream in list(self._open.values()):
            if stream.sender.terminal is None:
                self._watch(stream, now)
            due = stream.sender.due()
            if stream.sender.terminal is not None or (due is not None and now >= due):
                self._pump(stream)
        self._known.sweep(now)
        gone = [key for key, stream in self._open.items()
                if stream.sender.terminal is not None and self._known.get(*key) is not stream]
        for key in gone:  # its device has not come back in time
            del self._open[key]

    # ---- the service ----

    @property
    def busy(self) -> bool:
        """Whether any answer is in the making; ends that wait for their device are no hurry."""
        return any(stream.sender.terminal is None for stream in self._open.values())

    def idle(self, device: str) -> bool:
        """Tell whether the device has nothing under way."""
        return not self._of(device)

    @property
    def unfinished(self) -> int:
        """Requests without a terminal."""
        return sum(stream.sender.terminal is None for stream in self._open.values())

    @property
    def queued(self) -> int:
        """Requests that wait for their turn here."""
        return self._quota.queued

    def change_limits(self, limits: Limits) -> None:
        """Let other limits count from now on; a stream under way keeps those it began with."""
        self.limits = self._quota.limits = self._known.limits = limits
        self._rates.clear()

    def end_all(self) -> None:
        """Cancel every request that is unfinished."""
        for stream in list(self._open.values()):
            self._cancel(stream)

    def close(self) -> None:
        """End what is still unfinished with an error, and send it."""
        for stream in list(self._open.values()):
            self._fail(stream, failure_of(EngineClosed("the service is stopping: ask again later")))
            self._pump(stream)
        self._submitter.shutdown(wait=False, cancel_futures=True)

    # ---- a request ----

    def _generate(self, device: str, request: Generate) -> None:
        now = self._clock()
        known = self._known.find(device, request, now)
        if known is not None:
            self.counters["resumed"] += 1
            self._accept(known)
            known.sender.rewind()
            self._reopen(known)
            return
        if self.draining:
            raise Refused("busy", "this node is stopping", rid=request.rid, retry_ms=2 * RETRY_MS)
        self.house.find(request.model)  # refused before anything is kept
        stream = Stream(device, request, self.limits, now)
        self._quota.enter(device, rid=request.rid)
        try:
            self._known.add(device, request, stream, now)
        except Refused:
            self._quota.leave(device)
            raise
        self._open[stream.key] = stream
        self.counters["accepted"] += 1
        self._accept(stream)
        if request.key is not None and request.policy == "latest":
            self._supersede(stream)
        self._waiting.setdefault(device, []).append(stream)
        self._start(device)

    def _accept(self, stream: Stream) -> None:
        self._transport.send(stream.device, Accept(
            rid=stream.request.rid, attempt=stream.sender.attempt, node=self.node, boot=self.boot,
            window=stream.request.window, position=max(0, self._quota.queued - 1),
        ))

    def _supersede(self, newer: Stream) -> None:
        """End the device's older requests with the same key: they must not keep the newer one waiting."""
        for stream in self._of(newer.device):
            if stream is not newer and stream.request.key == newer.request.key and stream.sender.terminal is None:
                stream.superseded = True
                self._cancel(stream)

    def _start(self, device: str) -> None:
        """Hand the device's waiting requests to the engine, the most urgent first, as long as it may have more."""
        waiting = self._waiting.get(device, [])
        while waiting and self._quota.start(device):
            stream = max(waiting, key=lambda each: each.request.priority)  # of equals the first
            waiting.remove(stream)
            stream.active = True
            self._submitter.submit(self._submit, stream)
        if not waiting:
            self._waiting.pop(device, None)

    def _submit(self, stream: Stream) -> None:
        """Wait for tokenizer and engine, which may be restarting, on the submitter's thread."""
        try:
            if stream.cancelled:
                self._post(stream, Finished(0, "cancelled", NOTHING_USED))
                return
            ticket = asked.submit(self.house, self._sessions, self.limits, stream, self._clock())
            self._post(stream, ticket)
            ticket.follow(lambda event: self._post(stream, event))
        except Exception as error:  # whatever it is, the request has its end
            if not isinstance(error, (Error, Refused)):
                LOG.exception("a request could not be submitted", extra={"request_id": stream.request.rid})
            self._post(stream, error)

    def _forget(self, device: str, name: str) -> None:
        """Wait for the running turn of a session to end, on the submitter's thread."""
        try:
            self._sessions.forget(device, name)
        except Exception as error:  # noqa: BLE001 - whatever it is, the device is told
            self._replies.append((device, failure_of(error)))
            self._wake()

    def _post(self, stream: Stream, event: Event | Ticket | Exception) -> None:
        self._events.append((stream, event))
        self._wake()

    def _event(self, stream: Stream, event: Started | Progress | Finished | Failed) -> None:
        now = self._clock()
        stream.started = stream.started or now
        if stream.sender.terminal is not None:
            return
        if isinstance(event, Progress):
            try:
                stream.sender.push(event.text, now, tokens=len(event.tokens))
            except Refused as error:
                self.counters["stalled"] += 1
                self._fail(stream, failure_of(error))
        elif isinstance(event, Finished):
            stream.finish(event, self.limits.reply_bytes // 4)
            self._ended(stream)
        elif isinstance(event, Failed):
            self._fail(stream, failure_of(event.error))

    def _fail(self, stream: Stream, failure: Failure) -> None:
        if stream.sender.terminal is None:
            stream.sender.fail(failure)
            stream.stop()
            self.counters["failed"] += 1
            LOG.info("failed: %s %s", failure.code, failure.message,
                     extra={"request_id": stream.request.rid, "device": stream.device})
            self._ended(stream)

    def _cancel(self, stream: Stream) -> None:
        """Ask the engine for the end, or end it here if the engine does not have it."""
        if stream.sender.terminal is None and not stream.stop():
            stream.sender.finish("superseded" if stream.superseded else "cancelled")
            self._ended(stream)
            self._pump(stream)

    def _ended(self, stream: Stream) -> None:
        """Count a request out that has its terminal now."""
        self.counters["ended"] += 1
        device, waiting = stream.device, self._waiting.get(stream.device, [])
        if stream.active:
            self._quota.end(device)
        else:
            self._quota.leave(device)
            if stream in waiting:
                waiting.remove(stream)
        self._known.finished(device, stream.request.rid, stream.sender.kept, self._clock())
        self._start(device)

    # ---- a device's words about its requests ----

    def _control(self, device: str, message: Cancel | Credit | Resume | Done) -> None:
        now = self._clock()
        if isinstance(message, Credit | Resume):
            rate = self._rates.setdefault(device, Rate(self.limits.controls_per_s))
            if not rate.allow(now):
                self.counters["ignored"] += 1  # it is said again: a lost credit is one case with this
                return
        stream = self._known.get(device, message.rid)
        if stream is None or message.attempt not in {"", stream.sender.attempt}:
            if isinstance(message, Resume):
                self._transport.send(device, Failure(
                    rid=message.rid, attempt=message.attempt, code="node_lost", message=LOST_MESSAGE))
            return
        if isinstance(message, Cancel):
            self._cancel(stream)
            return
        try:
            stream.sender.hear(message)
        except Refused as error:
            if isinstance(message, Resume):
                self._transport.send(device, error.reply)
            return
        if isinstance(message, Done) and stream.sender.terminal is not None:
            self._known.done(device, message.rid, now, 0)
            self._open.pop(stream.key, None)
            return
        self.counters["resumed"] += isinstance(message, Resume)
        self._reopen(stream)
        if isinstance(message, Resume) and stream.sender.terminal is None:
            self._sign(stream, now)

    def _listed(self, device: str, message: List) -> Listed:
        if message.what == "streams":
            items = [stream.as_item() for stream in self._of(device)]
        elif message.what == "sessions":
            items = self._sessions.items(device)
        else:
            items = self.house.items(message.what)
        return Listed(what=message.what, items=tuple(items))

    # ---- sending ----

    def _of(self, device: str) -> list[Stream]:
        return [stream for stream in self._open.values() if stream.device == device]

    def _reopen(self, stream: Stream) -> None:
        if not stream.sender.settled:
            self._open[stream.key] = stream
        self._pump(stream)

    def _pump(self, stream: Stream) -> None:
        """Send what may go now; what the transport does not take is taken back and goes later."""
        sender, device = stream.sender, stream.device
        if (sender.terminal is None and not stream.request.stream) or not self._transport.room(device):
            return
        now = self._clock()
        for message in sender.take(now):
            stream.signed = now
            if not self._transport.send(device, message):
                sender.rewind()
                return
            if message is sender.terminal:
                self._open.pop(stream.key, None)

    def _watch(self, stream: Stream, now: float) -> None:
        """Look at the times of a request that is unfinished."""
        if stream.late(now):
            if stream.started is None and stream.expired(now):
                self._fail(stream, Failure(code="expired", message="its time passed before it could begin"))
            elif not stream.active:
                stream.sender.finish("deadline")
                self._ended(stream)
            self._pump(stream)
        elif stream.sender.starved_s(now) > self.limits.stall_s and not stream.stalled:
            stream.stalled = True
            self.counters["stalled"] += 1
            LOG.warning("stalled: no credit for %g s", self.limits.stall_s,
                        extra={"request_id": stream.request.rid, "device": stream.device})
            if stream.request.absent == "cancel":
                self._cancel(stream)
        elif now - stream.signed > SIGN_S:
            self._sign(stream, now)

    def _sign(self, stream: Stream, now: float) -> None:
        stream.signed = now
        if self._transport.room(stream.device):
            self._transport.send(stream.device, Said(
                rid=stream.request.rid, attempt=stream.sender.attempt, state=stream.state))
