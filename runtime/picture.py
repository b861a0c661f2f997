"""The arena as a table and a bar, for people: what takes which bytes, and what lies outside."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from .arena import HOST, KV, OUTPUTS, SCRATCH, STAGING, WEIGHTS, aligned
from .sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rich.console import RenderableType

    from .arena import Plan
    from .stats import Status

WIDTH = 64
FREE = "free"
_LOOKS = {WEIGHTS: ("█", "blue"), KV: ("▓", "green"), SCRATCH: ("▒", "yellow"), OUTPUTS: ("▪", "magenta"),
          STAGING: ("░", "cyan"), FREE: ("·", "dim")}

Part = tuple[str, str, int]  # tenant, kind, bytes


def of_plan(plan: Plan, arena: int | None) -> RenderableType:
    """Draw what a plan will take of an arena of ``arena`` bytes (None: one that is just large enough).

    Beneath it what it takes of other memories: of GPUs, and pinned memory.
    """
    drawings: list[RenderableType] = []
    for place in plan.places or (HOST,):
        part, given = plan.at(place), arena if place == HOST else None
        parts = [(need.tenant, need.kind, aligned(need.size, plan.alignment)) for need in part.needs]
        caption = f"planned {format_size(part.size)} of {format_size(given or part.size)}{_where(place)}"
        drawings.append(_draw(parts, max(part.size, given or 0), plan.outside if not drawings else {}, caption))
    return Group(*drawings)


def of_status(status: Status) -> RenderableType:
    """Draw the arenas as they are, with the count that must stay at zero."""
    outside = add_up([model.memory.outside for model in status.models])
    drawings: list[RenderableType] = [
        Text(f"{model.info.name} computes on the CPU: {model.memory.note}", style="yellow")
        for model in status.models if model.memory.note and model.info.gpu_layers < model.info.layers and status.devices
    ]
    arenas = {**({HOST: status.arena} if status.arena else {}), **status.arenas}
    if not arenas:
        return Text(f"no arena: {status.reason or 'nothing is loaded'}", style="yellow")
    for number, (place, arena) in enumerate(arenas.items()):
        parts = [(span.tenant, span.kind, span.size) for span in arena.spans]
        caption = f"leased {format_size(arena.leased)} of {format_size(arena.size)}{_where(place)}"
        if number == len(arenas) - 1:
            caption += (
                f", allocations after the seal: {status.allocations_after_seal}, "
                f"process {format_size(status.rss_bytes)}"
            )
        drawings.append(_draw(parts, arena.size, outside if not number else {}, caption))
    return Group(*drawings)


def _where(place: str) -> str:
    return "" if place == HOST else f" on {place}"


# As rich's own format, without the fonts that it would fetch from the network.
_SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: {char_height}px;
  line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>
"""


def as_svg(drawing: RenderableType, title: str) -> str:
    """Return a drawing as an SVG file, for documents."""
    console = Console(record=True, width=WIDTH + 12, file=StringIO(), force_terminal=True)
    console.print(drawing)
    return console.export_svg(title=title, code_format=_SVG, unique_id="arena")


def add_up(parts: Iterable[Mapping[str, int | None]]) -> dict[str, int | None]:
    """Add bytes up by name; None, which stands for "not known", stays."""
    total: dict[str, int | None] = {}
    for part in parts:
        for name, size in part.items():
            known = total.get(name)
            total[name] = size if known is None else known + (size or 0)
    return total


def _draw(parts: list[Part], size: int, outside: Mapping[str, int | None], caption: str) -> RenderableType:
    used = sum(part[2] for part in parts)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("model")
    table.add_column("for")
    table.add_column("bytes", justify="right")
    table.add_column("", justify="right")
    rows = [*_merged(parts), *([("", FREE, size - used)] if size > used else [])]
    for tenant, kind, amount in rows:
        mark, style = _LOOKS.get(kind, ("?", "red"))
        table.add_row(Text(mark, style), Text(tenant), kind, f"{amount:,}", format_size(amount))
    for name, known in outside.items():
        shown = ("", "not counted") if known is None else (f"{known:,}", format_size(known))
        table.add_row("", "", f"outside: {name}", *shown, style="dim")
    return Group(_bar([*parts, ("", FREE, size - used)], size), table, Text(caption))


def _merged(parts: Iterable[Part]) -> list[Part]:
    """Add up parts of the same model and use."""
    total: dict[tuple[str, str], int] = {}
    for tenant, kind, size in parts:
        total[tenant, kind] = total.get((tenant, kind), 0) + size
    return [(tenant, kind, size) for (tenant, kind), size in total.items()]


def _bar(parts: list[Part], size: int) -> Text:
    """Draw the parts in their order; each that has a byte gets at least one cell."""
    bar, room = Text("|"), WIDTH
    present = [part for part in parts if part[2]]
    for number, (_, kind, amount) in enumerate(present):
        behind = len(present) - number - 1
        cells = max(1, min(room - behind, round(WIDTH * amount / size)))
        if not behind:
            cells = room
        mark, style = _LOOKS.get(kind, ("?", "red"))
        bar.append(mark * cells, style)
        room -= cells
    return bar.append("|")
