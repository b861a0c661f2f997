"""A client's connection: one thread with one DEALER, which introduces itself and carries all requests."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

from ..runtime.errors import EngineClosed, EngineFailed, Error, RequestError
from .call import Call
from .frames import Frames
from .guests import take_secret, with_secret
from .limits import LIMITS, Limits, Welcome
from .messages import Bye, Failure, Forget, Hello, List, Listed, Ping
from .refused import Refused, error_of
from .wire import rid_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from .call import RemoteTicket
    from .messages import Generate
    from .wire import ToDevice, ToNode

HELLO_S, PING_S = 1.0, 2.0  # before a hello is said again; between two pings
LONGEST_WAIT_S = 1.0
LINGER_MS = 500
QUEUED = 4096  # messages that wait for the connection
HANDSHAKES = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_DISCONNECTED
WIDE: Limits = msgspec.structs.replace(LIMITS, request_bytes=16 << 20, reply_bytes=32 << 20)
What = Literal["models", "sessions", "streams", "health"]


@dataclass(frozen=True, slots=True)
class Keys:
    """CURVE: the service's public key, and our own pair (`zmq.curve_keypair`); Z85 texts of 40 characters."""

    server: str
    public: str
    secret: str


class Link:
    """The thread and its socket.  Any thread may call the methods below; everything else is the thread's own.

    ``secret``: of an earlier welcome, so that its requests are found again.  ``ready``: the first `Welcome`, or why
    there will be none.
    """

    def __init__(self, url: str, *, name: str = "", secret: str = "", keys: Keys | None = None) -> None:
        self.url, self.name, self.secret = url, name or f"client-{os.getpid()}", secret
        self.ready: Future[Welcome] = Future()
        self.welcome: Welcome | None = None
        self._calls: dict[str, Call] = {}
        self._asked: dict[What, list[Future[list[dict[str, Any]]]]] = {}
        self._jobs: deque[Callable[[], None]] = deque()
        self._out: deque[ToNode] = deque(maxlen=QUEUED)
        self._frames = Frames(WIDE)
        self._linked = self._closing = False
        self._said_at = self._hello_at = 0.0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        try:
            self._socket = self._connect(keys)
        except BaseException:
            os.close(self._bell)
            self._context.destroy(linger=0)
            raise
        self._monitor = self._socket.get_monitor_socket(HANDSHAKES)
        self._thread = threading.Thread(target=self._run, name="arenite-client", daemon=True)
        self._thread.start()

    # ---- any thread ----

    def check(self, request: Generate) -> None:
        """Raise the error that the node would answer if the request can not even be said."""
        try:
            self._frames.write(request)
        except Refused as error:
            raise error_of(error) from None

    def begin(self, ticket: RemoteTicket, request: Generate | None) -> None:
        """Ask; the ticket hears everything about it.  Without a request, one that is known there is followed."""
        self._do(lambda: self._begin(Call(ticket, request, time.monotonic())))

    def cancel(self, rid: str) -> None:
        """Ask for the end of a request."""
        with contextlib.suppress(EngineClosed):  # then it has ended
            self._do(lambda: self._cancel(rid))

    def ask(self, what: What) -> Future[list[dict[str, Any]]]:
        """Ask what there is."""
        future: Future[list[dict[str, Any]]] = Future()
        self._do(lambda: self._ask(what, future))
        return future

    def forget(self, session: str) -> None:
        """Forget a session; nobody says when it is done."""
        self._do(lambda: self._say(Forget(session=session)))

    def close(self) -> None:
        """End the connection; requests under way end with EngineClosed here, and go on there.  Twice is harmless."""
        with self._lock:
            self._closing = True
            if self._bell >= 0:
                os.eventfd_write(self._bell, 1)
        self._thread.join()

    def _do(self, job: Callable[[], None]) -> None:
        with self._lock:
            if self._closing:
                raise EngineClosed("the client is closed: connect again")
            self._jobs.append(job)
            os.eventfd_write(self._bell, 1)

    # ---- the thread ----

    def _connect(self, keys: Keys | None) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        options: dict[int, int | bytes] = {
            zmq.LINGER: LINGER_MS, zmq.IMMEDIATE: 1, zmq.SNDHWM: 1000, zmq.RCVHWM: 1000, zmq.RECONNECT_IVL: 100,
            zmq.RECONNECT_IVL_MAX: 1000, zmq.HEARTBEAT_IVL: 2000, zmq.HEARTBEAT_TIMEOUT: 6000, zmq.HEARTBEAT_TTL: 6000,
            zmq.MAXMSGSIZE: WIDE.reply_bytes, zmq.IPV6: "[" in self.url,
            zmq.IDENTITY: b"\x01" + secrets.token_bytes(16),
        }
        for option, value in options.items():
            socket.setsockopt(option, value)
        try:
            if keys is not None:
                socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server.encode())
                socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public.encode())
                socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
            socket.connect(self.url)
        except (zmq.ZMQError, ValueError) as error:
            raise RequestError(f"{self.url} can not be connected to: {error}; give ipc:///path or tcp://host:port, "
                               "and CURVE keys of 40 characters") from None
        return socket

    def _run(self) -> None:
        poller = zmq.Poller()
        for source in (self._bell, self._socket, self._monitor):
            poller.register(source, zmq.POLLIN)
        try:
            while not self._closing:
                found = dict(poller.poll(max(0, int(1e3 * self._patience()) + 1)))
                if self._bell in found:
                    os.eventfd_read(self._bell)
                if self._monitor in found:
                    self._watch()
                while self._jobs:
                    self._jobs.popleft()()
                self._hear()
                self._poll(time.monotonic())
                self._flush()
        finally:
            self._end()

    def _end(self) -> None:
        self._say(Bye())
        self._flush()
        with self._lock:
            self._closing = True
            jobs, self._jobs = self._jobs, deque()
        for job in jobs:
            job()
        error = EngineClosed("the client was closed")
        if not self.ready.done():
            self.ready.set_exception(error)
        for call in list(self._calls.values()):
            call.close(EngineClosed("the client was closed"))
        for future in (future for waiting in self._asked.values() for future in waiting):
            future.set_exception(error)
        self._socket.disable_monitor()
        self._context.destroy(linger=LINGER_MS)
        with self._lock:
            bell, self._bell = self._bell, -1
        os.close(bell)

    def _patience(self) -> float:
        """Return the seconds until something is due though nothing comes."""
        now = time.monotonic()
        return min([LONGEST_WAIT_S, *(call.due() - now for call in self._calls.values())]) if not self._out else 0.05

    def _watch(self) -> None:
        """Hear about the connection."""
        while True:
            try:
                event = recv_monitor_message(self._monitor, zmq.NOBLOCK)["event"]
            except zmq.Again:
                return
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._greet(time.monotonic())
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self._refuse(RequestError(f"{self.url} does not know this key: have it put into its allow-list"))
            else:
                self._linked = False

    def _refuse(self, error: Error) -> None:
        if not self.ready.done():
            self.ready.set_exception(error)

    def _greet(self, now: float) -> None:
        """Introduce ourselves; nothing else is said before we are welcome."""
        self._linked, self._hello_at = False, now
        frames = self._frames.write(Hello(client=self.name))
        self._try(with_secret(frames, self.secret) if self.secret else frames)

    def _hear(self) -> None:
        for _ in range(256):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            body, secret = take_secret(frames)
            try:
                message = self._frames.to_device(body)
            except Refused:
                continue  # no message of ARN1: whoever says so is no node
            if secret and isinstance(message, Welcome):
                self.secret = secret
            self._take(message, time.monotonic())

    def _take(self, message: ToDevice, now: float) -> None:
        if isinstance(message, Welcome):
            self._welcomed(message, now)
        elif isinstance(message, Listed):
            for future in self._asked.pop(message.what, ()):
                future.set_result(list(message.items))
        elif isinstance(message, Failure) and message.code == "unauthorized" and not message.rid:
            if now - self._hello_at >= HELLO_S:
                self._greet(now)
        elif isinstance(message, Failure) and not message.rid:
            self._refuse(error_of(message))
        elif (call := self._calls.get(rid_of(message))) is not None:
            self._speak(call, call.take(message, now))

    def _welcomed(self, welcome: Welcome, now: float) -> None:
        restarted = self.welcome is not None and self.welcome.boot != welcome.boot
        self.welcome, self._linked = welcome, True
        self._frames = Frames(msgspec.structs.replace(welcome.limits, reply_bytes=WIDE.reply_bytes))
        self._out = deque((said for said in self._out if isinstance(said, (List, Forget))), maxlen=QUEUED)
        for call in list(self._calls.values()):
            self._speak(call, call.back(now, restarted=restarted))
        if not self.ready.done():
            self.ready.set_result(welcome)

    def _begin(self, call: Call) -> None:
        if self._closing:
            call.close(EngineClosed("the client was closed"))
            return
        self._calls[call.ticket.rid] = call
        self._speak(call, call.begin(time.monotonic()) if self._linked else [])

    def _cancel(self, rid: str) -> None:
        if (call := self._calls.get(rid)) is not None:
            self._speak(call, call.cancel(linked=self._linked))

    def _ask(self, what: What, future: Future[list[dict[str, Any]]]) -> None:
        self._asked.setdefault(what, []).append(future)
        self._say(List(what=what))

    def _poll(self, now: float) -> None:
        for call in list(self._calls.values()):
            self._speak(call, call.poll(now, linked=self._linked))
        if not self._linked and now - self._hello_at >= HELLO_S:
            self._greet(now)
        elif self._linked and now - self._said_at >= PING_S:
            self._say(Ping())

    def _speak(self, call: Call, said: list[ToNode]) -> None:
        for message in said:
            self._say(message)
        if call.ticket.done:
            self._calls.pop(call.ticket.rid, None)

    def _say(self, message: ToNode) -> None:
        self._out.append(message)

    def _flush(self) -> None:
        while self._out and self._linked:
            try:
                frames = self._frames.write(self._out[0])
            except Refused as error:  # the node's limits are others than those that were checked
                self._unsaid(error)
                self._out.popleft()
                continue
            if not self._try(with_secret(frames, self.secret)):
                return
            self._out.popleft()
            self._said_at = time.monotonic()

    def _unsaid(self, error: Refused) -> None:
        call = self._calls.pop(error.rid, None)
        if call is not None:
            call.close(error_of(error))

    def _try(self, frames: list[bytes]) -> bool:
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.ZMQError:  # no connection, or no room: later
            return False
        return True


def first_welcome(link: Link, timeout: float) -> Welcome:
    """Wait until the node has answered.  Raises EngineFailed if it does not within ``timeout`` seconds."""
    try:
        return link.ready.result(timeout)
    except TimeoutError:
        link.close()
        raise EngineFailed(f"{link.url} does not answer within {timeout:g} s: is the service running?") from None
    except Error:
        link.close()
        raise
