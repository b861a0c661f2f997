"""Counters of a model and status of a runtime, as frozen values that anyone may hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .arena import Plan, Snapshot
    from .backends.base import Memory, ModelInfo


@dataclass(slots=True)
class Counters:
    """What one model did so far.

    Seconds: ``decode_s`` inside the backend; ``python_s`` the engine's passes without it: messages, planning,
    sampling, text, handing over.  ``cached_tokens``: of prompts, known already; ``forced_tokens``: of answers, not
    sampled because a form left no choice; ``preempted``: how often a sequence gave its place to a more urgent one.
    """

    steps: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    requests: int = 0
    failed: int = 0
    decode_s: float = 0.0
    python_s: float = 0.0
    cached_tokens: int = 0
    forced_tokens: int = 0
    preempted: int = 0


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """What is remembered of sequences: KV cells in use, finished sequences kept, host memory for copies in bytes."""

    used_cells: int
    reserved_cells: int
    kept: int
    spilled: int
    host_bytes: int
    host_limit: int


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One loaded model: facts, plan, where its bytes are, what runs and waits now, and its counters (a copy).

    ``free_cells``: KV cells that a newcomer could have, those that hold nothing but remembered sequences included.
    """

    info: ModelInfo
    plan: Plan
    memory: Memory
    running: int
    waiting: int
    free_cells: int
    counters: Counters
    cache: CacheStatus


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """A GPU, as its driver tells it now.

    ``arena``: our slab there, None without one.  ``outside_bytes``: what CUDA and ggml took beside it, measured after
    the warm-up; None before.
    """

    name: str
    description: str
    total_bytes: int
    free_bytes: int
    arena: Snapshot | None
    outside_bytes: int | None


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """The engine's own process, where it has one.

    ``pid``: None while none runs.  ``rss_bytes``, ``threads``: of the process.  ``restarts``: how often it was
    replaced.
    ``unfinished`` requests take ``journal_bytes`` of ``journal_limit``.
    """

    pid: int | None
    rss_bytes: int
    threads: int
    restarts: int
    unfinished: int
    journal_bytes: int
    journal_limit: int


@dataclass(frozen=True, slots=True)
class Status:
    """A runtime at one moment.

    ``arena`` is None before the first model of an ``auto`` arena and in degraded mode.
    ``huge_pages``, ``locked``: how the kernel backs the arena; a locked one is never swapped out.
    ``devices``: the GPUs, used or not.  ``arenas``: the slabs outside the host's ordinary memory, by their place.
    ``engine``: the engine's process, None where it has none of its own.
    ``counted``: whether every allocation goes by the arena.
    ``allocations_after_seal`` counts refused allocations; None where they are not counted.
    """

    state: Literal["ready", "degraded"]
    reason: str
    arena: Snapshot | None
    huge_pages: bool
    locked: bool
    models: tuple[ModelStatus, ...]
    rss_bytes: int
    devices: tuple[DeviceStatus, ...] = ()
    arenas: Mapping[str, Snapshot] = field(default_factory=dict)
    counted: bool = True
    engine: EngineStatus | None = None

    @property
    def allocations_after_seal(self) -> int | None:
        """Allocations that were asked for, and refused, after the seal."""
        if not self.counted:
            return None
        arenas = [*([self.arena] if self.arena else []), *self.arenas.values()]
        return sum(arena.allocations_after_seal for arena in arenas)
