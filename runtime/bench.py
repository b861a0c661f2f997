"""The command ``bench``: our engine beside a raw llama.cpp loop, interleaved in one run, medians.

Target T1: one stream at 0.97 of the raw loop or better, 0.3 ms of Python per step at 1 stream, 1 ms at 16.
Figures of different runs or machines do not compare; the ratio of one run does.
"""

from __future__ import annotations

import csv
import shlex
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from . import machine, picture
from .backends.loader import Loader
from .backends.raw import RawLoop
from .cli import arena_option, json_option, model_options
from .config import ModelOptions
from .console import print_json, stderr, stdout, usage
from .engine import Engine
from .events import Progress as Step
from .request import Request
from .sizes import format_size
from .ticket import Ticket, wait_all

if TYPE_CHECKING:
    from collections.abc import Callable

    from .events import Event
    from .stats import ModelStatus, Status

PROMPT_TOKENS = 16


@dataclass(frozen=True, slots=True)
class StreamFigures:
    """What ``n`` concurrent streams gave: all tokens per second, and per-stream latencies in milliseconds."""

    n: int
    tok_s: float
    ratio_to_raw: float
    ttft_ms_p50: float
    itl_ms_p50: float
    itl_ms_p99: float
    python_ms_per_step: float


class _Recorder:
    """Notes when each token came, and hands the events to tickets, as a Runtime does."""

    def __init__(self) -> None:
        self.times: defaultdict[int, list[float]] = defaultdict(list)
        self.tickets: dict[int, Ticket] = {}

    def __call__(self, events: list[Event]) -> None:
        now = time.perf_counter()
        for event in events:
            if isinstance(event, Step) and event.tokens:
                self.times[event.ticket].append(now)
            self.tickets[event.ticket].deliver(event)


class Bench:
    """Both loops over one model, loaded side by side."""

    def __init__(self, options: ModelOptions, arena: str, tokens: int) -> None:
        options = _settle(options)
        self.options, self.tokens, self._asked = options, tokens, 0
        self.raw = RawLoop(options)
        self.recorder = _Recorder()
        self.engine = Engine(lambda: Loader(arena), self.recorder)
        self.loaded = self.engine.load(options)
        self.info = self.loaded.info

    def close(self) -> None:
        """Free both."""
        self.engine.close()
        self.raw.close()

    def raw_rate(self) -> float:
        """Tokens per second of the raw loop."""
        return (self.tokens - 1) / self.raw.run(self._prompt(0), self.tokens)[1]

    def streams(self, n: int) -> tuple[float, list[float], list[float], float]:
        """Run ``n`` streams; returns rate, times to first token, gaps between tokens (s) and Python per step (s)."""
        recorder, before = self.recorder, self._status().counters
        recorder.times.clear()
        recorder.tickets.clear()
        start = time.perf_counter()
        for number in range(n):
            request = Request(tuple(self._prompt(number)), max_tokens=self.tokens, ignore_end=True)
            ticket = self.engine.next_ticket()
            recorder.tickets[ticket] = Ticket(ticket, self.engine.cancel)
            self.engine.submit(ticket, self.loaded.number, request)
        wait_all(list(recorder.tickets.values()))
        after, times = self._status().counters, list(recorder.times.values())
        first = [stream[0] - start for stream in times]
        gaps = [float(gap) for stream in times for gap in np.diff(stream)]
        begin, end = max(stream[0] for stream in times), max(stream[-1] for stream in times)
        rate = sum(at > begin for stream in times for at in stream) / (end - begin)
        python = (after.python_s - before.python_s) / max(1, after.steps - before.steps)
        return rate, first, gaps, python

    def _status(self) -> ModelStatus:
        return self.engine.status().models[0]

    def _prompt(self, number: int) -> list[int]:
        """Return a prompt that nobody had before, so that none is cached; which tokens does not matter for speed."""
        self._asked += 1
        return [(7 * i + 13 * number + 5 + self._asked) % self.info.vocabulary for i in range(PROMPT_TOKENS)]


def _settle(options: ModelOptions) -> ModelOptions:
    """Have the file examined as every other first load does, since the raw loop trusts it, and its layers placed.

    Both loops then get the same layers; on a GPU both must fit.
    """
    loader = Loader("auto")
    try:
        return loader.settle(options)
    finally:
        loader.close()


def measure(
    bench: Bench, streams: list[int], repeats: int, tick: Callable[[], None]
) -> tuple[float, list[StreamFigures]]:
    """Alternate raw loop and engine ``repeats`` times; returns the raw median and the figures per stream count."""
    raws: list[float] = []
    ours: dict[int, list[tuple[float, list[float], list[float], float]]] = {n: [] for n in streams}
    for _ in range(repeats):
        raws.append(bench.raw_rate())
        tick()
        for n in streams:
            ours[n].append(bench.streams(n))
            tick()
    raw = statistics.median(raws)
    return raw, [_figures(n, runs, raws) for n, runs in ours.items()]


def _figures(n: int, runs: list[tuple[float, list[float], list[float], float]], raws: list[float]) -> StreamFigures:
    first = [value for run in runs for value in run[1]]
    gaps = [value for run in runs for value in run[2]]
    ratio = statistics.median(run[0] / raw for run, raw in zip(runs, raws, strict=True))
    return StreamFigures(
        n, round(statistics.median(run[0] for run in runs), 2), round(ratio, 3),
        *(round(1e3 * float(value), 3) for value in (
            np.median(first), np.median(gaps), np.percentile(gaps, 99), statistics.median(run[3] for run in runs),
        )),
    )


@click.command()
@click.argument("model")
@click.option("--streams", "counts", default="1,4,16", show_default=True, help="Stream counts, by comma.")
@click.option("--tokens", type=click.IntRange(8, 4096), default=64, show_default=True, help="Tokens per stream.")
@click.option("--repeats", type=click.IntRange(1, 99), default=5, show_default=True)
@click.option("--csv", "folder", type=click.Path(file_okay=False), help="Append a row to a CSV per machine in here.")
@arena_option
@model_options
@json_option
def bench(model: str, counts: str, tokens: int, repeats: int, folder: str | None, arena: str, as_json: bool,
          **settings: Any) -> None:
    """Measure MODEL: one stream and many through our engine, and a raw llama.cpp loop beside it.

    The raw loop and ours take turns in one process with the same threads, flags and KV types; medians are shown.
    """
    streams = _counts(counts)
    settings["streams"] = max(streams)
    settings["context"] = max(settings["context"], max(streams) * (PROMPT_TOKENS + tokens))
    with usage():
        options = ModelOptions.parse(model, settings)
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
    subject = Bench(options, arena, tokens)
    try:
        with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
            task = bar.add_task("measuring", total=repeats * (1 + len(streams)))
            raw, figures = measure(subject, streams, repeats, lambda: bar.advance(task))
        status = subject.engine.status()
        result = _result(model, subject, raw, figures, status)
    finally:
        subject.close()
    if folder is not None:
        append_csv(Path(folder), result, repeats)
    if as_json:
        print_json(result)
        return
    _show(result, figures)
    stdout.print(picture.of_status(status))


def _counts(text: str) -> list[int]:
    try:
        counts = sorted({int(word) for word in text.split(",")})
    except ValueError:
        raise click.BadParameter(f"{text!r}: give numbers by comma, such as 1,4,16", param_hint="--streams") from None
    if not counts or not all(1 <= n <= 255 for n in counts):
        raise click.BadParameter(f"{text!r}: each lies from 1 to 255", param_hint="--streams")
    return counts


def _result(model: str, subject: Bench, raw: float, figures: list[StreamFigures], status: Status) -> dict[str, Any]:
    arena = status.arena
    return {
        "model": Path(model).name, "device": subject.info.device, "threads": subject.info.threads,
        "raw": {"tok_s": round(raw, 2)}, "streams": [asdict(figure) for figure in figures],
        "arena": {
            "bytes": arena.size if arena else None, "allocations_after_seal": status.allocations_after_seal,
        },
        "rss_bytes": status.rss_bytes,
    }


def _show(result: dict[str, Any], figures: list[StreamFigures]) -> None:
    title = f"{result['model']} on {machine.describe()}, {result['threads']} threads"
    table = Table(title=Text(title), title_justify="left")
    for name in ("", "tok/s", "to raw", "first token", "gap p50", "gap p99", "Python/step"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("raw loop", f"{result['raw']['tok_s']:.1f}", "1.00")
    for row in figures:
        table.add_row(
            f"{row.n} stream{'s' * (row.n > 1)}", f"{row.tok_s:.1f}", f"{row.ratio_to_raw:.3f}",
            *(f"{value:.2f} ms" for value in
              (row.ttft_ms_p50, row.itl_ms_p50, row.itl_ms_p99, row.python_ms_per_step)),
        )
    stdout.print(table)
    stdout.print(f"allocations_after_seal: {result['arena']['allocations_after_seal']}")
    stdout.print(f"process: {format_size(result['rss_bytes'])}, raw loop's copy of the model included")


def append_csv(folder: Path, result: dict[str, Any], repeats: int) -> Path:
    """Append one row per stream count to the CSV of this machine; returns its path."""
    name = "".join(letter if letter.isalnum() else "-" for letter in machine.describe().lower())
    path = folder / f"bench-{'-'.join(filter(None, name.split('-')))}.csv"
    command = "arenite " + shlex.join(_without_folders(sys.argv[1:]))
    rows = [
        {
            "date": datetime.now(UTC).date().isoformat(), "machine": machine.describe(), "model": result["model"],
            "device": result["device"], "threads": result["threads"], "repeats": repeats,
            "raw_tok_s": result["raw"]["tok_s"], **row,
            "allocations_after_seal": result["arena"]["allocations_after_seal"],
            "arena_bytes": result["arena"]["bytes"], "rss_bytes": result["rss_bytes"], "command": command,
        }
        for row in result["streams"]
    ]
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if fresh:
            writer.writeheader()
        writer.writerows(rows)
    return path


def _without_folders(arguments: list[str]) -> list[str]:
    """Shorten paths to their names: a figure's command shall mean the same on another machine."""
    return [argument if argument.startswith("-") else Path(argument).name for argument in arguments]
