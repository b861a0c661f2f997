"""Keeping figures: one CSV per benchmark, each row with the machine in words and the command that made it."""

from __future__ import annotations

import csv
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..runtime import machine


def append(folder: str | Path, benchmark: str, rows: list[dict[str, Any]]) -> Path:
    """Append rows (all with the same keys) to ``benchmark``.csv in a folder, made if need be; returns its path."""
    path = Path(folder) / f"{benchmark}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    arguments = [argument if argument.startswith("-") else Path(argument).name for argument in sys.argv[1:]]
    command = shlex.join(["python", "-m", f"arenite.benchmarks.{benchmark}", *arguments])
    about = {"date": datetime.now(UTC).date().isoformat(), "machine": machine.describe()}
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*about, *rows[0], "command"])
        if fresh:
            writer.writeheader()
        writer.writerows({**about, **row, "command": command} for row in rows)
    return path
