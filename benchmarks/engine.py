"""What the engine promises beside plain speed (targets T3, T5, T6, T7): ``python -m arenite.benchmarks.engine``.

Each part compares two things within one run and prints their ratio, the median of several rounds:

``arrival``   gaps between tokens of running streams, p99, while a prompt of 2,000 tokens is computed / without it
``forced``    a JSON action of about 20 tokens with forced tokens / with the mask alone, decoding only (T3)
``second``    time to first token of the second turn of a 512-token session / of the same prompt unknown (T5)
``control``   time to first token of a control request under saturating background load, p99 / its own prefill on an
              idle engine and two decode steps at that load (T6)
``steady``    10,000 mixed requests: growth of the process over the last 80 %, allocations after the seal (T7)
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich.progress import Progress
from rich.table import Table

from ..runtime import machine
from ..runtime.api import Runtime
from ..runtime.console import print_json, stderr, stdout
from . import results
from .t1 import model as random_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ..runtime.api import Model
    from ..runtime.ticket import Ticket

    Tick = Callable[[], None]

ACTION = {
    "type": "object",
    "properties": {
        "action": {"enum": ["turn_on", "turn_off", "set_level", "query"]},
        "device": {"enum": ["light", "fan", "heater", "door_lock"]},
        "room": {"enum": ["kitchen", "living_room", "bedroom"]},
        "value": {"type": "integer", "minimum": 0, "maximum": 100},
    },
    "required": ["action", "device", "room", "value"],
    "additionalProperties": False,
}
TARGETS = {"arrival": 2.0, "forced": 0.5, "second": 0.1, "control": 1.0, "steady": 1.0}


class Tokens:
    """Prompts of random tokens, never the same twice, so that nothing is cached by accident."""

    def __init__(self, model: Model, seed: int = 1) -> None:
        self._choose = random.Random(seed)
        self._size = model.info.vocabulary - 10

    def __call__(self, n: int) -> list[int]:
        """Return the next ``n`` tokens."""
        return [self._choose.randrange(self._size) for _ in range(n)]


class Listener:
    """Follows a ticket on a thread of its own and notes when text came."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.times: list[float] = []
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def _follow(self) -> None:
        for _ in self.ticket:
            self.times.append(time.perf_counter())

    def stop(self) -> None:
        """Cancel what is followed."""
        self.ticket.cancel(wait=True)
        self._thread.join()

    def gaps(self, begin: float, end: float) -> list[float]:
        """Return the seconds between pieces of text within a time."""
        return [float(gap) for gap in np.diff([at for at in self.times if begin <= at <= end])]


def first_token_s(model: Model, prompt: list[int], **settings: Any) -> float:
    """Return the seconds from submission to the first token."""
    return float(model.generate(prompt, max_tokens=1, ignore_end=True, **settings).usage.first_token_s)


def arrival(path: Path, repeats: int, tick: Tick) -> dict[str, Any]:
    """Compare the gaps of four running streams while a long prompt is computed with those at the same tokens without.

    The same tokens, since a step takes longer the more a stream has said.
    """
    with Runtime() as runtime:
        model = runtime.load(path, context=8192, streams=8)
        prompt = Tokens(model)
        quiet, loaded, prefill = list[float](), list[float](), list[float]()
        for _ in range(repeats):
            streams = _four(model, prompt)
            time.sleep(2.0)
            first = [len(stream.times) for stream in streams]
            prefill.append(first_token_s(model, prompt(2000)))
            last = [len(stream.times) for stream in streams]
            for stream in streams:
                stream.stop()
            others = _four(model, prompt)
            while any(len(stream.times) < n for stream, n in zip(others, last, strict=True)):
                time.sleep(0.1)
            for stream in others:
                stream.stop()
            for found, group in ((loaded, streams), (quiet, others)):
                gaps = [np.diff(s.times[i:j]) for s, i, j in zip(group, first, last, strict=True)]
                found.append(float(np.percentile(np.concatenate(gaps), 99)))
            tick()
    return {
        "baseline_ms": 1e3 * statistics.median(quiet), "measured_ms": 1e3 * statistics.median(loaded),
        "ratio": statistics.median(b / a for a, b in zip(quiet, loaded, strict=True)),
        "note": f"the prompt took {statistics.median(prefill):.1f} s beside 4 streams",
    }


def _four(model: Model, prompt: Tokens) -> list[Listener]:
    return [Listener(model.submit(prompt(16), ignore_end=True, max_tokens=1500)) for _ in range(4)]


def forced(path: Path, repeats: int, tick: Tick) -> dict[str, Any]:
    """Compare the same JSON action with and without forced tokens; the prompt is known, so only decoding counts."""
    with Runtime(arena="60%") as runtime:
        on, off = (
            runtime.load(path, name=name, context=1024, streams=1, forced_tokens=name == "on") for name in ("on", "off")
        )
        prompt, pairs, share = Tokens(on), [], []
        for _ in range(3 * repeats):
            tokens = prompt(32)
            for model in (on, off):
                model.generate(tokens, max_tokens=1, ignore_end=True)
            before = runtime.status().models[0].counters
            answers = [model.generate(tokens, schema=ACTION, max_tokens=64) for model in (on, off)]
            after = runtime.status().models[0].counters
            share.append((after.forced_tokens - before.forced_tokens) / answers[0].usage.answer_tokens)
            each = [answer.usage.total_s / answer.usage.answer_tokens for answer in answers]  # lengths may differ
            pairs.append((each[0], each[1], answers[0].usage.answer_tokens))
            tick()
    tokens_each = statistics.median(pair[2] for pair in pairs)
    return {
        "baseline_ms": 1e3 * statistics.median(off_s * n for _, off_s, n in pairs),
        "measured_ms": 1e3 * statistics.median(on_s * n for on_s, _, n in pairs),
        "ratio": statistics.median(on_s / off_s for on_s, off_s, _ in pairs),
        "note": f"{tokens_each:.0f} tokens, {100 * statistics.median(share):.0f} % of them forced",
    }


def second(path: Path, repeats: int, tick: Tick) -> dict[str, Any]:
    """Compare the first token of a second turn (512 known tokens and 16 new ones) with that of an unknown prompt."""
    with Runtime() as runtime:
        model = runtime.load(path, context=8192, streams=2)
        prompt, cold, warm = Tokens(model), [], []
        for _ in range(repeats):
            begin = prompt(496)
            answer = model.generate(begin, max_tokens=17, ignore_end=True)
            follow = [*begin, *answer.tokens[:16], *prompt(16)]
            found = model.generate(follow, max_tokens=1, ignore_end=True).usage
            assert found.cached_tokens >= 512, "what is measured is the second turn"  # noqa: S101 - a benchmark's own check
            warm.append(found.first_token_s)
            cold.append(first_token_s(model, prompt(len(follow))))
            tick()
    return {
        "baseline_ms": 1e3 * statistics.median(cold), "measured_ms": 1e3 * statistics.median(warm),
        "ratio": statistics.median(w / c for w, c in zip(warm, cold, strict=True)),
        "note": "528 tokens, 16 of them new",
    }


def control(path: Path, repeats: int, tick: Tick) -> dict[str, Any]:
    """Compare the first token of control requests under load with their own prefill and two decode steps."""
    with Runtime() as runtime:
        model = runtime.load(path, context=8192, streams=16)
        prompt = Tokens(model)
        alone = [first_token_s(model, prompt(32), priority="control") for _ in range(5)]
        load = [
            model.submit(prompt(64), ignore_end=True, max_tokens=400, priority="background")
            for _ in range(40 + 4 * repeats)
        ]
        while model.info.streams > sum(ticket.state == "executing" for ticket in load):
            time.sleep(0.05)
        listener = Listener(load[0])
        begin = time.perf_counter()
        urgent = []
        for _ in range(8 * repeats):
            time.sleep(0.2)
            urgent.append(first_token_s(model, prompt(32), priority="control"))
            tick()
        end = time.perf_counter()
        preempted = runtime.status().models[0].counters.preempted
        steps = listener.gaps(begin, end) or [0.0]
        for ticket in load:
            ticket.cancel()
        listener.stop()
    bound = statistics.median(alone) + 2 * statistics.median(steps)
    return {
        "baseline_ms": 1e3 * bound, "measured_ms": 1e3 * float(np.percentile(urgent, 99)),
        "ratio": float(np.percentile(urgent, 99)) / bound,
        "note": f"p50 {1e3 * statistics.median(urgent):.0f} ms; alone {1e3 * statistics.median(alone):.0f} ms, a step "
                f"{1e3 * statistics.median(steps):.0f} ms; {preempted} times somebody gave way",
    }


def steady(path: Path, repeats: int, tick: Tick) -> dict[str, Any]:
    """Send mixed requests and follow the size of the process; the ratio is MiB of growth over the last 80 %."""
    total, sizes = 10_000, []
    choose = random.Random(7)
    with Runtime(limit=256) as runtime:
        model = runtime.load(path, context=2048, streams=16, host_cache="16MiB")
        prompt, open_tickets = Tokens(model), list[Any]()
        heads = [prompt(40) for _ in range(8)]
        for number in range(total):
            open_tickets.append(model.submit(
                choose.choice(heads) + prompt(choose.randint(1, 60)), max_tokens=choose.randint(1, 30),
                priority=choose.choice(["control", "interactive", "background"]), temperature=choose.choice([0.0, 0.8]),
                schema={"enum": ["on", "off", "dim"]} if choose.random() < 0.2 else None,
            ))
            if len(open_tickets) >= 64:
                for ticket in open_tickets:
                    if choose.random() < 0.1:
                        ticket.cancel()
                    ticket.completion() if ticket.done else ticket.result()
                open_tickets.clear()
                sizes.append((number, machine.resident_memory()))
            if number % (total // (5 * repeats)) == 0:
                tick()
        after = runtime.status().allocations_after_seal
    late = [(number, size) for number, size in sizes if number > 0.2 * total]
    slope = np.polyfit([n for n, _ in late], [s for _, s in late], 1)[0] * 0.8 * total / (1 << 20)
    return {
        "baseline_ms": None, "measured_ms": None, "ratio": float(slope),
        "note": f"MiB over 8,000 requests; allocations after the seal: {after}",
    }


PARTS: dict[str, tuple[Callable[[Path, int, Tick], dict[str, Any]], Callable[[int], int]]] = {
    "arrival": (arrival, lambda repeats: repeats), "forced": (forced, lambda repeats: 3 * repeats),
    "second": (second, lambda repeats: repeats), "control": (control, lambda repeats: 8 * repeats),
    "steady": (steady, lambda repeats: 5 * repeats),
}


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(list(PARTS)))
@click.option("--shape", default="0.5B", show_default=True, help="Of the random model; `steady` uses 260k.")
@click.option("--type", "kind", default="q4_0", show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--csv", "folder", type=click.Path(file_okay=False), help="Append the rows to engine.csv in here.")
def main(parts: tuple[str, ...], shape: str, kind: str, repeats: int, as_json: bool, folder: str | None) -> None:
    """Measure PARTS (default: all)."""
    rows = []
    for part in parts or tuple(PARTS):
        run, ticks = PARTS[part]
        used = "260k" if part == "steady" else shape
        path = random_model(used, kind)
        with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
            task = bar.add_task(part, total=ticks(repeats))
            found = run(path, repeats, lambda task=task, bar=bar: bar.advance(task))  # type: ignore[misc]
        rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in found.items()}
        rows.append({"part": part, "model": path.name, "repeats": repeats, "target": TARGETS[part], **rounded})
    if folder is not None:
        results.append(folder, "engine", rows)
    if as_json:
        print_json({"machine": machine.describe(), "rows": rows})
        return
    table = Table(title=f"ratios within one run, {machine.describe()}", title_justify="left")
    for name in ("part", "baseline", "measured", "ratio", "target", "note"):
        table.add_column(name, justify="left" if name in ("part", "note") else "right")
    for row in rows:
        times = ("" if row[key] is None else f"{row[key]:.1f} ms" for key in ("baseline_ms", "measured_ms"))
        table.add_row(str(row["part"]), *times, f"{row['ratio']:.2f}", f"{row['target']:g}", str(row["note"]))
    stdout.print(table)


if __name__ == "__main__":
    main()
