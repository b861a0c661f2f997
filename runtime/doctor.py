"""The command ``doctor``: what works on this machine, what does not, and what to do about it."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import click
from rich.markup import escape
from rich.table import Table

from . import machine
from .backends import ggml, places
from .backends.loader import Loader
from .config import ModelOptions
from .console import print_json, stdout
from .errors import ArenaTooSmall, BadModel, ModelError
from .sizes import format_size

State = Literal["ok", "note", "fail"]
_MARKS = {"ok": "[green]ok[/green]", "note": "[yellow]note[/yellow]", "fail": "[red]fail[/red]"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; ``advice`` is empty where nothing is to be done."""

    what: str
    state: State
    detail: str
    advice: str = ""


@click.command()
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def doctor(model: str | None, as_json: bool) -> int:
    """Look at CPU, memory, libraries and devices; with MODEL also at a GGUF file, without loading it.

    Exits with 1 if something does not work.
    """
    findings = [_python(), _cpu(), _memory(), _huge_pages(), _library(), _hook(), _spinning(), *_devices(), _convert()]
    findings += [_last_error("")] if model is None else _model(model)
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        _show(findings)
    return int(any(finding.state == "fail" for finding in findings))


def _show(findings: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        table.add_row(finding.what, _MARKS[finding.state], escape(finding.detail))
        if finding.advice:
            table.add_row("", "", f"[dim]{escape(finding.advice)}[/dim]")
    stdout.print(table)


def _python() -> Finding:
    return Finding("Python", "ok", f"{platform.python_version()} at {sys.executable}")


def _cpu() -> Finding:
    cores = machine.usable_cores()
    return Finding("CPU", "ok", f"{machine.describe()}; {cores} threads by default")


def _memory() -> Finding:
    free, total = machine.available_memory(), machine.total_memory()
    return Finding("memory", "ok", f"{format_size(free)} available of {format_size(total)}")


def _huge_pages() -> Finding:
    try:
        setting = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii")
    except OSError:
        return Finding("huge pages", "note", "this kernel has none", "the arena works, with more page-table misses")
    if "[never]" in setting:
        return Finding("huge pages", "note", "switched off",
                       "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled")
    return Finding("huge pages", "ok", setting.strip())


def _library() -> Finding:
    found = ggml.L.__version__
    if found != ggml.VERSION:
        return Finding("llama-cpp-python", "fail", found, f"pip install llama-cpp-python=={ggml.VERSION}")
    return Finding("llama-cpp-python", "ok", found)


def _hook() -> Finding:
    if problem := ggml.check_layout():
        return Finding("arena beneath ggml", "fail", problem,
                       f"models run on stock allocation, degraded: pip install llama-cpp-python=={ggml.VERSION}")
    return Finding("arena beneath ggml", "ok", "struct layouts checked against the live library")


def _spinning() -> Finding:
    setting = os.environ.get("GOMP_SPINCOUNT", "")
    if ggml.GOMP_TOO_LATE:
        return Finding("libgomp spinning", "note", "libgomp was loaded before arenite",
                       f"set GOMP_SPINCOUNT={ggml.SPINCOUNT} in the environment: one busy neighbour stalls decoding")
    return Finding("libgomp spinning", "ok", f"GOMP_SPINCOUNT={setting}")


def _devices() -> list[Finding]:
    devices = ggml.devices()
    found = [
        Finding("device", "ok", f"{device['name']}: {device['description']}, {format_size(device['total_bytes'])}")
        for device in devices
    ]
    found.append(_gpu())
    if ggml.withhold(ggml.WITHHELD):
        found.append(Finding("AMX", "note", "not used: its weights bypass the arena, GCC 12 miscompiles its kernels"))
    return found


def _gpu() -> Finding:
    """Driver, library, devices: what is missing between a model and a GPU."""
    driver = _driver()
    seen = driver or "no NVIDIA driver is loaded"
    if not ggml.L.llama_supports_gpu_offload():
        advice = f"build llama-cpp-python=={ggml.VERSION} with CUDA, as docs/gpu.md says" if driver else ""
        return Finding("GPU", "note", f"this build of llama-cpp-python knows none; {seen}", advice)
    gpus = ggml.gpus()
    if not gpus:
        advice = "check nvidia-smi and the rights on /dev/nvidia*" if driver else "install the driver of the GPU"
        return Finding("GPU", "note", f"llama-cpp-python is built for one, the driver shows none; {seen}", advice)
    built = " ".join(re.findall(r"CUDA : ([^|]*\|?[^|]*)", ggml.L.llama_print_system_info().decode()))
    try:
        problem = next(filter(None, map(places.check_device, (gpu["name"] for gpu in gpus))), "")
    except ArenaTooSmall as error:
        return Finding("GPU", "fail", str(error), "see nvidia-smi: another process has taken the memory")
    if problem:
        return Finding("GPU", "fail", problem, f"pip install llama-cpp-python=={ggml.VERSION}, built with CUDA")
    return Finding("GPU", "ok", "; ".join(
        f"{gpu['name']}: {gpu['description']}, {format_size(gpu['free_bytes'])} free, the arena's pieces work"
        for gpu in gpus
    ) + f"; llama-cpp-python is built for {built.strip() or 'an unknown architecture'}")


def _driver() -> str:
    """Return the NVIDIA driver's own line, or an empty string."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return " ".join(text.splitlines()[0].split())


def _convert() -> Finding:
    try:
        return Finding("convert", "ok", f"gguf {version('gguf')}")
    except PackageNotFoundError:
        return Finding("convert", "note", "gguf is not installed", "pip install 'arenite[convert]'")


def _model(path: str) -> list[Finding]:
    """Have the file examined in a child process, and pass on what libllama said there."""
    loader = Loader("auto")
    try:
        plan = loader.plan(ModelOptions(path))
    except ModelError as error:
        reason = error.reason if isinstance(error, BadModel) else ""  # of others the message says what to do
        bad = Finding("model", "fail", str(error), "download or convert the file again" if reason else "")
        return [bad, _last_error(reason)]
    finally:
        loader.close()
    size = f"it takes {format_size(plan.size)}" if plan.needs else "nobody knows what it takes"
    return [Finding("model", "ok", f"{path} can be loaded; {size} with the default settings"), _last_error("")]


def _last_error(of_model: str) -> Finding:
    found = of_model or ggml.log().last_error()
    return Finding("libllama's last error", "note" if found else "ok", found or "none")
