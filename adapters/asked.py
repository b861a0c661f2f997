"""What a request on the wire asks of a model, in the model's own words.

``prompt`` is continued as it stands.  ``msgs`` go through the model's chat template; a model without one takes a single
message of the user as its prompt.  With ``sid`` the last message is the next turn of a conversation, which begins with
its first use and belongs to the device that began it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from ..runtime.errors import Busy, InvalidRequest, UnknownSession
from .refused import RETRY_MS, Refused
from .wire import priority_name

if TYPE_CHECKING:
    from ..runtime.api import Model
    from ..runtime.session import Session
    from ..runtime.ticket import Ticket
    from .bridge import House
    from .limits import Limits
    from .messages import Generate
    from .streams import Stream

SHORTEST_S = 1e-3  # a deadline that has just passed: the engine says so


class Conversations:
    """The sessions that devices have begun, by device and name.  Any thread may use it."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._known: dict[tuple[str, str], str] = {}

    def open(self, device: str, name: str, model: Model, limits: Limits) -> Session:
        """Return a conversation, begun if there is none.  Raises Busy if there are too many."""
        try:
            return model.sessions.get(f"{device}/{name}")
        except UnknownSession:
            if len(model.sessions) >= limits.sessions:
                raise Busy(f"{limits.sessions} sessions are open: forget one", RETRY_MS) from None
        if len(self._known) >= 2 * limits.sessions:
            self._known = {key: model for key, model in tuple(self._known.items()) if self._find(*key) is not None}
        self._known[device, name] = model.name
        return model.session(f"{device}/{name}", ttl=limits.session_idle_s, max_turns=limits.session_turns)

    def forget(self, device: str, name: str) -> None:
        """Forget a conversation; waits for its running turn to end.  Raises UnknownSession if there is none."""
        model = self._find(device, name)
        self._known.pop((device, name), None)
        if model is None:
            raise UnknownSession(f"there is no session {name!r}")
        model.sessions.forget(f"{device}/{name}")

    def items(self, device: str) -> list[dict[str, Any]]:
        """Return the device's conversations, as the wire tells them."""
        return [{"sid": name, "model": model} for (owner, name), model in tuple(self._known.items())
                if owner == device and self._find(owner, name) is not None]

    def _find(self, device: str, name: str) -> Model | None:
        """Return the model that has the conversation, or None if it was forgotten."""
        try:
            model = self._house.find(self._known.get((device, name), "?"))
            model.sessions.get(f"{device}/{name}")
        except (UnknownSession, Refused):
            return None
        return model


def submit(house: House, sessions: Conversations, limits: Limits, stream: Stream, now: float) -> Ticket:
    """Hand a request to its model; waits for the tokenizer.  Raises what `Model.submit` raises, and `Refused`."""
    request, device = stream.request, stream.device
    model = house.find(request.model)
    settings = _settings(device, request)
    if request.deadline_ms is not None:
        settings["deadline"] = max(SHORTEST_S, request.deadline_ms / 1e3 - (now - stream.arrived))
    if request.session:
        return sessions.open(device, request.session, model, limits).submit(_words(request), **settings)
    if request.prompt is not None:
        return model.submit(request.prompt, raw=True, **settings)
    if model.info.chat_template is None:
        return model.submit(_words(request), **settings)
    return model.submit(list(request.messages or ()), **settings)


def _settings(device: str, request: Generate) -> dict[str, Any]:
    if request.tools:
        raise InvalidRequest("tools: this version has none; describe the answer with a schema")
    settings: dict[str, Any] = {
        "max_tokens": request.max_tokens, "stop": request.stop, "priority": priority_name(request.priority),
        "policy": request.policy,
    }
    if request.key is not None:  # a device's keys are its own
        settings["key"] = hashlib.sha256(f"{device}\n{request.key}".encode()).hexdigest()
    if request.temperature is not None:
        settings["temperature"] = request.temperature
    if request.seed is not None:
        settings["seed"] = request.seed
    if request.schema is not None:
        settings["schema"] = request.schema
    return settings


def _words(request: Generate) -> str:
    """Return the one text that a request consists of."""
    if request.prompt is not None:
        return request.prompt
    messages = request.messages or ()
    if len(messages) == 1 and messages[0].get("role") == "user" and isinstance(messages[0].get("content"), str):
        return str(messages[0]["content"])
    raise InvalidRequest("give one message of the user: the model has no chat template, or a session has the rest")
