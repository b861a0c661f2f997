"""GPUs: which layers go there, what lies there outside the arena, and whether somebody else takes the memory.

Outside buffer types, and so outside the slab, stay the CUDA context, ggml's scratch pool and cuBLAS's workspaces.  None
of them can be planned: a reserve is kept free for them (`RESERVE`), and what pool and workspaces took is measured after
the warm-up, which runs the largest steps, as what the driver says is gone less what we took.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import ArenaTooSmall, NoGPU
from ..sizes import format_size
from ..stats import DeviceStatus
from . import ggml

if TYPE_CHECKING:
    from ..arena import Plan, Snapshot
    from ..config import ModelOptions
    from .probe import Report

RESERVE = 512 << 20  # bytes of a GPU that are kept free for what is outside the slab, until that is measured
USUAL_SPLITS = 2  # parts of the graph of a model on one device: the embeddings are looked up on the host
LEAST_FREE = 64 << 20  # bytes; with less a scratch pool that grows would fail: degraded
ALL = 1 << 16  # more layers than any model has

Examine = Callable[["ModelOptions"], "Report"]


def place(
    options: ModelOptions, examine: Examine, room: Callable[[str], int], plan: Callable[[Report], Plan]
) -> tuple[ModelOptions, Report, str]:
    """Choose GPUs and the number of layers; returns settled options, their report, and why no GPU is used.

    ``room``: bytes that a memory has for a plan.  ``auto`` takes as many layers as fit, found by bisection.
    Raises NoGPU, with what would help, if what was asked for can not be had.
    """
    present = tuple(gpu["name"] for gpu in ggml.gpus())
    insists = options.require_gpu or options.gpu_layers not in ("auto", 0)
    if unknown := [name for name in options.gpus if name not in present]:
        raise NoGPU(f"there is no GPU {unknown[0]}: ggml sees {', '.join(present) or 'none'}; see `arenite doctor`")
    if not present and insists:
        raise NoGPU(f"no GPU can be used: {why_none()}; see `arenite doctor`, or set gpu_layers to 0")
    if not present or options.gpu_layers == 0:
        settled = options.settled()
        return settled, examine(settled), "" if options.gpu_layers == 0 else why_none()
    gpus = options.gpus or present[:1]
    split = options.gpu_split or (tuple(float(max(1, room(name))) for name in gpus) if len(gpus) > 1 else ())
    report = examine(options.settled(gpus, ALL if isinstance(options.gpu_layers, str) else options.gpu_layers, split))
    layers, total = report.info.gpu_layers, report.info.layers
    whole, advice = options.settled(gpus, layers, split), _elsewhere(report, gpus, options)
    if options.require_gpu and layers < total:
        raise NoGPU(f"gpu_layers {layers} leaves {total - layers} layers on the CPU, which require_gpu forbids")
    if advice and (options.require_gpu or options.gpu_layers == "all"):
        raise NoGPU(advice)
    if _fits(plan(report), gpus, room):
        return whole, report, advice
    if insists:
        raise NoGPU(_advice(plan(report), gpus, room, layers))
    best = options.settled()
    best_report, low, high = examine(best), 0, layers
    while high - low > 1:
        middle = (low + high) // 2
        trial = options.settled(gpus, middle, split)
        found = examine(trial)
        if _fits(plan(found), gpus, room):
            best, best_report, low = trial, found, middle
        else:
            high = middle
    return best, best_report, _advice(plan(report), gpus, room, layers)


def _elsewhere(report: Report, gpus: tuple[str, ...], options: ModelOptions) -> str:
    """Say if the CPU has to compute operations of layers that lie on a GPU, which no memory figure shows.

    ggml hands an operation that a device has no kernel for to the CPU and back: the graph falls into many parts.
    """
    if report.info.gpu_layers < report.info.layers or not options.gpu_kv or report.splits <= USUAL_SPLITS * len(gpus):
        return ""
    return (
        f"{gpus[0]} has no kernel for some operations of this model ({report.splits} parts of a graph instead of 2): "
        f"the CPU computes them.  Try flash_attention False, or another kv_type than {options.kv_type}"
    )


def _fits(plan: Plan, gpus: tuple[str, ...], room: Callable[[str], int]) -> bool:
    return all(plan.at(name).size <= room(name) for name in gpus)


def check_room(name: str, size: int) -> None:
    """Raise ArenaTooSmall if an arena of that size would leave a GPU nothing for what lies outside it."""
    free = ggml.device_memory(name)[0] - RESERVE
    if size > free:
        raise ArenaTooSmall(size, max(0, free), {"gpu_arena": size}, f"{name}, less {format_size(RESERVE)} for CUDA,")


def _advice(plan: Plan, gpus: tuple[str, ...], room: Callable[[str], int], layers: int) -> str:
    """Say what is short, and what would make it fit."""
    name = max(gpus, key=lambda each: plan.at(each).size - room(each))
    part, free = plan.at(name), max(0, room(name))
    kinds = part.by_kind()
    largest = max(kinds, key=lambda kind: kinds[kind])
    outside = ggml.device_memory(name)[0] - RESERVE
    if outside >= part.size > free:
        return (
            f"{layers} layers need {format_size(part.size)} of {name}, and its arena, made for the first model, has "
            f"{format_size(free)} left while {format_size(outside)} are free beside it: give gpu_arena a size"
        )
    helps = {
        "weights": "a smaller type of weights, or fewer gpu_layers",
        "kv": "a smaller context, or kv_type q8_0", "scratch": "a smaller batch",
    }.get(largest, "fewer streams")
    parts = ", ".join(f"{kind} {format_size(size)}" for kind, size in kinds.items())
    return (
        f"{layers} layers need {format_size(part.size)} of {name} ({parts}), {format_size(free)} are free: "
        f"{helps} would make it fit"
    )


def why_none() -> str:
    """Say why ggml sees no GPU."""
    if not ggml.L.llama_supports_gpu_offload():
        return "this build of llama-cpp-python knows no GPU (docs/gpu.md says how to build it with CUDA)"
    return "the driver shows no GPU"


def _names() -> set[str]:
    return {gpu["name"] for gpu in ggml.gpus()}


class Watch:
    """Follows the memory of GPUs as their drivers tell it."""

    def __init__(self) -> None:
        self._free_before: dict[str, int] = {}
        self._outside: dict[str, int] = {}
        self._free_after: dict[str, int] = {}

    @staticmethod
    def reserve(name: str) -> int:
        """Return how many bytes of a device to leave to what is outside the slab; none of memory that is no GPU's."""
        return RESERVE if name in _names() else 0

    def before(self, name: str) -> None:
        """Note what is free before the first slab of a device is reserved."""
        if name in _names():
            self._free_before.setdefault(name, ggml.device_memory(name)[0])

    def after(self, slabs: dict[str, int]) -> dict[str, int | None]:
        """Measure what lies outside the slabs, once a model is warm; returns it as entries of ``Memory.outside``.

        The CUDA context itself stood before the first look at the device, so it is not part of the figure.
        """
        for name, before in self._free_before.items():
            free = ggml.device_memory(name)[0]
            self._outside[name] = max(self._outside.get(name, 0), before - free - slabs.get(name, 0))
            self._free_after[name] = free
        return {f"{name} scratch pools and workspaces": size for name, size in self._outside.items()}

    def look(self, arenas: dict[str, Snapshot]) -> tuple[tuple[DeviceStatus, ...], str]:
        """Return the state of every GPU, and what is wrong with one that a slab lies on."""
        found, trouble = [], ""
        for gpu in ggml.gpus():
            name = str(gpu["name"])
            found.append(DeviceStatus(
                name, gpu["description"], gpu["total_bytes"], gpu["free_bytes"], arenas.get(name),
                self._outside.get(name),
            ))
            if name in arenas and gpu["free_bytes"] < LEAST_FREE:
                others = self._free_after.get(name, 0) - gpu["free_bytes"] > LEAST_FREE // 4
                why = "another process takes its memory (see nvidia-smi)" if others else "give a smaller gpu_arena"
                trouble = f"{name} has only {format_size(gpu['free_bytes'])} free, and CUDA may need more: {why}"
        return tuple(found), trouble
