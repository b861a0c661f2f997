"""What was asked, what was granted, what is left: the lines that a service prints once it is up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..runtime.arena import HOST
from ..runtime.sizes import format_size

if TYPE_CHECKING:
    from ..runtime.arena import Plan, Snapshot
    from ..runtime.config import ModelOptions
    from ..runtime.stats import ModelStatus, Status
    from .settings import Settings

Row = tuple[str, str, str, str]  # what, asked, granted, left


def asked_and_granted(settings: Settings, status: Status, plan: Plan | None) -> str:
    """Return a table of several lines, without a newline at the end.

    ``plan``: what all models together were going to take; None if nothing could be planned.
    """
    rows: list[Row] = [("", "asked", "granted", "left"), *_memories(settings, status, plan)]
    loaded = {model.info.name: model for model in status.models}
    rows += [_model(asked, loaded.pop(asked.name, None)) for asked in settings.model]
    rows += [(f"model {name}", "not configured", *_granted(model)) for name, model in loaded.items()]
    running = sum(model.running + model.waiting for model in status.models)
    rows.append(("requests", f"{settings.engine.limit}", f"{settings.limits.queued} waiting",
                 f"{settings.engine.limit - running}"))
    head = f"{settings.service.node} is {status.state}" + (f": {status.reason}" if status.reason else "")
    listen = ", ".join(settings.zeromq.listen) or "nowhere"
    return "\n".join([head, *_aligned(rows), f"listens on {listen}", *_remarks(status)])


def _memories(settings: Settings, status: Status, plan: Plan | None) -> list[Row]:
    """One row for each memory that an arena was asked for, planned for or given in."""
    arenas = {**({HOST: status.arena} if status.arena else {}), **status.arenas}
    places = dict.fromkeys([HOST, *arenas, *(plan.places if plan else ())])
    return [
        _memory(place, settings.arena.size if place == HOST else settings.arena.gpu, arenas.get(place),
                plan.at(place).size if plan else None)
        for place in places
    ]


def _memory(place: str, asked: str, arena: Snapshot | None, planned: int | None) -> Row:
    name = "arena" if place == HOST else f"arena on {place}"
    wanted = asked if planned is None else f"{asked} (models: {format_size(planned)})"
    if arena is None:
        return name, wanted, "none", ""
    left = f"{format_size(arena.free)}, in one piece {format_size(arena.largest_free)}"
    return name, wanted, format_size(arena.size), left


def _model(asked: ModelOptions, loaded: ModelStatus | None) -> Row:
    wanted = f"{asked.context} cells, {asked.streams} streams, gpu layers {asked.gpu_layers}"
    return (f"model {asked.name}", wanted, *(_granted(loaded) if loaded else ("not loaded", "")))


def _granted(model: ModelStatus) -> tuple[str, str]:
    info = model.info
    return (f"{info.cells} cells, {info.streams} streams, {info.device}, threads {info.threads}",
            f"{model.free_cells} cells, {info.streams - model.running} streams")


def _remarks(status: Status) -> list[str]:
    """Return the lines that an operator should not miss."""
    found = [f"{model.info.name}: {note}" for model in status.models
             for note in (model.memory.degraded, model.memory.note) if note]
    if status.allocations_after_seal:
        found.append(f"allocations after the seal: {status.allocations_after_seal}")
    return found


def _aligned(rows: list[Row]) -> list[str]:
    widths = [max(len(row[at]) for row in rows) for at in range(4)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
