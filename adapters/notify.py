"""What systemd is told: ready, degraded, reloading, stopping; and that the service makes progress, not merely lives.

Outside systemd every message is dropped without a word.  `Watchdog` pings only while all its sources move, and its
`standing` serves a readiness check as well, with or without systemd.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping

LOG = logging.getLogger("arenite")
SEND_S = 2.0  # a service manager that does not read for so long is not waited for
STATUS_CHARS = 500  # of a status line; systemd reads messages of up to 4096 bytes
UNWATCHED_S = 5.0  # between two looks at the sources where systemd asks for no pings
VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Notifier:
    """Messages to the service manager (sd_notify), from any thread.

    ``address``: a path, or a name that begins with @; empty: nobody listens.  ``watchdog_s``: how often systemd wants
    to hear from this process, None: not at all.  `line` is the status line that was said last.
    """

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        self.address, self.watchdog_s, self.line = address, watchdog_s, ""

    @classmethod
    def take(cls, environ: MutableMapping[str, str] | None = None) -> Notifier:
        """Make one from the environment and remove the variables there: they are not meant for child processes."""
        environ = os.environ if environ is None else environ
        found = {name: environ.pop(name, "") for name in VARIABLES}
        return cls(found["NOTIFY_SOCKET"], _watchdog_s(found))

    @property
    def active(self) -> bool:
        """True if there is an address that may be written to: a path, or an abstract name."""
        return self.address[:1] in {"/", "@"} and len(self.address) > 1

    def ready(self, status: str = "") -> bool:
        """Say that the listeners are up, or that a reload is done."""
        return self.send(READY=1, **self._status(status))

    def degraded(self, reason: str) -> bool:
        """Say that the service answers, but not as configured: a model did not load, a GPU is missing."""
        return self.ready(f"degraded: {reason}")

    def status(self, text: str) -> bool:
        """Set the line that ``systemctl status`` shows."""
        return self.send(**self._status(text))

    def reloading(self, status: str = "") -> bool:
        """Say that the configuration is read anew; `ready` must follow."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        return self.send(RELOADING=1, MONOTONIC_USEC=now, **self._status(status))

    def stopping(self, status: str = "") -> bool:
        """Say that the service drains and ends."""
        return self.send(STOPPING=1, **self._status(status))

    def extend(self, seconds: float) -> bool:
        """Ask for so many seconds from now on before a start, reload or stop counts as hung."""
        return self.send(EXTEND_TIMEOUT_USEC=int(seconds * 1e6))

    def ping(self) -> bool:
        """Feed the watchdog once; `Watchdog` knows when."""
        return self.send(WATCHDOG=1)

    def send(self, **fields: str | int) -> bool:
        """Send the fields as one message.  Returns False if there is nobody, or nobody reads; never raises."""
        if not self.active or not fields:
            return False
        text = "\n".join(f"{name}={value}" for name, value in fields.items())
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(SEND_S)
                sock.sendto(text.encode("utf-8", "replace"), address)
        except OSError as error:
            LOG.debug("systemd was not told %s: %s", next(iter(fields)), error)
            return False
        return True

    def _status(self, text: str) -> dict[str, str]:
        if not text:
            return {}
        self.line = one_line(text)
        return {"STATUS": self.line}


def one_line(text: str) -> str:
    """Return a text as systemd takes a status: one line, not too long."""
    line = " ".join(text.split())
    return line if len(line) <= STATUS_CHARS else line[: STATUS_CHARS - 1] + "…"


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    """Return the seconds within which systemd wants a ping from this process; None: it wants none."""
    try:
        usec, pid = int(environ["WATCHDOG_USEC"]), int(environ["WATCHDOG_PID"] or os.getpid())
    except ValueError:
        return None
    return usec / 1e6 if usec > 0 and pid == os.getpid() else None


class Source:
    """Something that must make progress.  Made by `Watchdog.watch`; its owner calls `beat` from any thread.

    With a ``probe``, the watchdog's thread asks instead, so it must answer at once: a number is progress when it has
    changed, True is progress, False is none, None means that there is nothing to watch now (a link that is switched
    off).  A probe that raises has not moved.
    """

    def __init__(
        self, name: str, bound_s: float, probe: Callable[[], int | None] | None, clock: Callable[[], float],
    ) -> None:
        self.name, self.bound_s = name, bound_s
        self._probe, self._clock = probe, clock
        self._moved = clock()  # moments are written whole, so no lock is needed
        self._excused = -math.inf
        self._last: int | None = None

    def beat(self) -> None:
        """Note progress.  An idle engine that answers a question, or a loop that turns, has made some."""
        self._moved = self._clock()

    def allow(self, seconds: float) -> None:
        """Expect no progress for so long from now on, a model is being loaded; then the bound counts.  0 ends it."""
        self._excused = self._clock() + seconds

    async def keep(self, every_s: float = 1.0) -> None:
        """Beat for as long as the event loop turns: run it as a task."""
        while True:
            self.beat()
            await asyncio.sleep(every_s)

    def still_s(self) -> float:
        """Return for how many seconds it has stood still; 0.0 as long as that is within its bound."""
        self._ask()
        still = self._clock() - max(self._moved, self._excused)
        return still if still > self.bound_s else 0.0

    def _ask(self) -> None:
        if self._probe is None:
            return
        try:
            value = self._probe()
        except Exception:  # whatever it is, it is no progress
            LOG.debug("the probe of %s failed", self.name, exc_info=True)
            return
        if value is None or value is True or (value is not False and value != self._last):
            self.beat()
        self._last = value


class Watchdog:
    """Pings systemd, from a thread of its own, only while every source has moved within its bound.

    Pings come at half the interval that systemd asks for.  When a source stands still they stop, and the status line
    says which one; when it moves again they go on.  If it does not, systemd ends the service (WatchdogSignal=) and
    starts it anew.  Use it as a context manager, or call `start` and `stop`.
    """

    def __init__(self, notifier: Notifier, clock: Callable[[], float] = time.monotonic) -> None:
        self.notifier = notifier
        self._clock = clock
        self._sources: tuple[Source, ...] = ()  # replaced as a whole, so that the thread sees one or the other
        self._frozen: tuple[str, ...] = ()
        self._pinged = -math.inf
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, name: str, bound_s: float, probe: Callable[[], int | None] | None = None) -> Source:
        """Add a source that must move at least every ``bound_s`` seconds; without a probe its owner calls `beat`."""
        source = Source(name, bound_s, probe, self._clock)
        self._sources = (*self._sources, source)
        return source

    def forget(self, source: Source) -> None:
        """Watch a source no longer."""
        self._sources = tuple(known for known in self._sources if known is not source)

    def standing(self) -> dict[str, float]:
        """Return the sources that stand still, and for how many seconds; empty: all is well."""
        return {source.name: still for source in self._sources if (still := source.still_s())}

    def start(self) -> None:
        """Start to look, and to ping if systemd asked for it."""
        if self._thread is None:
            self._ended.clear()
            self._thread = threading.Thread(target=self._run, name="arenite-watchdog", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ping no more.  Call it when the drain is over: a drain that hangs is to be noticed too."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(SEND_S + 1.0)
            self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def look(self) -> None:
        """Look at every source once; ping if it is time, or say what stands still."""
        standing = self.standing()
        if standing:
            if tuple(standing) != self._frozen:
                self._say(standing)
        elif self._frozen:
            self.notifier.send(STATUS=self.notifier.line or "running")
            LOG.warning("moving again: %s", ", ".join(self._frozen))
            self._pinged = -math.inf
        self._frozen = tuple(standing)
        if not standing and self._due():
            self._pinged = self._clock()
            self.notifier.ping()

    def _say(self, standing: dict[str, float]) -> None:
        words = ", ".join(f"{name} for {still:.0f} s" for name, still in standing.items())
        self.notifier.send(STATUS=one_line(f"standing still: {words}; the watchdog is not fed"))
        LOG.error("standing still: %s; the watchdog is not fed", words)

    def _half_s(self) -> float:
        return (self.notifier.watchdog_s or 2 * UNWATCHED_S) / 2

    def _step_s(self) -> float:
        """Return the time between two looks: a whole part of half the interval, and short beside every bound."""
        half = self._half_s()
        bound = min((source.bound_s for source in self._sources), default=half)
        return half / max(1, min(50, math.ceil(2 * half / max(bound, 1e-3))))

    def _due(self) -> bool:
        """Return True if systemd asked for pings and the next one is nearer than the next look."""
        waited = self._clock() - self._pinged
        return self.notifier.watchdog_s is not None and waited >= self._half_s() - self._step_s() / 2

    def _run(self) -> None:
        while True:
            self.look()
            if self._ended.wait(self._step_s()):
                return
