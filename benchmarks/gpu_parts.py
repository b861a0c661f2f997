"""The parts of `gpu_check`: each runs in a process of its own and returns rows for its table.

A row is what was looked at, the figure, its bound and whether it holds (None: a figure without a bound).
"""

from __future__ import annotations

import ctypes as C  # noqa: N812 - as in the ggml module
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..quantize import convert
from ..runtime import machine
from ..runtime.api import Runtime
from ..runtime.backends import ggml
from ..runtime.backends.loader import Loader
from ..runtime.backends.raw import RawLoop
from ..runtime.config import ModelOptions
from . import limits
from .t1 import FOLDER
from .t1 import model as random_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

Row = dict[str, Any]
EXACT = {"kv_type": "f32", "flash_attention": False}
LOGIT_TOLERANCE = 0.05  # root mean square of the difference, as a part of the logits' own deviation
LEFT_OVER = 4 << 20  # bytes that load/unload cycles may leave behind, all together


@dataclass(frozen=True, slots=True)
class Task:
    """What to check: ``device`` is ``CPU`` or a GPU of ggml's; ``small`` keeps everything short, for tests."""

    device: str
    shape: str
    small: bool

    @property
    def on_device(self) -> dict[str, Any]:
        """Settings that put a whole model there."""
        if self.device == "CPU":
            return {"gpu_layers": 0}
        return {"gpu_layers": "all", "gpus": (self.device,), "flash_attention": self.flash}

    @property
    def flash(self) -> bool:
        """Whether CUDA has a kernel of flash attention for the shape's heads; 260k and 15M have unusual ones."""
        return self.shape not in ("260k", "15M")

    @property
    def path(self) -> Path:
        """The random model, made if it is not there."""
        return random_model(self.shape, "q4_0")

    def free(self) -> int:
        """Bytes of the device that are free by its driver; on the CPU less what this process holds."""
        return -machine.resident_memory() if self.device == "CPU" else ggml.device_memory(self.device)[0]


def row(what: str, figure: float | str, bound: str = "", *, ok: bool | None = None) -> Row:
    """Return a row of the table."""
    return {"what": what, "figure": round(figure, 4) if isinstance(figure, float) else figure, "bound": bound, "ok": ok}


def tokens(task: Task) -> list[Row]:
    """Compare greedy tokens (f32, exact settings) and logits (q4_0) with the CPU's."""
    path, name = _exact_model()
    prompt, n = list(range(1, 9)), 24 if task.small else 96
    said = []
    for settings in ({"gpu_layers": 0}, task.on_device):
        with Runtime() as runtime:
            model = runtime.load(path, context=512, streams=2, **{**settings, **EXACT})
            said.append(model.generate(prompt, max_tokens=n, ignore_end=True).tokens)
    same = sum(a == b for a, b in zip(*said, strict=True))
    counts = name == "stories260k"  # a random model says the same token for ever, whatever goes wrong
    found = [row(f"tokens equal to the CPU's, {name} f32", f"{same} of {n}", "all" if counts else "",
                 ok=same == n if counts else None)]
    asked = 8 if task.small else 48
    cpu, other = (_logits(task.path, settings, asked) for settings in ({"gpu_layers": 0}, task.on_device))
    difference = float(np.sqrt(np.mean((cpu - other) ** 2)) / np.std(cpu))
    agree = float(np.mean(cpu.argmax(1) == other.argmax(1)))
    return [
        *found,
        row(f"logits against the CPU's, {task.shape} q4_0, rms of deviation", difference, f"<= {LOGIT_TOLERANCE}",
            ok=difference <= LOGIT_TOLERANCE),
        row(f"same most likely token, {task.shape} q4_0", agree),
    ]


def _exact_model() -> tuple[Path, str]:
    """Return stories260k as f32 if it is there, else a small random model."""
    reference = Path(os.environ.get("ARENITE_REFERENCE_MODELS", "")) / "stories260k"
    if not (reference / "model.safetensors").exists():
        return random_model("260k", "f32"), "random 260k"
    target = FOLDER / "stories260k-f32.gguf"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        convert(reference, target, type="f32")
    return target, "stories260k"


def _logits(path: Path, settings: dict[str, Any], n: int) -> NDArray[np.float32]:
    """Return the logits after each of ``n`` given tokens, shape [n, vocabulary]."""
    loader = Loader()
    backend = loader.load(ModelOptions(str(path), context=512, streams=1, remember=0, **settings))
    found = []
    try:
        for at in range(n):
            backend.batch.tokens[0], backend.batch.positions[0] = 11 + 7 * at, at
            backend.batch.sequences[0], backend.batch.outputs[0] = 0, 1
            found.append(backend.decode(1)[0].copy())
    finally:
        backend.close()
        loader.close()
    return np.stack(found)


def arena(task: Task) -> list[Row]:
    """Compare the arena with stock allocation: tokens, speed, allocations of the driver while serving."""
    n, prompt = (24, [5, 6, 7]) if task.small else (128, [5, 6, 7])
    loader = Loader()
    options = loader.settle(ModelOptions(str(task.path), context=1024, streams=2, **task.on_device))
    loader.close()
    raw = RawLoop(options)
    stock, _ = raw.run(prompt, n)
    rates = [(n - 1) / raw.run(prompt, n)[1] for _ in range(3)]
    raw.close()
    with Runtime() as runtime:
        model = runtime.load(task.path, context=1024, streams=2, **task.on_device)
        said = model.generate(prompt, max_tokens=n, ignore_end=True).tokens
        before, ours = task.free(), []
        for seed in range(3):
            usage = model.generate([5, 6, 7 + seed], max_tokens=n, ignore_end=True).usage
            ours.append((n - 1) / (usage.total_s - usage.first_token_s))
        taken, status = before - task.free(), runtime.status()
    ratio = float(np.median(ours) / np.median(rates))
    same = sum(a == b for a, b in zip(stock, said, strict=True))
    rows = [
        row("tokens with the arena equal to stock allocation", f"{same} of {n}", "all", ok=same == n),
        row("speed with the arena / stock raw loop", ratio, ">= 0.97", ok=None if task.small else ratio >= 0.97),
        row("allocations after the seal", str(status.allocations_after_seal), "0",
            ok=status.allocations_after_seal == 0),
    ]
    if task.device != "CPU":
        rows.append(row("bytes of the device taken while serving", str(taken), "0", ok=taken <= 0))
        outside = status.models[0].memory.outside
        rows += [row(f"outside the arena: {name}", str(size)) for name, size in outside.items() if size]
    return rows


def streams(task: Task) -> list[Row]:
    """Run `arenite bench`: T1, and 1 to 64 streams."""
    counts = "1,4" if task.small else "1,4,16,64"
    where = ["--gpu-layers", "0"] if task.device == "CPU" else ["--gpu-layers", "all", "--gpus", task.device]
    where += [] if task.flash else ["--no-flash-attention"]
    done = subprocess.run(
        [sys.executable, "-m", "arenite", "bench", str(task.path), "--streams", counts, "--json", *where,
         "--repeats", "1" if task.small else "5", "--tokens", "8" if task.small else "64"],
        capture_output=True, text=True, check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    found = json.loads(done.stdout)
    rows = [row("raw llama.cpp loop, tokens/s", float(found["raw"]["tok_s"]))]
    for figures in found["streams"]:
        n, ratio, python = figures["n"], figures["ratio_to_raw"], figures["python_ms_per_step"]
        bounded = n == 1 and not task.small
        rows += [
            row(f"{n} streams, tokens/s", float(figures["tok_s"])),
            row(f"{n} streams / raw loop of one", float(ratio), ">= 0.97" if n == 1 else "",
                ok=ratio >= 0.97 if bounded else None),
            row(f"{n} streams, Python per step, ms", float(python), {1: "<= 0.3", 16: "<= 1"}.get(n, ""),
                ok=None if task.small or n not in (1, 16) else python <= (0.3 if n == 1 else 1.0)),
        ]
    return rows


def speed(task: Task) -> list[Row]:
    """Compare prompt and decode speed with what the device can do at best, measured here."""
    ggml.start()
    best = limits.measure(task.device, copy_bytes=(16 if task.small else 1024) << 20, side=256 if task.small else 4096)
    n = 64 if task.small else 2048
    with Runtime() as runtime:
        model = runtime.load(task.path, context=4096, streams=1, remember=0, step_ms=1000, **task.on_device)
        weights, parameters = model.info.file_bytes, model.info.parameters
        for seed in range(3):  # the first two teach the engine what a token costs
            tokens = [(11 * seed + 7 * i) % 1000 for i in range(n)]
            usage = model.generate(tokens, max_tokens=32, ignore_end=True).usage
    prompt = n / usage.first_token_s
    decode = 31 / (usage.total_s - usage.first_token_s)
    return [
        row("copy bandwidth, GB/s", best.bandwidth / 1e9), row("f16 matrix rate, TFLOP/s", best.rate / 1e12),
        row(f"prompt of {n} tokens, tokens/s", prompt),
        row("prompt, part of the matrix rate", 2 * parameters * prompt / best.rate),
        row("decode of one stream, tokens/s", decode),
        row("decode, part of the bandwidth", weights * decode / best.bandwidth),
    ]


def loads(task: Task) -> list[Row]:
    """Load, use and unload a model many times and look at the driver's memory figure."""
    cycles, free = 4 if task.small else 200, []
    task = replace(task, shape="260k" if task.small else "15M")
    with Runtime() as runtime:
        for _ in range(cycles):
            model = runtime.load(task.path, context=512, streams=2, **task.on_device)
            model.generate([1, 2, 3], max_tokens=4, ignore_end=True)
            model.close()
            free.append(task.free())
    settled = free[len(free) // 10]  # the first cycles load kernels and libraries
    lost = settled - free[-1]
    return [row(f"bytes lost over {cycles} loads and unloads", str(lost), f"<= {LEFT_OVER}",
                ok=None if task.small else lost <= LEFT_OVER)]


def abort(task: Task) -> list[Row]:
    """Let the engine of another process abort in the middle of a step; memory and device must be usable afterwards."""
    before = _in_process(task)
    free = task.free()
    died = subprocess.run(
        [sys.executable, "-m", "arenite.benchmarks.gpu_check", "--part", "abort", "--abort-now",
         "--device", task.device, "--shape", task.shape], capture_output=True, text=True, check=False, timeout=300,
    )
    time.sleep(1.0)  # the driver takes its time
    kept, after = free - task.free(), _in_process(task)
    return [
        row("the process ended by a signal", str(died.returncode), "-6", ok=died.returncode == -6),
        row("bytes of the device not given back", str(kept), f"<= {LEFT_OVER}", ok=kept <= LEFT_OVER),
        row("tokens of a new process afterwards", "the same" if before == after else "others", "the same",
            ok=before == after),
    ]


def abort_now(task: Task) -> None:
    """End this process by a native abort while a step is computed."""
    runtime = Runtime()
    model = runtime.load(task.path, context=512, streams=1, **task.on_device)
    ticket = model.submit([5, 6, 7], max_tokens=400, ignore_end=True)
    next(iter(ticket))

    def strike() -> None:
        ggml.lib.ggml_abort.argtypes = [C.c_char_p, C.c_int, C.c_char_p]
        ggml.lib.ggml_abort(b"gpu_check", 0, b"provoked")

    thread = threading.Thread(target=strike)
    thread.start()
    thread.join()


def _in_process(task: Task) -> list[int]:
    """Return the tokens of a fresh process."""
    code = (
        "import sys, json; from arenite.benchmarks.gpu_parts import Task, say; "
        f"print(json.dumps(say(Task({task.device!r}, {task.shape!r}, {task.small!r}))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    return [int(token) for token in json.loads(done.stdout.splitlines()[-1])]


def say(task: Task) -> list[int]:
    """Return some tokens of the random model."""
    with Runtime() as runtime:
        model = runtime.load(task.path, context=512, streams=1, **task.on_device)
        return list(model.generate([5, 6, 7], max_tokens=16, ignore_end=True).tokens)


PARTS: dict[str, Callable[[Task], list[Row]]] = {
    "tokens": tokens, "arena": arena, "streams": streams, "speed": speed, "loads": loads, "abort": abort,
}
