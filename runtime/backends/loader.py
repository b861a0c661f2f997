"""From a file to a backend: probe, plan, arena, load, warm up, seal.  One per Runtime; its engine's thread only.

Nothing is loaded before the plan is known to fit.  Where the layouts of ggml are not the expected ones, everything
works on stock allocation and says so: ``degraded``.  Where only libllama's accounts can not be read, there is no plan:
an arena of a given size is used as far as it goes, ``auto`` has no size to take and is degraded.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from .. import machine
from ..arena import WEIGHTS, Need, Plan
from ..config import NULL_MODEL
from ..errors import MACHINE
from ..sizes import parse_size
from ..stats import Status
from . import ggml
from .base import Memory
from .llama import LlamaBackend
from .null import NullBackend
from .probe import Prober
from .slab import ALIGNMENT, OWNER, Slab, room

if TYPE_CHECKING:
    from ..config import ModelOptions
    from ..stats import ModelStatus
    from .base import Backend
    from .probe import Report

WORK_BUFFER, PYTHON, UNPLANNED = "ggml work buffer", "Python and libraries", "buffers of unknown size"
UNREADABLE = "libllama's accounts can not be read, so that nothing can be planned"


class Loader:
    """Loads models into the process's arena.

    ``arena``: bytes as `parse_size` reads them; ``auto`` takes what the first model needs.  A size is reserved here,
    at once: ArenaTooSmall if this machine has not that much.
    """

    def __init__(self, arena: str | int = "auto") -> None:
        ggml.start()
        self.degraded = self._misfit = OWNER.check_layout()
        self._prober = Prober(accounts=not self._misfit)
        self.slab: Slab | None = None
        self._size = parse_size(arena, machine.total_memory())
        if self._size is not None and not self._misfit:
            self.slab = OWNER.acquire(self._size)

    def plan(self, options: ModelOptions) -> Plan:
        """Return what loading would take, without loading; without needs if that is not known.  Any thread may ask.

        Raises ModelNotFound, BadModel or UnsupportedModel.
        """
        return _plan(self._prober.examine(options, _threads(options)))

    def load(self, options: ModelOptions) -> Backend:
        """Return the loaded, warmed-up and sealed backend; on any error nothing of it is left.

        Raises ModelNotFound, BadModel, ArenaTooSmall or ArenaBusy.
        """
        if options.path == NULL_MODEL:
            return NullBackend(options)
        report = self._prober.examine(options, _threads(options))
        plan = _plan(report)
        slab = None if self._misfit else self._slab_for(plan)
        if slab is not None:
            slab.check(plan)
        elif options.weights == "arena":
            least = Plan((Need(options.name, WEIGHTS, report.info.file_bytes),), ALIGNMENT)
            least.check(machine.available_memory(), MACHINE)
        return self._build(options, plan)

    def _slab_for(self, plan: Plan) -> Slab | None:
        """Return the slab; an ``auto`` one is made for the plan, and made anew if it is too small and stands empty.

        Where there is no plan to make it for, another Runtime's is shared; None, and degraded, if there is none.
        """
        slab = self.slab
        if slab is not None and self._size is None and slab.size < plan.size and slab.alone_and_empty():
            self.slab = None
            OWNER.release(slab)
        if self.slab is None:
            self.slab = OWNER.join()
        if self.slab is None and plan.needs:
            plan.check(room(), MACHINE)
            self.slab = OWNER.acquire(plan.size)
        if self.slab is None:
            self.degraded = UNREADABLE
        return self.slab

    def _build(self, options: ModelOptions, plan: Plan) -> LlamaBackend:
        backend = None
        try:
            with self._permit(options.name) as tenant:
                backend = LlamaBackend(options, plan, Memory(self.degraded, dict(plan.outside)), _threads(options))
                backend.warm_up()
        except BaseException:
            if backend is not None:
                backend.close()
            raise
        if self.slab is not None:
            self.slab.classify(tenant, backend.output_bytes)
        return backend

    def _permit(self, name: str) -> AbstractContextManager[str]:
        return self.slab.loading(name) if self.slab is not None else nullcontext(name)

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


def _threads(options: ModelOptions) -> int:
    return options.threads or machine.usable_cores()


def _plan(report: Report) -> Plan:
    unplanned = {} if report.needs else {UNPLANNED: None}
    outside: dict[str, int | None] = {**report.outside, **unplanned, WORK_BUFFER: None, PYTHON: None}
    return Plan(report.needs, ALIGNMENT, outside)
