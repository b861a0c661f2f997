"""One engine's process as its parent sees it: the socket, what is on its way, and what it still owes."""

from __future__ import annotations

import contextlib
import logging
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


LOG = logging.getLogger("arenite")


class Died(Exception):
    """The process died over a call."""


class Child:
    """One process, its socket, and what it still owes."""

    def __init__(
        self, arguments: tuple[Any, ...], on_message: Callable[[Child, Any], None], on_gone: Callable[[Child], None]
    ) -> None:
        ours, theirs = socket.socketpair()
        environment = {"GOMP_SPINCOUNT": "1000", **os.environ}  # before anything loads libgomp there
        with ours, theirs:
            self.process = spawn.start(
                worker.__name__, "main", theirs.fileno(), os.getpid(), *arguments, pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment,
            )
            self._connection = Connection(ours.detach())
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.calls: dict[int, tuple[str, Future[Any], float]] = {}
        self.ready: Future[None] = Future()
        self.gone = threading.Event()
        self.pinged = 0.0  # when it was asked last whether it lives, by `time.monotonic`
        self.served = False  # whether it has sent events of requests
        self.answers: list[float] = []  # seconds that recent pings took
        self._on_message, self._on_gone = on_message, on_gone
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
        try:
            while True:
                self._on_message(self, worker.read_value(self._connection.recv_bytes()))
        except (EOFError, OSError):
            pass
        except Exception:  # what it says makes no sense: it is not to be trusted any more
            LOG.exception("the engine's process sent something strange and is replaced")
        finally:
            self.kill()
            self._on_gone(self)
            self.gone.set()

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while (data := self._outbox.get()) is not None:
                self._connection.send_bytes(data)
        self.gone.wait()
        with contextlib.suppress(OSError):
            self._connection.close()
