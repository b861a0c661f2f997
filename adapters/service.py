"""A service from its first listener to its last word: what `arenite serve` runs.

::

    listeners -> READY -> engine -> models -> ready | degraded ... SIGHUP: reload ... SIGTERM: drain -> close

All of it is one event loop; what waits (engine, models, files) is done in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from typing import TYPE_CHECKING, Any

from ..runtime.api import Runtime
from ..runtime.errors import ConfigError, EngineError, Error
from ..runtime.remote import Isolation
from . import settings as files
from .bridge import Bridge
from .catalog import Catalog
from .changes import applied, changes
from .keys import read_allowed
from .limits import LIMITS, Limits
from .notify import Notifier, Watchdog
from .summary import asked_and_granted
from .zeromq import Node

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from ..runtime.stats import Status
    from .notify import Source
    from .settings import Settings

LOG = logging.getLogger("arenite")
ENVELOPE = 256  # bytes of a chunk beside its text
ANSWER_S = 2.0  # between two questions to the engine
LOOP_S, LINK_S, ENGINE_S = 10.0, 10.0, 20.0  # bounds of the watchdog's sources
LAST_WORDS_S = 3.0  # for the ends of requests that the grace did not suffice for
UNUSED = ("sessions.folder",)  # keys that this version reads and does not apply


def isolation(settings: Settings) -> Isolation:
    """Return how the engine's process is watched, as the settings have it."""
    engine = settings.engine
    return Isolation(
        journal_bytes=engine.journal, start_s=engine.hang_start, load_s=engine.hang_load, hang_s=engine.hang_step,
        first_pause_s=engine.backoff_first, longest_pause_s=engine.backoff_last,
    )


def wire_limits(settings: Settings) -> Limits:
    """Return ARN1's limits as the settings have them."""
    ours, sessions = settings.limits, settings.sessions
    return Limits(
        request_bytes=ours.payload, chunk_bytes=ours.chunk + ENVELOPE, queued=ours.queued,
        queued_per_device=ours.queued_per_client, active_per_device=ours.streams_per_client,
        transcript_bytes=ours.transcript, replay_bytes=ours.replay, replay_requests=ours.ids,
        replay_done_s=ours.kept_done, replay_s=ours.kept, outbound_bytes=ours.outbound, sessions=ours.sessions,
        session_idle_s=sessions.ttl, session_turns=sessions.turns, controls_per_s=ours.control_rate,
        stall_s=ours.stall, health_period_s=ours.health, reply_bytes=max(LIMITS.reply_bytes, 2 * ours.transcript),
    )


class Service:
    """One node.  `run` returns when it was told to stop; `stop` and `reload` may be called on its loop.

    Raises ConfigError before READY if an endpoint or a key can not be had, and afterwards what `Runtime` raises.
    """

    def __init__(self, settings: Settings, path: Path | None = None, notifier: Notifier | None = None) -> None:
        self.settings, self.path = settings, path
        self.notifier = notifier or Notifier()
        limits = wire_limits(settings)
        self.node = Node(settings.zeromq, limits, clients=settings.limits.clients)
        self.catalog = Catalog(settings.model, self._tell, self.health)
        self.bridge = self.node.bridge = Bridge(
            self.catalog, self.node, self.node.wake, node=settings.service.node, boot=settings.service.boot,
            limits=limits,
        )
        self.runtime: Runtime | None = None
        self._status: Status | None = None
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._watchdog = Watchdog(self.notifier)
        self._engine_source: Source | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._began = time.monotonic()

    # ---- its life ----

    async def run(self) -> None:
        """Serve until told to stop."""
        self._warn()
        self.node.open()
        self._watch()
        self._tell()
        try:
            with self._watchdog:
                self._task(self.node.serve())
                self.notifier.ready("the engine starts")
                LOG.info("listening on %s", ", ".join(self.node.endpoints))
                await self._start()
                await self._stop.wait()
                await self._drain()
        finally:
            await self._close()

    def stop(self) -> None:
        """Drain and end; said twice, without waiting for running streams."""
        (self._hurry if self._stop.is_set() else self._stop).set()

    def reload(self) -> None:
        """Read the settings file anew."""
        self._task(self._reload())

    async def _start(self) -> None:
        """Start the engine and load the models; a stop that comes meanwhile is not waited for."""
        ours = self.settings
        self.runtime = self.catalog.runtime = await asyncio.to_thread(
            Runtime, ours.arena.size, gpu_arena=ours.arena.gpu, limit=ours.engine.limit,
            isolated=isolation(ours),
        )
        self._status = await self._answer()
        self._task(self._ask_engine())
        self._task(self._tell_health())
        self._task(self._load())

    async def _load(self) -> None:
        await self.catalog.load_all()
        self._status = await self._answer()
        if self._status is not None:
            LOG.info("%s", asked_and_granted(self.settings, self._status, None))
        self._say_ready()

    async def _drain(self) -> None:
        """Refuse new requests, let running ones go on for a while, and end the rest."""
        self.notifier.stopping("draining")
        self.bridge.draining = True
        self._tell()
        LOG.info("draining: %d requests", self.bridge.unfinished)
        await self._until_idle(self.settings.engine.grace, self._hurry)
        self.bridge.end_all()
        await self._until_idle(LAST_WORDS_S)
        self.bridge.close()
        until = time.monotonic() + 1.0
        while self.node.waiting() and time.monotonic() < until:  # noqa: ASYNC110 - bytes, not an event
            await asyncio.sleep(0.02)

    async def _until_idle(self, seconds: float, hurry: asyncio.Event | None = None) -> None:
        until = time.monotonic() + seconds
        while self.bridge.unfinished and time.monotonic() < until:
            if hurry is not None and hurry.is_set():
                return
            await asyncio.sleep(0.02)

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.bridge.draining = True
        if self.node.status is not None:
            self.node.status.tell("state", {**self._state(), "state": "offline"})
        self.bridge.close()
        self.node.close()
        if self.runtime is not None:
            await asyncio.to_thread(self.runtime.close)
        LOG.info("stopped")

    def _task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task; if it breaks, the service ends rather than to go on without it."""
        try:
            await work
        except EngineError as error:
            LOG.warning("%s", error)
        except Exception:
            LOG.exception("the service is broken and stops")
            self.stop()

    # ---- reload ----

    async def _reload(self) -> None:
        async with self._reloading:
            self.notifier.reloading("reading the settings")
            try:
                await self._apply()
            except ConfigError as error:
                LOG.error("not reloaded, everything is as before: %s", error)  # noqa: TRY400 - no traceback needed
            self._say_ready()

    async def _apply(self) -> None:
        if self.path is None:
            return
        new = await asyncio.to_thread(files.load, self.path)
        found, merged = changes(self.settings, new), applied(self.settings, new)
        keys = await asyncio.to_thread(read_allowed, merged.zeromq.allow)
        for change in found:
            LOG.info("%s", change.text)
        self.settings = merged
        logging.getLogger("arenite").setLevel(merged.log.level.upper())
        self.node.allow(keys)
        limits = wire_limits(merged)
        self.bridge.change_limits(limits)
        self.node.change_limits(limits, merged.limits.clients)
        await self.catalog.apply(merged.model)
        LOG.info("reloaded: %d changes", len(found))

    # ---- what it tells ----

    def _warn(self) -> None:
        """Name the keys that are set and not applied."""
        plain = files.Settings()
        for key in UNUSED:
            if files.value_at(self.settings, key) != files.value_at(plain, key):
                LOG.warning("%s is set, and this version does not apply it", key)

    def _state(self) -> dict[str, Any]:
        state = "draining" if self.bridge.draining else "loading" if self.catalog.loading else "ready"
        if self.catalog.trouble and state != "draining":
            state = "degraded"
        return {"state": state, "node": self.bridge.node, "boot": self.bridge.boot, "v": 1,
                "reason": self.catalog.trouble or (self._status.reason if self._status else "")}

    def health(self) -> dict[str, Any]:
        """Return how it is: requests, streams, the link, and the engine's last answer."""
        status = self._status
        told: dict[str, Any] = {
            **self._state(), "uptime_s": round(time.monotonic() - self._began), "queued": self.bridge.queued,
            "unfinished": self.bridge.unfinished, "counters": dict(self.bridge.counters), "link": self.node.facts(),
        }
        if status is not None:
            told["rss"], told["arena"] = status.rss_bytes, _arena(status)
            told["allocations_after_seal"] = status.allocations_after_seal
            if status.engine is not None:
                told["engine"] = {"pid": status.engine.pid, "rss": status.engine.rss_bytes,
                                  "restarts": status.engine.restarts}
            told["models"] = [
                {"id": model.info.name, "running": model.running, "waiting": model.waiting,
                 "free_cells": model.free_cells, "answer_tokens": model.counters.answer_tokens}
                for model in status.models
            ]
        return told

    def _tell(self) -> None:
        if self.node.status is not None:
            self.node.status.tell("state", self._state())
            self.node.status.tell("models", self.catalog.items("models"))

    def _say_ready(self) -> None:
        self._tell()
        if self.bridge.draining:
            return
        state = self._state()
        if state["state"] == "degraded" or (self._status is not None and self._status.state == "degraded"):
            self.notifier.degraded(state["reason"])
        else:
            self.notifier.ready("ready" if state["state"] == "ready" else "models are being loaded")

    async def _tell_health(self) -> None:
        while True:
            if self.node.status is not None:
                self._tell()
                self.node.status.tell("health", self.health())
            await asyncio.sleep(min(self.settings.limits.health, 5.0) if self.bridge.busy
                                else self.settings.limits.health)

    # ---- progress ----

    def _watch(self) -> None:
        loop = self._watchdog.watch("event loop", LOOP_S)
        self._task(loop.keep())
        self._watchdog.watch("link", LINK_S, lambda: self.node.turns)
        self._engine_source = self._watchdog.watch("engine", ENGINE_S)
        self._engine_source.allow(self.settings.engine.hang_start)

    async def _ask_engine(self) -> None:
        """Ask the engine how it is, again and again; its answers are its progress."""
        while True:
            status = await self._answer()
            source = self._engine_source
            if status is not None and source is not None:
                self._status = status
                if self.catalog.loading or status.engine is None or status.engine.pid is None:
                    source.allow(self.settings.engine.hang_load)  # being loaded, or started anew by its supervisor
                else:
                    source.beat()
                    source.allow(0.0)
            await asyncio.sleep(ANSWER_S)

    async def _answer(self) -> Status | None:
        if self.runtime is None:
            return None
        with contextlib.suppress(Error):
            return await asyncio.to_thread(self.runtime.status)
        return None


def _arena(status: Status) -> dict[str, int] | None:
    arena = status.arena
    return None if arena is None else {"size": arena.size, "free": arena.free}


async def serve(settings: Settings, path: Path | None, notifier: Notifier) -> None:
    """Run a service that listens to SIGTERM, SIGINT and SIGHUP."""
    service = Service(settings, path, notifier)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.stop)
    loop.add_signal_handler(signal.SIGHUP, service.reload)
    await service.run()
