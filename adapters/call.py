"""One request as its client sees it: messages in, events for its ticket out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from ..runtime.errors import EngineClosed, EngineFailed, Error
from ..runtime.events import Accepted, Failed, Finished, Progress, Started, Usage
from ..runtime.ticket import Ticket
from . import receiver
from .messages import TEXT, Accept, Cancel, Chunk, End, Failure, Generate, Resume
from .refused import error_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from .wire import ToDevice, ToNode

FIRST_TRY_S, LONGEST_TRY_S = 2.0, 16.0  # without an answer before a request is said again, doubled each time
GRACE_S = 1.0  # beyond a deadline, before it counts though the node has not said so
OTHER = "the node has restarted, and the answer that it began anew is another one: ask again"


class RemoteTicket(Ticket):
    """A `Ticket` of a request at a service.  ``rid``: its id there, with which a later process may `Client.resume` it.

    Its tokens are not told over the wire: `Completion.tokens` is empty.  An error that ends it has ``rid`` and
    ``partial``, the text until then.
    """

    def __init__(self, rid: str, number: int, cancel: Callable[[int], None], **settings: Any) -> None:
        super().__init__(number, cancel, **settings)
        self.rid = rid


class Call:
    """A request under way.  ``request``: None if it is another process's, which is only followed.

    ``take`` and ``poll`` return what to say to the node.  Belongs to the link's thread.
    """

    def __init__(self, ticket: RemoteTicket, request: Generate | None, now: float) -> None:
        self.ticket, self.request = ticket, request
        window = 4096 if request is None else request.window
        self.receiver = receiver.Receiver(ticket.rid, now, window=window)
        self.began = now
        self.cancelled = False
        self._try_s, self._try_at = FIRST_TRY_S, now + FIRST_TRY_S
        self._behind = ""  # text that a new attempt has to repeat before it goes on

    def begin(self, now: float) -> list[ToNode]:
        """Return the first words, and the same again while the node has not answered."""
        self._try_at = now + self._try_s
        self._try_s = min(2 * self._try_s, LONGEST_TRY_S)
        if self.request is None:
            return [Resume(rid=self.ticket.rid, offset=0)]
        request = self.request
        if request.deadline_ms is not None:
            left = request.deadline_ms - round(1e3 * (now - self.began))
            request = msgspec.structs.replace(request, deadline_ms=max(1, left))
        return [request, *([Cancel(rid=self.ticket.rid)] if self.cancelled else [])]

    def due(self) -> float:
        """Return the time at which `poll` has something to do though nothing comes."""
        times = [due for due in (self.receiver.due(),) if due is not None]
        return min([*times, *([] if self.receiver.attempt else [self._try_at])], default=float("inf"))

    def back(self, now: float, *, restarted: bool) -> list[ToNode]:
        """Return what to say when the link is there again; ``restarted``: with a node that knows nothing of it."""
        if self.ticket.done:
            return []
        if restarted:
            if self.request is None:
                self._fail(EngineClosed("the node has restarted: it does not know the request any more"))
                return []
            self.receiver.lose(now)
        if not self.receiver.attempt:
            self._try_s = FIRST_TRY_S
            return self.begin(now)
        return self._act(self.receiver.resume(now))

    def take(self, message: ToDevice, now: float) -> list[ToNode]:
        """Take a message about it."""
        if isinstance(message, Failure) and message.code == "node_lost" and self.request is not None:
            return self.back(now, restarted=True)  # it knows the request no longer; or not yet
        if isinstance(message, Failure) and message.code == "not_loaded" and self._patient(message, now):
            return []
        if isinstance(message, Accept):
            self.ticket.deliver(Accepted(self.ticket.number))
        elif isinstance(message, Chunk) and self.ticket.state == "accepted":
            self.ticket.deliver(Started(self.ticket.number))
        return self._act(self.receiver.take(message, now))

    def _patient(self, message: Failure, now: float) -> bool:
        """Ask again later if the model is only being loaded; False if there is no time for that."""
        late = self.ticket.deadline is not None and now > self.began + self.ticket.deadline
        if message.retry_ms is None or self.request is None or self.cancelled or late:
            return False
        self._behind = self._behind or self.ticket.partial()
        self.receiver = receiver.Receiver(self.ticket.rid, now, window=self.request.window)
        self._try_s, self._try_at = FIRST_TRY_S, now + message.retry_ms / 1e3
        return True

    def poll(self, now: float, *, linked: bool) -> list[ToNode]:
        """Return what to say because of the time."""
        deadline = self.ticket.deadline
        if deadline is not None and now > self.began + deadline + GRACE_S and not linked:
            self._finish("deadline")
            return []
        said = self._act(self.receiver.poll(now))
        if linked and not self.receiver.attempt and not self.ticket.done and now >= self._try_at:
            said += self.begin(now)
        return said

    def cancel(self, *, linked: bool) -> list[ToNode]:
        """Return what to say so that it ends; what was never heard of by a node ends here."""
        self.cancelled = True
        if not linked and not self.receiver.attempt:
            self._finish("cancelled")
            return []
        return [Cancel(rid=self.ticket.rid, attempt=self.receiver.attempt)]

    def close(self, error: Error) -> None:
        """End it here."""
        self._fail(error)

    def _act(self, actions: list[receiver.Action]) -> list[ToNode]:
        said: list[ToNode] = []
        for action in actions:
            match action:
                case receiver.Deliver():
                    if action.channel == TEXT and not self._show(action.text):
                        said.append(Cancel(rid=self.ticket.rid))
                case receiver.Send():
                    said.append(action.message)
                case receiver.Restart():
                    self._behind = self.ticket.partial()
                case receiver.Finished():
                    self._finish(action.end)
                case receiver.Failed():
                    self._fail(error_of(action.failure))
                case receiver.Broken():
                    self._fail(EngineFailed(f"the answer is lost: {action.reason}"))
        return said

    def _show(self, text: str) -> bool:
        """Hand text on, without what was shown before; False if it is not what was shown."""
        if self.ticket.done:
            return False
        common = min(len(text), len(self._behind))
        if text[:common] != self._behind[:common]:
            self._fail(EngineClosed(OTHER))
            return False
        self._behind, text = self._behind[common:], text[common:]
        if text:
            self.ticket.deliver(Progress(self.ticket.number, (), text))
        return True

    def _finish(self, end: End | str) -> None:
        if self.ticket.done:
            return
        if self._behind:
            self._fail(EngineClosed(OTHER))
            return
        total = time.monotonic() - self.began
        if isinstance(end, str):
            reason = "deadline" if end == "deadline" else "cancelled"
            self.ticket.deliver(Finished(self.ticket.number, reason, Usage(0, 0, total, total, 0, 0)))  # type: ignore[arg-type]
            return
        use, timing = end.usage, end.timing
        usage = Usage(
            use.prompt if use else 0, use.answer if use else 0, timing.first_token_ms / 1e3 if timing else total, total,
            (use.seed if use else None) or 0, 0, use.cached if use else 0,
        )
        self.ticket.deliver(Finished(self.ticket.number, "stop" if end.reason == "tool" else end.reason, usage))

    def _fail(self, error: Error) -> None:
        if not self.ticket.done:
            error.__dict__.update(rid=self.ticket.rid, partial=self.ticket.partial())
            self.ticket.deliver(Failed(self.ticket.number, error))
