"""From a file to a backend: probe, plan, arena, load, warm up, seal.  One per Runtime; its engine's thread only.

Nothing is loaded before the plan is known to fit.  Where the layouts of ggml are not the expected ones, everything
works on stock allocation and says so: ``degraded``.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from .. import machine
from ..arena import Plan
from ..config import NULL_MODEL
from ..sizes import parse_size
from ..stats import Status
from . import ggml
from .base import Memory
from .llama import LlamaBackend
from .null import NullBackend
from .probe import Prober
from .slab import ALIGNMENT, OWNER, Slab

if TYPE_CHECKING:
    from ..config import ModelOptions
    from ..stats import ModelStatus
    from .base import Backend

WORK_BUFFER, PYTHON = "ggml work buffer", "Python and libraries"


class Loader:
    """Loads models into the process's arena.

    ``arena``: bytes as `parse_size` reads them; ``auto`` takes what the first model needs.  A size is reserved here,
    at once: ArenaTooSmall if this machine has not that much.
    """

    def __init__(self, arena: str | int = "auto") -> None:
        ggml.start()
        self.degraded = OWNER.check_layout()
        self._prober = Prober()
        self.slab: Slab | None = None
        self._size = parse_size(arena, machine.total_memory())
        if self._size is not None and not self.degraded:
            self.slab = OWNER.acquire(self._size)

    def plan(self, options: ModelOptions) -> Plan:
        """Return what loading would take, without loading; any thread may ask.

        Raises ModelNotFound, BadModel or UnsupportedModel.
        """
        return self._examine(options)[0]

    def _examine(self, options: ModelOptions) -> tuple[Plan, int]:
        threads = options.threads or machine.usable_cores()
        report = self._prober.examine(options, threads)
        outside: dict[str, int | None] = {**report.outside, WORK_BUFFER: None, PYTHON: None}
        return Plan(report.needs, ALIGNMENT, outside), threads

    def load(self, options: ModelOptions) -> Backend:
        """Return the loaded, warmed-up and sealed backend; on any error nothing of it is left.

        Raises ModelNotFound, BadModel, ArenaTooSmall or ArenaBusy.
        """
        if options.path == NULL_MODEL:
            return NullBackend(options)
        plan, threads = self._examine(options)
        if self.degraded:
            plan.check(machine.available_memory(), "this machine")
            return self._build(options, plan, threads)
        slab = self._slab_for(plan)
        slab.check(plan)
        return self._build(options, plan, threads)

    def _slab_for(self, plan: Plan) -> Slab:
        """Return the slab; an ``auto`` one is made for the plan, and made anew if it is too small and stands empty."""
        slab = self.slab
        if slab is not None and self._size is None and slab.size < plan.size and slab.alone_and_empty():
            self.slab = None
            OWNER.release(slab)
        if self.slab is None:
            self.slab = OWNER.acquire(plan.size)
        return self.slab

    def _build(self, options: ModelOptions, plan: Plan, threads: int) -> LlamaBackend:
        backend = None
        tenant = self.slab.new_tenant(options.name) if self.slab is not None else ""
        try:
            with self._permit(tenant):
                backend = LlamaBackend(options, plan, Memory(self.degraded, dict(plan.outside)), threads)
                backend.warm_up()
        except BaseException:
            if backend is not None:
                backend.close()
            raise
        if self.slab is not None:
            self.slab.classify(tenant, backend.output_bytes)
        return backend

    def _permit(self, tenant: str) -> AbstractContextManager[None]:
        return self.slab.loading(tenant) if self.slab is not None else nullcontext()

    def close(self) -> None:
        """End the helper process and give the arena back; the models must be closed before."""
        self._prober.close()
        slab, self.slab = self.slab, None
        if slab is not None:
            OWNER.release(slab)

    def status(self, models: tuple[ModelStatus, ...]) -> Status:
        """Return the state of the memory, with the models' own states in it."""
        slab = self.slab
        return Status(
            "degraded" if self.degraded else "ready", self.degraded, slab.snapshot() if slab else None,
            slab.huge_pages if slab else False,
            slab.locked if slab else False, models, machine.resident_memory(),
        )
