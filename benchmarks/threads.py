"""How long libgomp may spin, beside a busy neighbour and alone: ``python -m arenite.benchmarks.threads``.

llama.cpp's threads meet at hundreds of barriers per token.  libgomp spins there, by default for very long: if a busy
process takes one core, the thread that has the other spins for the one that waits.  Each setting runs in a process of
its own (libgomp reads its environment once), quiet and busy in turn, several rounds; the median counts.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

import click
from rich.table import Table

from ..runtime import machine
from ..runtime.api import Runtime
from ..runtime.console import stdout
from . import results
from .t1 import model

SETTINGS: dict[str, dict[str, str]] = {
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=100": {"GOMP_SPINCOUNT": "100"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"},
    "one thread": {"GOMP_SPINCOUNT": "1000", "ARENITE_BENCH_THREADS": "1"},
    "libgomp's default": {"GOMP_SPINCOUNT": "30000000000"},  # what libgomp takes for "active"; the variable must be set
}
LIMIT_S = 120


def rate(path: Path, tokens: int) -> float:
    """Decode ``tokens`` greedily in this process and return tokens per second."""
    threads = int(os.environ.get("ARENITE_BENCH_THREADS", "0"))
    with Runtime() as runtime:
        loaded = runtime.load(path, context=512, streams=1, threads=threads)
        usage = loaded.generate([5, 6, 7, 8], max_tokens=tokens, ignore_end=True).usage
        return float((usage.answer_tokens - 1) / (usage.total_s - usage.first_token_s))


def measure(path: Path, setting: dict[str, str], tokens: int, *, busy: bool) -> float:
    """Return tokens per second of a fresh process, with or without a process that computes beside it."""
    hog = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        done = subprocess.run(
            [sys.executable, "-m", "arenite.benchmarks.threads", "--child", str(path), "--tokens", str(tokens)],
            env={**os.environ, **setting}, capture_output=True, text=True, check=True, timeout=LIMIT_S,
        )
        return float(done.stdout)
    except subprocess.TimeoutExpired:
        return tokens / LIMIT_S
    finally:
        if hog is not None:
            hog.kill()
            hog.wait()


@click.command()
@click.option("--shape", default="0.5B", show_default=True)
@click.option("--tokens", default=48, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--csv", "folder", default="benchmarks/results", show_default=True)
@click.option("--child", hidden=True)
def main(shape: str, tokens: int, repeats: int, folder: str, child: str | None) -> None:
    """Compare settings of libgomp on a random model of SHAPE."""
    if child is not None:
        click.echo(rate(Path(child), tokens))
        return
    path = model(shape, "q4_0")
    found: dict[tuple[str, bool], list[float]] = {(name, busy): [] for name in SETTINGS for busy in (False, True)}
    for _ in range(repeats):
        for (name, busy), rates in found.items():
            rates.append(measure(path, SETTINGS[name], tokens, busy=busy))
    rows = [
        {
            "model": path.name, "setting": name, "repeats": repeats,
            "quiet_tok_s": round(statistics.median(found[name, False]), 2),
            "busy_tok_s": round(statistics.median(found[name, True]), 2),
        }
        for name in SETTINGS
    ]
    _show(rows)
    results.append(folder, "threads", rows)


def _show(rows: list[dict[str, object]]) -> None:
    table = Table(title=f"tokens per second, {machine.describe()}", title_justify="left")
    for name in ("setting", "alone", "beside a busy process"):
        table.add_column(name)
    for row in rows:
        table.add_row(str(row["setting"]), str(row["quiet_tok_s"]), str(row["busy_tok_s"]))
    stdout.print(table)


if __name__ == "__main__":
    main()
