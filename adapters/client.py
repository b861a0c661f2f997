"""The same calls as in the process, on a running service: ``connect("ipc:///run/arenite/arenite.sock")``.

Needs neither libllama nor a model.  The connection is made anew when it is lost, and requests under way go on where
they were; if the service itself was restarted they are asked again, and go on if the answer is the same.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any, Self

import msgspec

from ..runtime.errors import EngineFailed, InvalidRequest
from ..runtime.forms import Form
from ..runtime.request import POLICIES, PRIORITIES
from ..runtime.ticket import NOTHING
from ..runtime.typed import form_of
from .call import RemoteTicket
from .link import Keys, Link, What, first_welcome
from .messages import Coalesce, Generate, new_request_id
from .wire import priority_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .limits import Welcome

WINDOW = 64 << 10  # bytes that may be under way unacknowledged: a program has room
PLAIN = ("max_tokens", "temperature", "seed", "session", "model", "policy", "key", "window", "absent")
OTHERS = ("stop", "schema", "raw", "priority", "deadline", "lifetime", "fallback", "chunk_ms")
AT_ONCE = Coalesce(ms=0)


class Client:
    """A connection to a service.  Any thread may use it; many requests run at once.

    A prompt is a text or a list of messages, as for `Model`: with a chat template a text counts as one user message,
    unless ``raw=True``.  Further arguments of `submit`, `generate`, `stream` and `chat`:

    ``model``       its name there; empty: the first
    ``max_tokens``, ``temperature``, ``seed``, ``stop``, ``schema``, ``priority``, ``deadline``, ``key``, ``policy``,
    ``session``, ``fallback``   as for `Model`; a session begins with its first use and is this client's own
    ``lifetime``    seconds within which the answer must have begun
    ``absent``      ``cancel`` ends the answer when this client is gone; ``keep`` lets it go on
    ``chunk_ms``    text is gathered for so many milliseconds; 0: sent as it comes
    ``window``      bytes that may be under way unacknowledged; 0: no limit

    ``secret``: show it to another `connect`, in another process too, to `resume` requests of this client.
    """

    def __init__(self, link: Link, welcome: Welcome, timeout: float) -> None:
        self._link, self._timeout = link, timeout
        self._numbers = itertools.count(1)
        self._rids: dict[int, str] = {}
        self.node = welcome.node

    @property
    def secret(self) -> str:
        """What this client is known by; whoever has it may read and cancel its requests."""
        return self._link.secret

    def submit(self, prompt: Any, **settings: Any) -> RemoteTicket:
        """Send a request and return at once with its ticket.  Raises InvalidRequest for what can not be asked."""
        fallback = settings.pop("fallback", NOTHING)
        deadline, priority = settings.get("deadline"), settings.get("priority", "interactive")
        decode, schema = _decoder(settings.pop("schema", None))
        request = _request(prompt, schema, settings)
        self._link.check(request)
        ticket = self._ticket(
            request.rid, priority=priority, deadline=deadline, key=request.key, policy=request.policy, decode=decode,
            fallback=fallback,
        )
        self._link.begin(ticket, request)
        return ticket

    def resume(self, rid: str) -> RemoteTicket:
        """Follow a request of this client's that runs or has ended there, from its first character on."""
        ticket = self._ticket(rid)
        self._link.begin(ticket, None)
        return ticket

    def generate(self, prompt: Any, **settings: Any) -> Any:
        """Answer a prompt; waits for the whole answer."""
        return self.submit(prompt, **settings).result()

    def stream(self, prompt: Any, **settings: Any) -> RemoteTicket:
        """Answer a prompt piece by piece: ``for piece in ...`` or ``async for piece in ...``."""
        return self.submit(prompt, **settings)

    def chat(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> Any:
        """Answer a conversation."""
        return self.generate(list(messages), **settings)

    def models(self) -> list[dict[str, Any]]:
        """Return what models there are."""
        return self._ask("models")

    def sessions(self) -> list[dict[str, Any]]:
        """Return this client's conversations."""
        return self._ask("sessions")

    def streams(self) -> list[dict[str, Any]]:
        """Return this client's requests that are under way there."""
        return self._ask("streams")

    def health(self) -> dict[str, Any]:
        """Return how the service is."""
        items = self._ask("health")
        return items[0] if items else {}

    def forget(self, session: str) -> None:
        """Forget a conversation."""
        self._link.forget(session)

    def close(self) -> None:
        """End the connection; waiting calls end with EngineClosed.  Twice is harmless."""
        self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, what: What) -> list[dict[str, Any]]:
        try:
            return self._link.ask(what).result(self._timeout)
        except FutureTimeout:
            raise EngineFailed(f"{self._link.url} does not answer within {self._timeout:g} s") from None

    def _ticket(self, rid: str, **settings: Any) -> RemoteTicket:
        number = next(self._numbers)
        return RemoteTicket(rid, number, lambda _number: self._link.cancel(rid), **settings)


class AsyncClient:
    """A `Client` for an event loop; tickets are awaited or iterated over with ``async for``."""

    def __init__(self, client: Client) -> None:
        self.client = client

    @property
    def secret(self) -> str:
        """What this client is known by."""
        return self.client.secret

    def submit(self, prompt: Any, **settings: Any) -> RemoteTicket:
        """Send a request and return at once with its ticket."""
        return self.client.submit(prompt, **settings)

    def stream(self, prompt: Any, **settings: Any) -> RemoteTicket:
        """Answer a prompt piece by piece: ``async for piece in ...``."""
        return self.client.submit(prompt, **settings)

    def resume(self, rid: str) -> RemoteTicket:
        """Follow a request that is known there."""
        return self.client.resume(rid)

    async def generate(self, prompt: Any, **settings: Any) -> Any:
        """Answer a prompt, awaiting the whole answer; cancelled with the task that awaits it."""
        return await self.client.submit(prompt, **settings)

    async def chat(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> Any:
        """Answer a conversation, awaiting the whole answer."""
        return await self.client.submit(list(messages), **settings)

    async def models(self) -> list[dict[str, Any]]:
        """Return what models there are."""
        return await asyncio.to_thread(self.client.models)

    async def health(self) -> dict[str, Any]:
        """Return how the service is."""
        return await asyncio.to_thread(self.client.health)

    async def close(self) -> None:
        """End the connection."""
        await asyncio.to_thread(self.client.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def connect(
    url: str, *, name: str = "", secret: str = "", server_key: str = "", public_key: str = "", secret_key: str = "",
    timeout: float = 10.0,
) -> Client:
    """Connect to a service at ``ipc:///path`` or ``tcp://host:port``.

    ``name``: what the service's log calls us.  ``secret``: of an earlier client whose requests are to be found again.
    ``server_key``, ``public_key``, ``secret_key``: CURVE, for a service that asks for it.
    Raises EngineFailed if nobody answers within ``timeout`` seconds, RequestError if we are not let in.
    """
    if not url.startswith(("ipc://", "tcp://")):
        raise InvalidRequest(f"{url!r}: give ipc:///path or tcp://host:port")
    keys = Keys(server_key, public_key, secret_key) if server_key or public_key or secret_key else None
    link = Link(url, name=name, secret=secret, keys=keys)
    return Client(link, first_welcome(link, timeout), timeout)


async def connect_async(url: str, **settings: Any) -> AsyncClient:
    """Connect as `connect` does, without keeping the event loop waiting."""
    return AsyncClient(await asyncio.to_thread(connect, url, **settings))


def _decoder(schema: Any) -> tuple[Any, dict[str, Any] | None]:
    """Return what makes an object of the answer (None: it stays a text), and the JSON schema for the wire."""
    if schema is None:
        return None, None
    form, decode = form_of(schema)
    if form.schema is None:
        raise InvalidRequest("schema: over the wire the form of an answer is a JSON schema or a Python type")
    return (None if isinstance(schema, (Mapping, str, Form)) else decode), dict(form.schema)


def _request(prompt: Any, schema: dict[str, Any] | None, settings: dict[str, Any]) -> Generate:
    """Build the message from loose settings; an unknown one raises InvalidRequest with the known names."""
    if unknown := sorted(set(settings) - {*PLAIN, *OTHERS}):
        names = ", ".join(sorted({*PLAIN, *OTHERS}))
        raise InvalidRequest(f"unknown setting {unknown[0]!r}: over the wire there are {names}")
    values = {name: settings[name] for name in PLAIN if name in settings}
    stop, deadline, lifetime = settings.get("stop") or (), settings.get("deadline"), settings.get("lifetime")
    priority = settings.get("priority", "interactive")
    if priority not in PRIORITIES or values.get("policy", "queue") not in POLICIES:
        raise InvalidRequest(f"give one of {', '.join(PRIORITIES)} as priority, of {', '.join(POLICIES)} as policy")
    if isinstance(prompt, str):
        raw = settings.get("raw", False)
        said: dict[str, Any] = {"prompt": prompt} if raw else {"messages": ({"role": "user", "content": prompt},)}
    else:
        said = {"messages": tuple(dict(message) for message in prompt)}
    try:
        return Generate(
            rid=new_request_id(), **said, schema=schema, stop=(stop,) if isinstance(stop, str) else tuple(stop),
            priority=priority_number(priority), deadline_ms=_milliseconds(deadline),
            lifetime_ms=_milliseconds(lifetime), **{"window": WINDOW, **values},
            chunk=msgspec.structs.replace(AT_ONCE, ms=settings.get("chunk_ms", 0)),
        )
    except (TypeError, ValueError) as error:
        raise InvalidRequest(str(error)) from None


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else max(1, round(1e3 * seconds))
