"""Is a GPU all that the documentation says?  One command: ``python -m arenite.benchmarks.gpu_check``.

Needs no network: random models of real shapes are made on the spot.  Each part runs in a process of its own with a time
limit, so none takes the others down; the results so far are written after each.  Without a GPU it checks the CPU by the
same parts.

``tokens``   the GPU's tokens against the CPU's        ``arena``  the arena against stock allocation
``streams``  T1, and 1 to 64 streams                   ``speed``  against copy bandwidth and matrix rate, measured here
``loads``    200 loads and unloads, the driver's word  ``abort``  the engine dies in the middle of a step
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from ..runtime import machine
from ..runtime.backends import ggml
from ..runtime.console import print_json, stderr, stdout
from .gpu_parts import PARTS, Row, Task, abort_now, row
from .shapes import SHAPES

LIMIT_S = 540


@click.command()
@click.option("--parts", help="By comma; default: all.  The others are skipped.")
@click.option("--shapes", help="By comma.  Default: 0.5B,1B,8B on a GPU, 0.5B on a CPU.")
@click.option("--device", help="A device of ggml's, such as CUDA0.  Default: the first GPU, else CPU.")
@click.option("--small", is_flag=True, help="Everything short, on a tiny model: checks the check.")
@click.option("--limit", default=LIMIT_S, show_default=True, help="Seconds that a part may take.")
@click.option("--folder", type=click.Path(file_okay=False), default="benchmarks/results", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--part", hidden=True)
@click.option("--shape", hidden=True)
@click.option("--abort-now", "dies", is_flag=True, hidden=True)
def main(parts: str | None, shapes: str | None, device: str | None, small: bool, limit: int, folder: str, as_json: bool,
         part: str | None, shape: str | None, dies: bool) -> None:
    """Check a GPU, part by part; exits with 1 if something is not as it should be."""
    device = device or next((gpu["name"] for gpu in ggml.gpus()), "CPU")
    if part is not None:
        task = Task(device, shape or "260k", small)
        if dies:
            abort_now(task)
        print_json({"rows": PARTS[part](task)})
        return
    chosen = _chosen("--parts", parts, list(PARTS), list(PARTS))
    default = ["260k"] if small else ["0.5B"] if device == "CPU" else ["0.5B", "1B", "8B"]
    tasks = [Task(device, each, small) for each in _chosen("--shapes", shapes, list(SHAPES), default)]
    report: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(), "machine": machine.describe(), "device": _describe(device),
        "command": "python -m arenite.benchmarks.gpu_check", "skipped": [name for name in PARTS if name not in chosen],
        "rows": [],
    }
    for number, task in enumerate(tasks):
        for name in chosen:
            if name == "loads" and number:  # it has a model of its own
                continue
            stderr.print(f"{task.shape}: {name}", style="dim")
            report["rows"] += [{"part": name, "shape": task.shape, **each} for each in _run(name, task, limit)]
            _write(Path(folder), report)
    if as_json:
        print_json(report)
    else:
        _show(report)
    click.get_current_context().exit(int(any(each["ok"] is False for each in report["rows"])))


def _chosen(option: str, text: str | None, known: list[str], default: list[str]) -> list[str]:
    if text is None:
        return default
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise click.BadParameter(f"{unknown[0]!r}: known are {', '.join(known)}", param_hint=option)
    return names


def _describe(device: str) -> str:
    """Return a device in words."""
    found = next((gpu for gpu in ggml.gpus() if gpu["name"] == device), None)
    return "CPU" if found is None else f"{found['description']}, {round(found['total_bytes'] / (1 << 30))} GiB"


def _run(name: str, task: Task, limit: int) -> list[Row]:
    """Run a part in a process of its own; what goes wrong there becomes a row."""
    command = [sys.executable, "-m", "arenite.benchmarks.gpu_check", "--part", name, "--shape", task.shape, "--device",
               task.device, *(["--small"] if task.small else [])]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            said, errors = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with what it started: it would hold the device's memory
            process.communicate()
            return [row(f"{name} did not finish", f"{limit} s", ok=False)]
    if process.returncode:
        last = next(iter(reversed(errors.strip().splitlines())), "no reason was given")
        return [row(f"{name} failed with {process.returncode}", last, ok=False)]
    rows: list[Row] = json.loads(said)["rows"]
    return rows


def _write(folder: Path, report: dict[str, Any]) -> None:
    """Write the report so far, as JSON and CSV, named after machine and device."""
    words = f"gpu-check {report['device']} {report['machine']}".lower()
    name = "-".join("".join(letter if letter.isalnum() else " " for letter in words).split())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        about = {key: report[key] for key in ("date", "machine", "device", "command")}
        writer = csv.DictWriter(file, [*about, "part", "shape", "what", "figure", "bound", "ok"])
        writer.writeheader()
        writer.writerows({**about, **each} for each in report["rows"])


def _show(report: dict[str, Any]) -> None:
    table = Table(title=f"{report['device']}; {report['machine']}", title_justify="left")
    for name in ("shape", "what", "figure", "bound", ""):
        table.add_column(name, justify="right" if name == "figure" else "left")
    marks = {True: "[green]ok[/green]", False: "[red]no[/red]", None: ""}
    for each in report["rows"]:
        table.add_row(each["shape"], each["what"], str(each["figure"]), each["bound"], marks[each["ok"]])
    stdout.print(table)
    if report["skipped"]:
        stdout.print(f"skipped: {', '.join(report['skipped'])}")


if __name__ == "__main__":
    main()
