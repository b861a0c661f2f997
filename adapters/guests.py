"""Who is connected: clients by the secret that their welcome gave them.

A client says `Hello` and gets a random secret in the header of its `Welcome`; every later message of its carries it.
So nobody else can read, resume or cancel its requests, on ipc either, where everybody who may open the socket is let
in.  A client that starts anew shows its old secret in its hello and finds its requests again.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from .quota import Outbound
from .refused import RETRY_MS, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .messages import Hello

SECRET = "secret"  # noqa: S105 - the key in the header, not its value
HEADER = 3  # which frame that is
LONGEST_SECRET = 64


def with_secret(frames: list[bytes], secret: str) -> list[bytes]:
    """Return a message's frames with the secret in their header."""
    header: dict[str, msgspec.Raw | str] = {**msgspec.msgpack.decode(frames[HEADER], type=dict[str, msgspec.Raw])}
    header[SECRET] = secret
    return [*frames[:HEADER], msgspec.msgpack.encode(header), *frames[HEADER + 1:]]


def take_secret(frames: Sequence[bytes]) -> tuple[list[bytes], str]:
    """Return the frames without the secret, and the secret; empty where there is none, or no header to read."""
    found = list(frames)
    if len(found) <= HEADER:
        return found, ""
    try:
        header = msgspec.msgpack.decode(found[HEADER], type=dict[str, msgspec.Raw])
        secret = msgspec.msgpack.decode(header.pop(SECRET), type=str) if SECRET in header else ""
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return found, ""
    found[HEADER] = msgspec.msgpack.encode(header)
    return found, secret if len(secret) <= LONGEST_SECRET else ""


@dataclass(slots=True)
class Guest:
    """One client.  ``identity``: its connection, empty while it has none; ``user``: its CURVE key, empty without."""

    device: str
    secret: str
    user: str
    identity: bytes
    seen: float
    outbound: Outbound = field(default_factory=Outbound)

    def knows(self, secret: str) -> bool:
        """Tell whether this is its secret."""
        return hmac.compare_digest(self.secret.encode(), secret.encode("utf-8", "replace"))


class Guests:
    """All clients, at most ``limit``; those that are away and have nothing under way make room for new ones."""

    def __init__(self, limit: int, outbound: int) -> None:
        self.limit, self.outbound = limit, outbound
        self._by_identity: dict[bytes, Guest] = {}
        self._by_secret: dict[str, Guest] = {}  # those that were heard last stand last
        self._by_device: dict[str, Guest] = {}

    def __len__(self) -> int:
        return len(self._by_device)

    def connected(self) -> list[Guest]:
        """Return those that have a connection."""
        return list(self._by_identity.values())

    def at(self, identity: bytes) -> Guest | None:
        """Return the client of a connection."""
        return self._by_identity.get(identity)

    def named(self, device: str) -> Guest | None:
        """Return the client that is known to the bridge by this name."""
        return self._by_device.get(device)

    def welcome(
        self, hello: Hello, secret: str, identity: bytes, user: str, now: float, idle: Callable[[str], bool],
    ) -> Guest:
        """Let a client in, or in again.  Raises `Refused` (`busy`) if the house is full."""
        guest = self._by_secret.pop(secret, None) if secret else None
        if guest is not None and guest.user != user:
            self._by_secret[secret] = guest
            guest = None
        if guest is None:
            self._make_room(idle, now)
            secret = secrets.token_hex(16)
            device = f"{hello.client[:40]}.{hashlib.sha256(secret.encode()).hexdigest()[:16]}"
            guest = self._by_device[device] = Guest(device, secret, user, b"", now)
        self._by_secret[guest.secret] = guest
        self.leave(guest)
        other = self._by_identity.pop(identity, None)
        if other is not None:
            other.identity = b""
        guest.identity, guest.seen = identity, now
        self._by_identity[identity] = guest
        return guest

    def leave(self, guest: Guest) -> None:
        """Note that its connection is gone, and with it what waited there."""
        self._by_identity.pop(guest.identity, None)
        guest.identity, guest.outbound = b"", Outbound(self.outbound)

    def _make_room(self, idle: Callable[[str], bool], now: float) -> None:
        if len(self._by_device) < self.limit:
            return
        away = (guest for guest in self._by_device.values() if now - guest.seen > AWAY_S or not guest.identity)
        oldest = min((guest for guest in away if idle(guest.device)), key=lambda guest: guest.seen, default=None)
        if oldest is None:
            raise Refused("busy", f"{self.limit} clients are connected", retry_ms=5 * RETRY_MS)
        self.leave(oldest)
        del self._by_device[oldest.device], self._by_secret[oldest.secret]


AWAY_S = 60.0  # a client pings every few seconds; one that is silent for so long is gone
