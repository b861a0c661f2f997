"""One engine's process as its parent sees it: the socket, what is on its way, and what it still owes."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import socket
import subprocess
import threading
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from . import spawn, worker

if TYPE_CHECKING:
    from collections.abc import Callable


class Died(Exception):
    """The process died over a call."""


class Child:
    """One process, its socket, and what it still owes."""

    def __init__(self, arguments: tuple[Any, ...], on_message: Callable[[Child, Any], None]) -> None:
        ours, theirs = socket.socketpair()
        environment = {"GOMP_SPINCOUNT": "1000", **os.environ}  # before anything loads libgomp there
        with theirs:
            self.process = spawn.start(
                worker.__name__, "main", theirs.fileno(), os.getpid(), *arguments, pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment,
            )
        self._connection = Connection(ours.detach())
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.calls: dict[int, tuple[str, Future[Any], float]] = {}
        self.ready: Future[None] = Future()
        self.gone = threading.Event()
        self.served = False  # whether it has sent events of requests
        self.answers: list[float] = []  # seconds that recent pings took
        self._on_message = on_message
        for target in (self._read, self._write):
            threading.Thread(target=target, daemon=True, name=f"arenite{target.__name__}").start()

    def send(self, *message: Any) -> None:
        """Leave a message for the child; never waits for it."""
        self._outbox.put(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))

    def kill(self) -> None:
        """End the process, whatever state it is in."""
        with contextlib.suppress(OSError):
            self.process.kill()

    def close(self) -> None:
        """Reap the process and let the threads end."""
        self.kill()
        self.process.wait()
        self._outbox.put(None)

    def fate(self) -> str:
        """Say how the process ended."""
        code = self.process.wait()
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def _read(self) -> None:
        with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):
            while True:
                message = worker.read_value(self._connection.recv_bytes())
                self._on_message(self, message)
        self.kill()
        self.gone.set()

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while (data := self._outbox.get()) is not None:
                self._connection.send_bytes(data)
        self.gone.wait()
        with contextlib.suppress(OSError):
            self._connection.close()
