"""What the service costs beside the engine alone (target T10, and the engine's own process): ``python -m
arenite.benchmarks.service``.

``ready``    a service without a model: seconds until systemd hears READY, MiB of both processes (T10: 1.5 s, 120 MiB)
``remote``   tokens per second of 16 streams, the engine in a process of its own / in this one, in turn (target 0.98)
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress
from rich.table import Table

from ..runtime import machine
from ..runtime.api import Runtime
from ..runtime.console import print_json, stderr, stdout
from . import results
from .t1 import model as random_model

STREAMS, TOKENS = 16, 48
SETTLE_S = 2.0
MIB = 1 << 20


def ready(repeats: int) -> list[dict[str, Any]]:
    """Start a service without a model and listen to what it tells systemd."""
    seconds, sizes = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as name:
            took, memory = _start_once(Path(name))
        seconds.append(took)
        sizes.append(memory / MIB)
    return [
        {"part": "ready", "model": "none", "what": "s until READY", "measured": statistics.median(seconds),
         "target": 1.5},
        {"part": "ready", "model": "none", "what": "MiB of both processes", "measured": statistics.median(sizes),
         "target": 120.0},
    ]


def _start_once(folder: Path) -> tuple[float, int]:
    settings = folder / "arenite.toml"
    settings.write_text(f'[zeromq]\nlisten = ["ipc://{folder}/a.sock"]\nstatus = "ipc://{folder}/s.sock"\n', "utf-8")
    heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with heard:
        heard.bind(str(folder / "notify"))
        heard.settimeout(60)
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "arenite", "serve", "--config", str(settings)],
            env={**os.environ, "NOTIFY_SOCKET": str(folder / "notify")}, stderr=subprocess.DEVNULL,
        )
        try:
            while b"READY=1" not in heard.recv(4096):
                pass
            took = time.perf_counter() - start
            time.sleep(SETTLE_S)  # the engine's process starts behind it
            return took, sum(machine.process_facts(pid)[0] for pid in (process.pid, *machine.children(process.pid)))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def remote(path: Path, repeats: int) -> list[dict[str, Any]]:
    """Compare the rate of 16 streams with and without a process of its own."""
    ratios, rates = [], []
    for _ in range(repeats):
        alone, isolated = (_rate(path, isolated=isolated) for isolated in (False, True))
        ratios.append(isolated / alone)
        rates.append(isolated)
    return [
        {"part": "remote", "model": path.name, "what": f"tokens/s of {STREAMS} streams, own process / in process",
         "measured": statistics.median(ratios), "target": 0.98},
        {"part": "remote", "model": path.name, "what": "tokens/s in a process of its own",
         "measured": statistics.median(rates), "target": None},
    ]


def _rate(path: Path, *, isolated: bool) -> float:
    with Runtime(isolated=isolated) as runtime:
        model = runtime.load(path, context=4096, streams=STREAMS)
        begin = 0.0
        for seed in (1, 2):  # the first round teaches the engine what steps cost
            begin = time.perf_counter()
            tickets = [
                model.submit([(7 * i + 13 * n + seed) % 1000 for i in range(16)], max_tokens=TOKENS, ignore_end=True)
                for n in range(STREAMS)
            ]
            for ticket in tickets:
                ticket.result()
        return STREAMS * TOKENS / (time.perf_counter() - begin)


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(["ready", "remote"]))
@click.option("--shape", default="0.5B", show_default=True, help="Of the random model of `remote`.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--csv", "folder", type=click.Path(file_okay=False), help="Append the rows to service.csv in here.")
def main(parts: tuple[str, ...], shape: str, repeats: int, as_json: bool, folder: str | None) -> None:
    """Measure PARTS (default: both)."""
    rows: list[dict[str, Any]] = []
    with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        for part in bar.track(parts or ("ready", "remote")):
            rows += ready(repeats) if part == "ready" else remote(random_model(shape, "q4_0"), repeats)
    rows = [{**row, "measured": round(row["measured"], 3), "repeats": repeats} for row in rows]
    if folder is not None:
        results.append(folder, "service", rows)
    if as_json:
        print_json({"machine": machine.describe(), "rows": rows})
        return
    table = Table(title=machine.describe(), title_justify="left")
    for name in ("part", "what", "measured", "target"):
        table.add_column(name, justify="left" if name in ("part", "what") else "right")
    for row in rows:
        target = "" if row["target"] is None else f"{row['target']:g}"
        table.add_row(row["part"], row["what"], f"{row['measured']:g}", target)
    stdout.print(table)


if __name__ == "__main__":
    main()
