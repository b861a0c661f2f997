"""The node's side of ARN1 over ZeroMQ: a ROUTER for requests and an XPUB for status, in one event loop.

No send ever waits.  What a client does not take is queued for it within a bound; a stream that is beyond it keeps its
text and goes on when there is room, so a slow client stalls itself only.  One that leaves even the answers to its own
words lying is dropped, and finds its streams again when it comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket as sockets
import time
from typing import TYPE_CHECKING, Any

import msgspec
import zmq

from ..runtime.errors import ConfigError
from . import guests
from .frames import Frames
from .guests import Guests
from .keys import DOMAIN, Doorkeeper, check_key, read_allowed
from .limits import Welcome
from .messages import VERSION, Bye, Chunk, Failure, Hello, Ping, Pong
from .refused import Refused
from .status import Board

if TYPE_CHECKING:
    from .bridge import Bridge
    from .guests import Guest
    from .limits import Limits
    from .settings import Zeromq
    from .wire import ToDevice, ToNode

LOG = logging.getLogger("arenite")
FAST_S, SLOW_S = 0.02, 0.25  # between two looks at the time, with and without streams under way
AT_ONCE = 64  # messages that are taken before others have their turn
LINGER_MS = 1000
STRANGER = "say hello first; then every message carries the secret of its welcome"


class Node:
    """Sockets of one service.  Give it its bridge, `open` it, and run `serve` as a task; belongs to one event loop.

    A `bridge.Transport`.  Raises ConfigError for endpoints that can not be had.
    """

    bridge: Bridge

    def __init__(self, settings: Zeromq, limits: Limits, *, clients: int = 1024) -> None:
        self.settings, self.limits = settings, limits
        self.endpoints: list[str] = []
        self.status: Board | None = None
        self.dropped = self.turns = 0  # clients; looks at the time
        self._frames = Frames(limits)
        self._guests = Guests(clients, limits.outbound_bytes)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 4 * clients + 1024)
        self._doors: Doorkeeper | None = None
        self._router: zmq.Socket[bytes] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stirred = asyncio.Event()
        self._woken = False

    # ---- the service ----

    def open(self) -> None:
        """Bind all endpoints; from here on clients may connect, and are served once `serve` runs."""
        try:
            secret = self._secret()
            self._router = self._socket(zmq.ROUTER)
            self._bind(self._router, self.settings.listen, secret)
            if self.settings.status is not None:
                board = self._socket(zmq.XPUB)
                board.setsockopt(zmq.XPUB_VERBOSE, 1)
                self._bind(board, (self.settings.status,), secret)
                self.status = Board(board)
        except BaseException:
            self._context.destroy(linger=0)
            raise

    async def serve(self) -> None:
        """Carry messages until cancelled."""
        loop = self._loop = asyncio.get_running_loop()
        readers = [(self._router, self._readable)]
        if self._doors is not None:
            readers.append((self._doors.socket, self._doors.answer))
        if self.status is not None:
            readers.append((self.status.socket, self.status.answer))
        for socket, reader in readers:
            if socket is not None:
                loop.add_reader(_descriptor(socket), reader)
        try:
            while True:
                for _, reader in readers:
                    reader()  # a descriptor of libzmq tells of changes only: none is missed for longer than this
                self.turns += 1
                self.bridge.tick()
                self._flush()
                self._stirred.clear()
                if self.bridge.busy or self.waiting():
                    await asyncio.sleep(FAST_S)
                else:  # not wait_for, which may swallow a cancellation
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(SLOW_S):
                            await self._stirred.wait()
        finally:
            for socket, _ in readers:
                if socket is not None:
                    loop.remove_reader(_descriptor(socket))
            self._loop = None

    def allow(self, keys: frozenset[str]) -> None:
        """Let only these CURVE keys in from now on, connected or not."""
        if self._doors is not None:
            self._doors.allowed = keys
            for guest in self._guests.connected():
                if guest.user and guest.user not in keys:
                    self._guests.leave(guest)
                    self.bridge.left(guest.device)

    def change_limits(self, limits: Limits, clients: int) -> None:
        """Let other limits count from now on."""
        self.limits, self._frames = limits, Frames(limits)
        self._guests.limit, self._guests.outbound = clients, limits.outbound_bytes

    def waiting(self) -> int:
        """Return the bytes that wait for clients."""
        return sum(guest.outbound.bytes for guest in self._guests.connected())

    def facts(self) -> dict[str, Any]:
        """Return what is told of the link."""
        return {"clients": len(self._guests.connected()), "outbound": self.waiting(), "dropped": self.dropped,
                "refused_keys": self._doors.refused if self._doors else 0}

    def close(self) -> None:
        """Say goodbye, send what may still go within a second, and free the endpoints."""
        for guest in self._guests.connected():
            self.send(guest.device, Bye())
        self._context.destroy(linger=LINGER_MS)

    def wake(self) -> None:
        """Have the bridge's `turn` called soon; from any thread."""
        if not self._woken and self._loop is not None:
            self._woken = True
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody is served any more
                self._loop.call_soon_threadsafe(self._turn)

    # ---- the bridge's transport ----

    def room(self, device: str) -> bool:
        """Tell whether the client is connected and takes more chunks now."""
        guest = self._guests.named(device)
        return guest is not None and bool(guest.identity) and not guest.outbound.full

    def send(self, device: str, message: ToDevice) -> bool:
        """Send, or queue within the bound; False if it was neither."""
        guest = self._guests.named(device)
        if guest is None or not guest.identity:
            return False
        frames = self._write(message)
        if not len(guest.outbound):
            sent = self._try(guest, frames)
            if sent is not None:
                return sent
        if guest.outbound.bytes > 2 * guest.outbound.size:
            self._drop(guest, "it takes nothing")
            return False
        return guest.outbound.put(msgspec.msgpack.encode(frames), chunk=isinstance(message, Chunk))

    def _write(self, message: ToDevice) -> list[bytes]:
        try:
            return self._frames.write(message)
        except Refused as error:  # a request id that this transport can not carry, or a result that is too long
            LOG.debug("not written: %s", error)
            return self._frames.write(Failure(code=error.code, message=error.message))

    def _try(self, guest: Guest, frames: list[bytes]) -> bool | None:
        """Send at once: True; None if there is no room in the socket, False if the client is gone."""
        assert self._router is not None  # noqa: S101 - nobody has said hello before `open`
        try:
            self._router.send_multipart([guest.identity, *frames], zmq.NOBLOCK)
        except zmq.Again:
            return None
        except zmq.ZMQError as error:  # no route: it has gone
            self._drop(guest, str(error))
            return False
        return True

    def _drop(self, guest: Guest, why: str) -> None:
        self.dropped += 1
        LOG.info("client is gone: %s", why, extra={"device": guest.device})
        self._guests.leave(guest)
        if self._loop is not None:
            self._loop.call_soon(self.bridge.left, guest.device)

    def _flush(self) -> None:
        """Send what is queued to clients that take something again."""
        for guest in self._guests.connected():
            was_full = guest.outbound.full
            while (raw := guest.outbound.first()) is not None and self._try(guest, msgspec.msgpack.decode(raw)):
                guest.outbound.sent()
            if was_full and not guest.outbound.full:
                self.bridge.drained(guest.device)

    # ---- the loop ----

    def _turn(self) -> None:
        self._woken = False
        self._stirred.set()
        self.bridge.turn()
        self._look_again()

    def _look_again(self) -> None:
        """Ask whether something came: a send may have swallowed the sign of it."""
        if self._router is None or self._loop is None:
            return
        if int(self._router.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._loop.call_soon(self._readable)

    def _readable(self) -> None:
        if self._router is None or self._router.closed:
            return
        for _ in range(AT_ONCE):
            try:
                parts = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            self._serve_one(parts)
        self._stirred.set()
        self._look_again()

    def _serve_one(self, parts: list[zmq.Frame]) -> None:
        identity, user = parts[0].bytes, _user(parts[-1])
        frames, secret = guests.take_secret([part.bytes for part in parts[1:]])
        try:
            message = self._frames.to_node(frames)
        except Refused as error:
            self._answer(identity, error.reply)
            return
        if user and self._doors is not None and user not in self._doors.allowed:
            self._answer(identity, Failure(code="unauthorized", message="this key is not allowed any more"))
        elif isinstance(message, Hello):
            self._hello(identity, message, secret, user)
        else:
            self._message(identity, message, secret, user)

    def _message(self, identity: bytes, message: ToNode, secret: str, user: str) -> None:
        guest = self._guests.at(identity)
        if guest is None or guest.user != user or not guest.knows(secret):
            self._answer(identity, Failure(code="unauthorized", message=STRANGER))
            return
        guest.seen = time.monotonic()
        if isinstance(message, Ping):
            self.send(guest.device, Pong())
        elif isinstance(message, Bye):
            self._guests.leave(guest)
            self.bridge.left(guest.device)
        else:
            self.bridge.take(guest.device, message)

    def _hello(self, identity: bytes, hello: Hello, secret: str, user: str) -> None:
        if VERSION not in hello.versions:
            self._answer(identity, Failure(code="unsupported_version", message=f"this node speaks {VERSION}"))
            return
        try:
            guest = self._guests.welcome(hello, secret, identity, user, time.monotonic(), self.bridge.idle)
        except Refused as error:
            self._answer(identity, error.reply)
            return
        welcome = Welcome(node=self.bridge.node, boot=self.bridge.boot, version=VERSION, limits=self.limits)
        if self._try(guest, guests.with_secret(self._frames.write(welcome), guest.secret)):
            self.bridge.arrived(guest.device)

    def _answer(self, identity: bytes, message: ToDevice) -> None:
        """Answer somebody who is no client; it may be lost."""
        if self._router is not None:
            with contextlib.suppress(zmq.ZMQError):
                self._router.send_multipart([identity, *self._write(message)], zmq.NOBLOCK)

    # ---- sockets ----

    def _secret(self) -> bytes:
        """Read the server's CURVE key and open the door to those who are allowed; empty without one."""
        if self.settings.curve_secret is None:
            return b""
        text = self.settings.curve_secret.read()
        check_key(text, self.settings.curve_secret.key or "zeromq.curve_secret")
        self._doors = Doorkeeper(self._context, read_allowed(self.settings.allow))
        return text.encode("ascii")

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket, settings = self._context.socket(kind), self.settings
        beat, timeout = round(1e3 * settings.heartbeat), round(1e3 * settings.heartbeat_timeout)
        options = {
            zmq.LINGER: LINGER_MS, zmq.SNDHWM: settings.hwm_send, zmq.RCVHWM: settings.hwm_receive, zmq.BACKLOG: 256,
            zmq.MAXMSGSIZE: settings.max_message, zmq.HEARTBEAT_IVL: beat, zmq.HEARTBEAT_TIMEOUT: timeout,
            zmq.HEARTBEAT_TTL: min(timeout, 6_553_500),
        }
        if kind == zmq.ROUTER:
            options |= {zmq.ROUTER_MANDATORY: 1, zmq.ROUTER_HANDOVER: 1}
        for option, value in options.items():
            socket.setsockopt(option, value)
        return socket

    def _bind(self, socket: zmq.Socket[bytes], places: tuple[str, ...], secret: bytes) -> None:
        """Bind ipc endpoints, then those of tcp: a socket's options count for what is bound after them."""
        for place in sorted(places, key=lambda place: place.startswith("tcp://")):
            if place.startswith("ipc://"):
                _check_free(place)
            elif secret and not socket.getsockopt(zmq.CURVE_SERVER):
                socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
                socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
                socket.setsockopt(zmq.CURVE_SECRETKEY, secret)
                socket.setsockopt(zmq.CURVE_SERVER, 1)
            socket.setsockopt(zmq.IPV6, "[" in place)
            before = os.umask(0o777 & ~self.settings.mode)  # nobody gets in before the mode is set
            try:
                socket.bind(place)
                if place.startswith("ipc://"):
                    os.chmod(place.removeprefix("ipc://"), self.settings.mode)  # noqa: PTH101 - a socket
            except OSError as error:  # a ZMQError is none
                raise ConfigError(f"{place} can not be listened on: {error.strerror}") from None
            except zmq.ZMQError as error:
                raise ConfigError(f"{place} can not be listened on: {error}") from None
            finally:
                os.umask(before)
            self.endpoints.append(socket.getsockopt_string(zmq.LAST_ENDPOINT))


def _descriptor(socket: zmq.Socket[bytes]) -> int:
    return int(socket.getsockopt(zmq.FD))


def _user(part: zmq.Frame) -> str:
    """Return the CURVE key that the message came with, empty where there is none."""
    try:
        return str(part.get("User-Id"))
    except zmq.ZMQError:
        return ""


def _check_free(place: str) -> None:
    """Raise ConfigError if somebody answers there: libzmq would take the place over without a word."""
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        with contextlib.suppress(OSError):
            probe.connect(place.removeprefix("ipc://"))
            raise ConfigError(f"{place} can not be listened on: another service is there")
