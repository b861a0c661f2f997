"""The arena's arithmetic: who holds which bytes of one fixed slab.  No memory is touched here.

One slab is cut into regions once; spans are leased inside a region, first fit, and given back::

    offset 0                                                                    size
    |<------------------ resident ------------------>|<-------- overlay -------->|
    | weights a | kv a | scratch a |  free   | kv b  |  weights that take turns  |
      span        span   span        gap       span

A *tenant* is who the bytes are for (a loaded model).  A tenant may lease while it is *open*, that is while it loads
and warms up; sealing it ends that.  A lease asked for later is refused and counted: while serving, nothing allocates.

Invariants, checked by `Arena.audit` and property tests: spans lie inside their region and never overlap;
free + leased = size; what was released can be leased again.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from .errors import ArenaTooSmall, ConfigError, EngineFailed, MemoryPlanError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

RESIDENT, OVERLAY = "resident", "overlay"
HOST = "CPU"  # the place of what lies in the host's memory; the others are ggml's names: CUDA0, CUDA_Host (pinned)
WEIGHTS, KV, SCRATCH, OUTPUTS = "weights", "kv", "scratch", "outputs"
STAGING = "staging"  # needed while weights go to a GPU, free afterwards
KINDS = (WEIGHTS, KV, SCRATCH, OUTPUTS, STAGING)


def aligned(size: int, alignment: int) -> int:
    """Round ``size`` up to a multiple of ``alignment`` (a power of two)."""
    return (size + alignment - 1) & -alignment


class SealBroken(MemoryPlanError):
    """An allocation after the seal.  It was refused and counted."""

    code = "seal_broken"


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Bytes ``[offset, offset + size)`` of the slab, leased to ``tenant`` for ``kind``."""

    offset: int
    size: int
    tenant: str = field(compare=False)
    kind: str = field(compare=False)

    @property
    def end(self) -> int:
        """First byte behind the span."""
        return self.offset + self.size


@dataclass(frozen=True, slots=True)
class Region:
    """Bytes ``[offset, offset + size)`` of the slab, set aside for one use."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Need:
    """``size`` bytes that a tenant will ask for in one piece, in the memory ``place``."""

    tenant: str
    kind: str
    size: int
    place: str = HOST


@dataclass(frozen=True, slots=True)
class Plan:
    """What is going to be leased, known before anything is loaded.

    ``outside`` names bytes that will live elsewhere: memory-mapped weights, buffers of the library.
    """

    needs: tuple[Need, ...]
    alignment: int
    outside: Mapping[str, int | None] = field(default_factory=dict)

    @property
    def places(self) -> tuple[str, ...]:
        """The memories that it takes bytes of, the host's first."""
        found = dict.fromkeys(need.place for need in self.needs)
        return tuple(sorted(found, key=lambda place: place != HOST))

    def at(self, place: str) -> Plan:
        """Return the part of the plan that one memory has to hold."""
        return replace(self, needs=tuple(need for need in self.needs if need.place == place))

    @property
    def size(self) -> int:
        """Bytes of arena that the plan takes, alignment included, of all memories together."""
        return sum(aligned(need.size, self.alignment) for need in self.needs)

    def by_kind(self) -> dict[str, int]:
        """Bytes by kind, for messages and tables."""
        total: dict[str, int] = {}
        for need in self.needs:
            total[need.kind] = total.get(need.kind, 0) + aligned(need.size, self.alignment)
        return total

    def check(self, available: int, where: str = "the arena") -> None:
        """Raise ArenaTooSmall, with the numbers, if the plan does not fit into ``available`` bytes."""
        if self.size > available:
            raise ArenaTooSmall(self.size, available, self.by_kind(), where)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The arena at one moment, frozen: for tables, status and tests.

    ``allocations_after_seal`` counts leases that were asked for, and refused, after the tenant's seal.
    """

    size: int
    leased: int
    free: int
    largest_free: int
    spans: tuple[Span, ...]
    regions: tuple[Region, ...]
    open: frozenset[str]
    allocations_after_seal: int


class Arena:
    """Leases spans of a slab of ``size`` bytes.  Not thread-safe: its owner serialises."""

    def __init__(self, size: int, *, alignment: int = 4096, overlay: int = 0) -> None:
        if alignment <= 0 or alignment & (alignment - 1):
            raise ConfigError(f"alignment {alignment} is not a power of two")
        size, overlay = size & -alignment, aligned(overlay, alignment)
        if not 0 <= overlay <= size:
            raise ConfigError(f"an overlay region of {overlay:,} bytes does not fit into an arena of {size:,}")
        self.size, self.alignment = size, alignment
        self.regions = {RESIDENT: Region(RESIDENT, 0, size - overlay)}
        if overlay:
            self.regions[OVERLAY] = Region(OVERLAY, size - overlay, overlay)
        self._spans: list[Span] = []  # sorted by offset
        self._leased = 0  # kept apart from the spans, so that the audit compares two accounts
        self._open: set[str] = set()
        self.allocations_after_seal = 0

    def open(self, tenant: str) -> None:
        """Let ``tenant`` lease from now on."""
        self._open.add(tenant)

    def seal(self, tenant: str) -> None:
        """End the time in which ``tenant`` may lease.  Sealing twice changes nothing."""
        self._open.discard(tenant)

    def lease(self, tenant: str, kind: str, size: int, region: str = RESIDENT) -> Span:
        """Lease ``size`` bytes (rounded up to the alignment) at the first gap that holds them.

        Raises SealBroken (and counts it) if the tenant is not open, ArenaTooSmall if no gap is large enough;
        neither changes what is leased.
        """
        if size <= 0:
            raise MemoryPlanError(f"{tenant} asks for {size} bytes: a span has at least one")
        if tenant not in self._open:
            self.allocations_after_seal += 1
            raise SealBroken(f"{tenant or 'somebody'} asks for {size:,} bytes after the seal")
        need = aligned(size, self.alignment)
        offset = self._first_gap(need, self.regions[region])
        if offset is None:
            raise ArenaTooSmall(need, self._largest_gap(), {kind: need}, f"the {region} region, in one piece,")
        span = Span(offset, need, tenant, kind)
        insort(self._spans, span)
        self._leased += need
        return span

    def release(self, span: Span) -> None:
        """Give a span back.  Raises MemoryPlanError if it is not leased (or was given back before)."""
        try:
            self._spans.remove(span)
        except ValueError:
            raise MemoryPlanError(f"span at {span.offset:,} is not leased") from None
        self._leased -= span.size

    def rename(self, span: Span, kind: str) -> Span:
        """Change what a leased span is for; returns the span that stands for it from now on."""
        renamed = Span(span.offset, span.size, span.tenant, kind)
        self._spans[self._spans.index(span)] = renamed
        return renamed

    @property
    def free(self) -> int:
        """Bytes not leased, over all regions and gaps."""
        return self.size - self._leased

    def fits(self, plan: Plan) -> bool:
        """Tell whether each need of the plan finds its gap, in the order given.  Changes nothing."""
        trial = Arena(self.size, alignment=self.alignment)
        trial.regions, trial._spans, trial._leased = self.regions, list(self._spans), self._leased
        for need in plan.needs:
            trial.open(need.tenant)
            try:
                trial.lease(need.tenant, need.kind, need.size)
            except ArenaTooSmall:
                return False
        return True

    def audit(self) -> Snapshot:
        """Check the invariants and return what is true now.

        Raises EngineFailed if spans overlap, leave their region, or the two accounts disagree: a bug of ours.
        """
        free = 0
        for region in self.regions.values():
            end = region.offset
            for span in self._inside(region):
                if span.offset < end or span.end > region.offset + region.size:
                    raise EngineFailed(f"arena audit: {span} overlaps its neighbour or leaves region {region.name}")
                free += span.offset - end
                end = span.end
            free += region.offset + region.size - end
        if free + self._leased != self.size:
            raise EngineFailed(f"arena audit: free {free} + leased {self._leased} is not {self.size}")
        return Snapshot(
            self.size, self._leased, free, self._largest_gap(), tuple(self._spans), tuple(self.regions.values()),
            frozenset(self._open), self.allocations_after_seal,
        )

    def _inside(self, region: Region) -> Iterable[Span]:
        return (span for span in self._spans if region.offset <= span.offset < region.offset + region.size)

    def _gaps(self, region: Region) -> Iterable[tuple[int, int]]:
        at = region.offset
        for span in self._inside(region):
            if span.offset > at:
                yield at, span.offset - at
            at = span.end
        if region.offset + region.size > at:
            yield at, region.offset + region.size - at

    def _first_gap(self, size: int, region: Region) -> int | None:
        return next((offset for offset, length in self._gaps(region) if length >= size), None)

    def _largest_gap(self) -> int:
        return max((length for region in self.regions.values() for _, length in self._gaps(region)), default=0)
