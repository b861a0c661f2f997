"""What a node knows of one request while it is under way."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any, Literal

from .messages import Timing, Usage
from .stream import Sender

if TYPE_CHECKING:
    from ..runtime.events import Finished
    from ..runtime.ticket import Ticket
    from .limits import Limits
    from .messages import Generate


class Stream:
    """A request, the ticket that answers it, and the sender of its answer.  Belongs to the bridge's thread.

    ``active``: handed to the engine; ``started``: when the engine began; ``signed``: when the device heard of it last.
    """

    def __init__(self, device: str, request: Generate, limits: Limits, now: float) -> None:
        self.device, self.request, self.arrived = device, request, now
        self.key = device, request.rid
        self.sender = Sender(
            request.rid, secrets.token_hex(4), window=request.window, chunk=request.chunk, limits=limits,
        )
        self.active = self.cancelled = self.superseded = self.stalled = False
        self.started: float | None = None
        self.signed = now
        self._ticket: Ticket | None = None

    @property
    def state(self) -> Literal["queued", "prefill", "gen"]:
        """Where it stands, as the wire says it."""
        return "queued" if self.started is None else "gen" if self.sender.kept else "prefill"

    def hold(self, ticket: Ticket) -> None:
        """Take the ticket; if the end was asked for meanwhile, it is asked for now."""
        if self.sender.terminal is None:
            self._ticket = ticket
        if self.cancelled:
            ticket.cancel()

    def stop(self) -> bool:
        """Ask the engine for the end; False if the engine does not have the request: then nobody else will end it."""
        self.cancelled = True
        if self._ticket is not None:
            self._ticket.cancel()
        return self.active

    def late(self, now: float) -> bool:
        """Tell whether it should not begin any more."""
        deadline = self.request.deadline_ms
        return self.expired(now) or (deadline is not None and not self.active and now - self.arrived > deadline / 1e3)

    def expired(self, now: float) -> bool:
        """Tell whether its lifetime has passed and it has not begun."""
        lifetime = self.request.lifetime_ms
        return lifetime is not None and self.started is None and now - self.arrived > lifetime / 1e3

    def finish(self, event: Finished, longest: int) -> None:
        """Note the engine's end; an answer of a schema is told as an object, too, if its text is not longer."""
        usage, ticket = event.usage, self._ticket
        self._ticket = None
        result = None
        if self.request.schema is not None and event.reason == "stop" and ticket is not None:
            result = _parsed(ticket.partial(), longest)
        after = usage.total_s - usage.first_token_s
        self.sender.finish(
            "superseded" if self.superseded and event.reason == "cancelled" else event.reason,
            usage=Usage(prompt=usage.prompt_tokens, answer=usage.answer_tokens, cached=usage.cached_tokens,
                        seed=usage.seed if 0 <= usage.seed < 1 << 53 else None),
            timing=Timing(queued_ms=1e3 * max(0.0, (self.started or self.arrived) - self.arrived),
                          first_token_ms=1e3 * max(0.0, usage.first_token_s),
                          tokens_s=usage.answer_tokens / after if after > 0 else 0.0),
            result=result,
        )

    def as_item(self) -> dict[str, Any]:
        """Return what `List` tells of it."""
        return {"rid": self.request.rid, "e": self.sender.attempt, "st": self.state, "model": self.request.model,
                "prio": self.request.priority}


def _parsed(text: str, longest: int) -> Any:
    if len(text) > longest:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
