"""The models of a service by name: loading, loaded, or failed and why."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..runtime.errors import EngineClosed, Error
from .refused import RETRY_MS, Refused, shorten

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..runtime.api import Model, Runtime
    from ..runtime.config import ModelOptions

LOG = logging.getLogger("arenite")


@dataclass(slots=True)
class Entry:
    """One model as it is configured, and what became of it."""

    options: ModelOptions
    state: Literal["loading", "loaded", "failed"] = "loading"
    model: Model | None = None
    reason: str = ""


class Catalog:
    """Loads and unloads models off the event loop, one at a time.  `find` and `items` may be called by any thread.

    ``changed`` is called on the loop after every change; ``health`` tells what `items` says of it.
    """

    def __init__(
        self, models: tuple[ModelOptions, ...], changed: Callable[[], None], health: Callable[[], dict[str, Any]],
    ) -> None:
        self.runtime: Runtime | None = None
        self._entries = {options.name: Entry(options) for options in models}
        self._changed, self._health = changed, health
        self._turn = asyncio.Lock()

    @property
    def loading(self) -> bool:
        """Whether any model is being loaded, or waits for that."""
        return any(entry.state == "loading" for entry in self._entries.values())

    @property
    def trouble(self) -> str:
        """What did not load, and why; empty: all is well."""
        failed = [f"{name}: {entry.reason}" for name, entry in self._entries.items() if entry.state == "failed"]
        return "; ".join(failed)

    def find(self, name: str) -> Model:
        """Return a model that answers; an empty name stands for the first.  Raises `Refused`."""
        entries = self._entries  # replaced as a whole, so any thread sees one or the other
        entry = entries.get(name or next(iter(entries), ""))
        if entry is None:
            known = ", ".join(entries) or "none"
            raise Refused("no_model", f"there is no model {name!r} here, known are: {known}")
        if entry.state == "failed":
            raise Refused("not_loaded", f"model {entry.options.name} is not loaded: {entry.reason}")
        if entry.model is None:
            raise Refused("not_loaded", f"model {entry.options.name} is being loaded", retry_ms=RETRY_MS // 2)
        return entry.model

    def items(self, what: str) -> list[dict[str, Any]]:
        """Return what clients are told of the models, or of the service's health."""
        if what == "health":
            return [self._health()]
        return [self._item(name, entry) for name, entry in self._entries.items()]

    @staticmethod
    def _item(name: str, entry: Entry) -> dict[str, Any]:
        item: dict[str, Any] = {"id": name, "state": entry.state, "loaded": entry.model is not None}
        if entry.model is not None:
            info = entry.model.info
            item |= {"kind": info.architecture, "ctx": info.context, "slots": info.streams, "bytes": info.file_bytes,
                     "device": info.device, "chat": info.chat_template is not None}
        elif entry.reason:
            item["reason"] = entry.reason
        return item

    async def load_all(self) -> None:
        """Load what is not loaded yet, in the order of the file."""
        for entry in list(self._entries.values()):
            if entry.state == "loading":
                await self._load(entry)

    async def apply(self, models: tuple[ModelOptions, ...]) -> None:
        """Unload what is gone or changed, and load what is new or changed; the others go on."""
        before = self._entries
        kept = {name: entry for name, entry in before.items() if entry.options in models and entry.state != "failed"}
        self._entries = {options.name: kept.get(options.name) or Entry(options) for options in models}
        self._changed()
        for name, entry in before.items():
            if name not in kept and entry.model is not None:
                await asyncio.to_thread(entry.model.close)
                LOG.info("model %s unloaded", name)
        await self.load_all()

    async def _load(self, entry: Entry) -> None:
        async with self._turn:
            if self.runtime is None or self._entries.get(entry.options.name) is not entry or entry.state != "loading":
                return
            try:
                model = await asyncio.to_thread(_load, self.runtime, entry.options)
            except EngineClosed:
                return  # the service ends
            except Error as error:
                entry.state, entry.reason = "failed", shorten(str(error))
                LOG.error("model %s is not loaded: %s", entry.options.name, error)  # noqa: TRY400 - no traceback needed
            else:
                entry.model, entry.state = model, "loaded"
                LOG.info("model %s loaded", entry.options.name)
        self._changed()


def _load(runtime: Runtime, options: ModelOptions) -> Model:
    settings = {name: getattr(options, name) for name in options.__dataclass_fields__ if name != "path"}
    return runtime.load(options.path, **settings)
