"""The arena beneath ggml: one fixed slab under every tensor buffer, without a fork and without C.

ggml allocates weights, KV cache, compute scratch, repacked weights and output vectors through one door: the buffer
type's ``alloc_buffer`` function pointer, writable memory reached by public API.  A callback put there leases a span
from the `Arena` and builds a ggml buffer object over it::

    ggml --alloc_buffer(size)--> Slab._alloc --> Arena.lease --> ggml_backend_buffer_init(table, context = address)
    ggml --free_buffer(buffer)-> Slab._free  --> Arena.release

The context makes every native function (base, clear, set, get, copy) work on the span as it stands, so that only
``free_buffer`` is ours (`places`): ggml asks for the base three times per tensor whenever a graph is laid out, and a
Python callback there would cost milliseconds.

Buffer types are process-wide, hence one slab per memory and process.  Runtimes share it: `acquire` and `release` count
them, the last one restores ggml's own pointer.  An allocation is let through only if its thread is inside `loading`;
any other finds the arena sealed, is refused (ggml sees an out of memory) and counted.
"""

from __future__ import annotations

import ctypes as C  # noqa: N812 - as in the ggml module
import itertools
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..arena import HOST, KV, OUTPUTS, SCRATCH, WEIGHTS, Arena, Plan, Snapshot, Span, aligned
from ..errors import ArenaBusy, ArenaTooSmall, Error, MemoryPlanError
from . import ggml, places
from .places import ALIGNMENT

if TYPE_CHECKING:
    from collections.abc import Iterator

UNCLASSIFIED = "loading"


@dataclass(slots=True)
class _Loading:
    """What a thread is loading at the moment; set by `Slab.loading`, read in the allocation callback."""

    tenant: str
    refused: MemoryPlanError | None = None


class Slab:
    """One slab of ``size`` bytes, installed beneath the buffer type of a memory (``place``) until `close`.

    Any thread may allocate through ggml, so a lock guards the arithmetic; nothing else happens under it.
    """

    def __init__(self, size: int, place: str = HOST) -> None:
        self.place = place
        self._memory = places.memory(place, aligned(size, ALIGNMENT))
        self._arena = Arena(aligned(size, ALIGNMENT), alignment=ALIGNMENT)
        self._lock = threading.Lock()
        self._spans: dict[int, Span] = {}  # address of ggml's buffer object -> its span
        self._loading: dict[int, _Loading] = {}  # thread -> what it loads
        self._type = ggml.BufferType.from_address(ggml.buffer_type(place))
        self._original = self._type.iface.alloc_buffer
        self._stock = C.cast(self._original, ggml.ALLOC)
        self._table = self._memory.table()
        self._callbacks = ggml.ALLOC(self._alloc), ggml.FREE(self._free)  # referenced: C holds their addresses
        self._table.free_buffer = C.cast(self._callbacks[1], ggml.PTR).value
        self._type.iface.alloc_buffer = C.cast(self._callbacks[0], ggml.PTR).value
        self.users = 0

    @property
    def size(self) -> int:
        """Bytes of the arena."""
        return self._arena.size

    @property
    def huge_pages(self) -> bool:
        """Whether the kernel was willing to back the slab with huge pages."""
        return self._memory.huge_pages

    @property
    def locked(self) -> bool:
        """Whether the slab can not be swapped out; without the right to lock that much memory it can."""
        return bool(self._memory.locked)

    def snapshot(self) -> Snapshot:
        """Audit the arena and return its state; callable from any thread."""
        with self._lock:
            return self._arena.audit()

    def check(self, plan: Plan) -> None:
        """Raise ArenaTooSmall, or ArenaBusy if others hold the bytes, unless the plan fits now."""
        with self._lock:
            if self._arena.fits(plan):
                return
            shared, free = self.users > 1, self._arena.free
        if shared:
            raise ArenaBusy(
                f"another Runtime of this process owns the arena of {self.size:,} bytes, {free:,} of them free; this "
                f"model needs {plan.size:,}: close the other one, or start the first with a larger arena"
            )
        plan.check(free)
        raise ArenaTooSmall(plan.size, free, plan.by_kind(), "the arena, in pieces too small,")

    @contextmanager
    def loading(self, name: str) -> Iterator[str]:
        """Let the calling thread allocate while inside; sealed again when it leaves.

        Gives the tenant that the bytes are for: ``name``, or with a number behind it where another Runtime's model
        goes by that name, or is about to.  On leaving raises what an allocation was refused for, whatever the library
        made of it.  What was allocated before stays leased until ggml frees it.
        """
        with self._lock:
            tenant = self._new_tenant(name)
            state = self._loading[threading.get_ident()] = _Loading(tenant)
            self._arena.open(tenant)
        try:
            yield tenant
        except Error as error:  # what the library made of it
            raise state.refused or error from None
        finally:
            with self._lock:
                del self._loading[threading.get_ident()]
                self._arena.seal(tenant)
        if state.refused:
            raise state.refused

    def _new_tenant(self, name: str) -> str:
        taken = {span.tenant for span in self._spans.values()} | {state.tenant for state in self._loading.values()}
        names = itertools.chain([name], (f"{name}#{number}" for number in itertools.count(2)))
        return next(tenant for tenant in names if tenant not in taken)

    def alone_and_empty(self) -> bool:
        """Tell whether the slab has one user and no lease."""
        with self._lock:
            return self.users == 1 and not self._spans

    def classify(self, tenant: str, output_bytes: int) -> None:
        """Name the tenant's spans by what ggml uses them for, once its context stands.

        ggml marks weights and scratch itself; of the others the output vectors are the first of their size, since
        libllama makes room for them before the KV cache, which may be as large.
        """
        marked = {ggml.USAGE_WEIGHTS: WEIGHTS, ggml.USAGE_COMPUTE: SCRATCH}
        with self._lock:
            seen = False
            for address, span in self._spans.items():  # in the order of allocation
                if span.tenant == tenant:
                    buffer = ggml.Buffer.from_address(address)
                    kind = marked.get(buffer.usage)
                    if kind is None:
                        kind = OUTPUTS if not seen and buffer.size == output_bytes else KV
                        seen |= kind == OUTPUTS
                    self._spans[address] = self._arena.rename(span, kind)

    def close(self) -> None:
        """Put ggml's own allocator back and return the memory.  Raises MemoryPlanError while spans are leased."""
        with self._lock:
            if self._spans:
                raise MemoryPlanError(f"the arena still holds {len(self._spans)} buffers: free the models first")
            self._type.iface.alloc_buffer = self._original
        self._memory.close()

    # Called by ggml.  An exception must not cross into C: NULL means out of memory there.

    def _alloc(self, buffer_type: int, size: int) -> int | None:
        if size == 0:  # a dummy buffer; ggml's own allocator makes it without memory
            return self._stock(buffer_type, size)  # type: ignore[no-any-return]
        with self._lock:
            state = self._loading.get(threading.get_ident())
            try:
                span = self._arena.lease(state.tenant if state else "", UNCLASSIFIED, size)
            except MemoryPlanError as error:
                if state:
                    state.refused = error
                return None
            address = self._memory.address + span.offset
            context = self._memory.context(address)
            buffer = ggml.lib.ggml_backend_buffer_init(buffer_type, self._table, context, size)
            self._spans[buffer] = span
        return int(buffer)

    def _free(self, buffer: int) -> None:
        with self._lock:
            self._memory.forget(ggml.Buffer.from_address(buffer).context)
            self._arena.release(self._spans.pop(buffer))


class _Owner:
    """Who holds the process's slabs, one per memory.  ggml's pointers are process-wide; so, of necessity, is this."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slabs: dict[str, Slab] = {}

    def check_layout(self) -> str:
        """Return what does not fit, see `ggml.check_layout`; an installed slab has passed already."""
        with self._lock:
            return "" if HOST in self._slabs else ggml.check_layout()

    def acquire(self, size: int, place: str = HOST) -> Slab:
        """Return the process's slab in a memory, made with ``size`` bytes if there is none; counts one more user."""
        with self._lock:
            if place not in self._slabs:
                self._slabs[place] = Slab(size, place)
            self._slabs[place].users += 1
            return self._slabs[place]

    def join(self, place: str = HOST) -> Slab | None:
        """Return the slab that somebody holds there, if any, and count one more user."""
        with self._lock:
            if slab := self._slabs.get(place):
                slab.users += 1
            return slab

    def current(self, place: str = HOST) -> Slab | None:
        """Return the slab that somebody holds there, if any."""
        return self._slabs.get(place)

    def release(self, slab: Slab) -> None:
        """Count one user less; the last one out restores ggml's allocator and returns the memory.

        While buffers are still alive in it the slab stays, for the next one to acquire, and MemoryPlanError says so.
        """
        with self._lock:
            slab.users -= 1
            if slab.users == 0:
                slab.close()
                del self._slabs[slab.place]


OWNER = _Owner()
