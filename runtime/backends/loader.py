"""From a file to a backend: probe, place, plan, arena, load, warm up, seal.  One per Runtime; its engine's thread only.

Nothing is loaded before the plan is known to fit.  Where the layouts of ggml are not the expected ones, everything
works on stock allocation and says so: ``degraded``.  Where only libllama's accounts can not be read, there is no plan:
an arena of a given size is used as far as it goes, ``auto`` has no size to take and is degraded.

A plan has a part for each memory: the host's, each GPU's, pinned memory.  Each part gets a slab of its own.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from .. import machine
from ..arena import HOST, WEIGHTS, Need, Plan
from ..config import NULL_MODEL
from ..errors import MACHINE
from ..sizes import parse_size
from ..stats import Status
from . import ggml, gpu
from .base import Memory
from .llama import LlamaBackend
from .null import NullBackend
from .places import ALIGNMENT, check_device, room
from .probe import Prober
from .slab import OWNER, Slab

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
    at once: ArenaTooSmall if this machine has not that much.  ``gpu_arena``: the same, of each GPU.
    """

    def __init__(self, arena: str | int = "auto", gpu_arena: str | int = "auto") -> None:
        ggml.start()
        self.degraded = self._misfit = OWNER.check_layout()
        self._prober = Prober(accounts=not self._misfit)
        self._slabs: dict[str, Slab] = {}
        self._sizes = {HOST: parse_size(arena, machine.total_memory())}
        self._watch = gpu.Watch()
        self._strange: dict[str, str] = {}  # devices whose buffers are not as expected: stock allocation there
        for device in ggml.gpus():
            self._sizes[device["name"]] = parse_size(gpu_arena, device["total_bytes"])
        try:
            for place, size in self._sizes.items():
                if size is not None and not self._misfit and not self._is_strange(place):
                    if place != HOST and OWNER.current(place) is None:
                        gpu.check_room(place, size)
                    self._watch.before(place)
                    self._slabs[place] = OWNER.acquire(size, place)
        except BaseException:
            self.close()
            raise

    def plan(self, options: ModelOptions) -> Plan:
        """Return what loading would take, without loading; without needs if that is not known.  Any thread may ask.

        Raises ModelNotFound, BadModel, UnsupportedModel or NoGPU.
        """
        return _plan(self._place(options)[1])

    def settle(self, options: ModelOptions) -> ModelOptions:
        """Return the options as `load` would use them: layers, GPUs and batch decided.  Raises as `plan` does."""
        return self._place(options)[0]

    def load(self, options: ModelOptions) -> Backend:
        """Return the loaded, warmed-up and sealed backend; on any error nothing of it is left.

        Raises ModelNotFound, BadModel, NoGPU, ArenaTooSmall or ArenaBusy.
        """
        if options.path == NULL_MODEL:
            return NullBackend(options)
        options, report, note = self._place(options)
        plan = _plan(report)
        try:
            slabs = {} if self._misfit else self._slabs_for(plan)
            for place, slab in slabs.items():
                slab.check(plan.at(place))
            if not slabs and options.weights == "arena":
                least = Plan((Need(options.name, WEIGHTS, report.info.file_bytes),), ALIGNMENT)
                least.check(machine.available_memory(), MACHINE)
            return self._build(options, plan, slabs, note)
        except BaseException:
            self._give_back()
            raise

    def _give_back(self) -> None:
        """Release ``auto`` slabs that a failed load leaves empty."""
        for place, slab in list(self._slabs.items()):
            if self._sizes.get(place) is None and slab.alone_and_empty():
                OWNER.release(self._slabs.pop(place))

    def _place(self, options: ModelOptions) -> tuple[ModelOptions, Report, str]:
        """Decide how many layers lie on which GPUs; returns settled options, their report, and why there is no GPU."""

        def examine(settled: ModelOptions) -> Report:
            return self._prober.examine(settled, _threads(settled))

        return gpu.place(options, examine, self._room_for, _plan)

    def _room_for(self, place: str) -> int:
        """Return how many bytes a part of a plan may take of a memory now."""
        slab = self._slabs.get(place) or OWNER.current(place)
        if slab is not None and not (self._sizes.get(place) is None and slab.alone_and_empty()):
            return slab.snapshot().largest_free
        return (slab.size if slab is not None else 0) + room(place) - self._watch.reserve(place)

    def _slabs_for(self, plan: Plan) -> dict[str, Slab]:
        """Return the slab of each memory that the plan takes bytes of; without a plan, the host's if there is one.

        An ``auto`` slab is made for the plan, and made anew if it is too small and stands empty.  Where there is no
        plan to make it for, another Runtime's is shared; degraded, if there is none.
        """
        found = {}
        for place in plan.places or (HOST,):
            if self._is_strange(place):
                self.degraded = self._strange[place]
            elif (slab := self._slab_for(place, plan.at(place))) is not None:
                found[place] = slab
        if not found and not self.degraded:
            self.degraded = UNREADABLE
        return found

    def _is_strange(self, place: str) -> bool:
        """Tell whether pieces of a GPU's memory do not work; looked at once, before its first slab."""
        if place == HOST or place not in self._sizes or OWNER.current(place) is not None:
            return False
        if place not in self._strange:
            self._strange[place] = check_device(place)
        return bool(self._strange[place])

    def _slab_for(self, place: str, part: Plan) -> Slab | None:
        slab, auto = self._slabs.get(place), self._sizes.get(place) is None
        if slab is not None and auto and slab.size < part.size and slab.alone_and_empty():
            OWNER.release(self._slabs.pop(place))
        if place not in self._slabs:
            if (shared := OWNER.join(place)) is not None:
                self._slabs[place] = shared
            elif part.needs:
                part.check(room(place), MACHINE if place == HOST else place)
                self._watch.before(place)
                self._slabs[place] = OWNER.acquire(part.size, place)
        return self._slabs.get(place)

    def _build(self, options: ModelOptions, plan: Plan, slabs: dict[str, Slab], note: str) -> LlamaBackend:
        backend = None
        memory = Memory(self.degraded, dict(plan.outside), note)
        try:
            with ExitStack() as stack:
                tenants = {place: stack.enter_context(slab.loading(options.name)) for place, slab in slabs.items()}
                backend = LlamaBackend(options, plan, memory, _threads(options))
                backend.warm_up()
        except BaseException:
            if backend is not None:
                backend.close()
            raise
        for place, tenant in tenants.items():
            slabs[place].classify(tenant, backend.output_bytes)
        memory.outside.update(self._watch.after({place: slab.size for place, slab in self._slabs.items()}))
        return backend

    def close(self) -> None:
        """End the helper process and give the arena back; the models must be closed before."""
        self._prober.close()
        slabs, self._slabs = self._slabs, {}
        for slab in slabs.values():
            OWNER.release(slab)

    def status(self, models: tuple[ModelStatus, ...]) -> Status:
        """Return the state of the memory, with the models' own states in it."""
        slab = self._slabs.get(HOST)
        arenas = {place: each.snapshot() for place, each in self._slabs.items()}
        devices, trouble = self._watch.look(arenas)
        reason = self.degraded or trouble
        return Status(
            "degraded" if reason else "ready", reason, arenas.get(HOST), slab.huge_pages if slab else False,
            slab.locked if slab else False, models, machine.resident_memory(), devices,
            {place: each for place, each in arenas.items() if place != HOST}, not self.degraded,
        )


def _threads(options: ModelOptions) -> int:
    return options.threads or machine.usable_cores()


def _plan(report: Report) -> Plan:
    unplanned = {} if report.needs else {UNPLANNED: None}
    outside: dict[str, int | None] = {**report.outside, **unplanned, WORK_BUFFER: None, PYTHON: None}
    return Plan(report.needs, ALIGNMENT, outside)
