"""The memories that a slab may lie in, and what a piece of each looks like to ggml.

A ggml buffer is a table of functions and a context that they read.  A *piece* is a buffer object of ours over a span of
the slab: the memory's own table, with only ``free_buffer`` replaced, and a context that makes the native functions work
on the span as it stands, so that nothing of Python is called while graphs are laid out and computed:

===========  ==================================  ===========================================================
place        the slab                            context of a piece
===========  ==================================  ===========================================================
``CPU``      anonymous memory, huge pages        the span's address: ggml's CPU buffers have no other
``CUDA_Host``  one pinned buffer of CUDA's       the same
``CUDA0``    one buffer of that device           a copy of the buffer's own context with another data pointer
===========  ==================================  ===========================================================

CUDA recognises its own buffers by their ``free_buffer``, so it would not copy between ours.  `DevicePieces` hands such
copies to CUDA's own function with a stand-in for the source that wears the original table.
"""

from __future__ import annotations

import ctypes as C  # noqa: N812 - as in the ggml module
import mmap
from typing import Protocol

from .. import machine
from ..arena import HOST, aligned
from ..errors import MACHINE, ArenaTooSmall
from . import ggml

HUGE_PAGE = 2 << 20
ALIGNMENT = 4096
_MADV_POPULATE_WRITE = 23  # Linux 5.14; Python's mmap has no name for it


class Memory(Protocol):
    """The bytes of a slab.  ``address``: where they begin; it may be one that only a GPU can read."""

    address: int
    huge_pages: bool
    locked: bool

    def table(self) -> ggml.BufferInterface:
        """Return the functions of a piece; ``free_buffer`` is the caller's to set."""

    def context(self, address: int) -> int:
        """Return the context of a piece that begins at an address of the slab."""

    def forget(self, context: int) -> None:
        """Let go of a piece's context."""

    def close(self) -> None:
        """Give the bytes back; no piece may be left."""


def room(place: str = HOST) -> int:
    """Bytes of the largest slab that this memory has room for now."""
    if place == HOST or place not in {gpu["name"] for gpu in ggml.gpus()}:  # pinned memory is the host's
        return max(0, machine.available_memory() - HUGE_PAGE)
    return max(0, ggml.device_memory(place)[0] - ALIGNMENT)


def memory(place: str, size: int) -> Memory:
    """Reserve ``size`` bytes of a memory.  Raises ArenaTooSmall, with the numbers, if it has not that much."""
    available = room(place)
    where = MACHINE if place == HOST else place
    if size > available:
        raise ArenaTooSmall(size, available, {"arena": size}, where)
    if place == HOST:
        return HostMemory(size)
    whole = _Whole(place, size)
    return DeviceMemory(whole) if place in {gpu["name"] for gpu in ggml.gpus()} else PinnedMemory(whole)


class HostMemory:
    """Anonymous memory, huge pages where the kernel gives them, every page present before it is used."""

    def __init__(self, size: int) -> None:
        length = size + HUGE_PAGE
        try:
            self._map = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError:
            raise ArenaTooSmall(size, room(), {"arena": size}, MACHINE) from None
        self._window = (C.c_char * length).from_buffer(self._map)
        self.address = aligned(C.addressof(self._window), HUGE_PAGE)
        try:
            self._map.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            self.huge_pages = False
        else:
            self.huge_pages = True
        try:
            self._map.madvise(_MADV_POPULATE_WRITE)
        except OSError:
            C.memset(self.address, 0, size)
        self.locked = C.CDLL(None).mlock(C.c_void_p(self.address), C.c_size_t(size)) == 0  # as far as the limit allows

    def table(self) -> ggml.BufferInterface:
        """Return the functions of ggml's CPU buffers, taken from a small real one."""
        return _table(ggml.cpu_buffer_type())

    def context(self, address: int) -> int:
        """Return the address: a CPU buffer's context is its data pointer."""
        return address

    def forget(self, context: int) -> None:
        """Do nothing: the context is no object."""

    def close(self) -> None:
        """Unmap the memory."""
        del self._window
        self._map.close()


class _Whole:
    """One real buffer that holds a slab; ggml's own allocator made it, before any hook was installed."""

    def __init__(self, place: str, size: int) -> None:
        kind = ggml.buffer_type(place)
        allocate = C.cast(ggml.BufferType.from_address(kind).iface.alloc_buffer, ggml.ALLOC)
        address = allocate(kind, size + ALIGNMENT)
        if not address:
            raise ArenaTooSmall(size, room(place), {"arena": size}, place)
        self.buffer_address = int(address)
        self.buffer = ggml.Buffer.from_address(self.buffer_address)
        self.address = aligned(int(ggml.lib.ggml_backend_buffer_get_base(address)), ALIGNMENT)

    def close(self) -> None:
        ggml.lib.ggml_backend_buffer_free(self.buffer_address)


class PinnedMemory:
    """Host memory that a GPU reads and writes by itself."""

    huge_pages, locked = False, True

    def __init__(self, whole: _Whole) -> None:
        self._whole = whole
        self.address = whole.address

    def table(self) -> ggml.BufferInterface:
        """Return the whole buffer's functions."""
        return ggml.BufferInterface.from_buffer_copy(self._whole.buffer.iface)

    def context(self, address: int) -> int:
        """Return the address: pinned buffers are CPU buffers but for their end."""
        return address

    def forget(self, context: int) -> None:
        """Do nothing: the context is no object."""

    def close(self) -> None:
        """Give the whole buffer back."""
        self._whole.close()


class DeviceMemory:
    """The memory of a GPU."""

    huge_pages, locked = False, True

    def __init__(self, whole: _Whole) -> None:
        self._whole = whole
        self.address = whole.address
        self._original = ggml.BufferInterface.from_buffer_copy(whole.buffer.iface)
        self._copy = C.cast(self._original.cpy_tensor, ggml.COPY) if self._original.cpy_tensor else None
        self._contexts: dict[int, ggml.DeviceContext] = {}  # by address; they live as long as their pieces
        self._callback = ggml.COPY(self._copy_tensor)
        self.copies = 0

    def table(self) -> ggml.BufferInterface:
        """Return the device's functions, with a ``cpy_tensor`` that knows pieces as its own."""
        table = ggml.BufferInterface.from_buffer_copy(self._original)
        if self._copy is not None:
            table.cpy_tensor = C.cast(self._callback, ggml.PTR).value
        return table

    def context(self, address: int) -> int:
        """Return a copy of the device's context whose data begins at ``address``."""
        context = ggml.DeviceContext.from_buffer_copy(C.string_at(self._whole.buffer.context, _CONTEXT_HEAD).ljust(
            C.sizeof(ggml.DeviceContext), b"\0"
        ))
        context.address = address
        found = C.addressof(context)
        self._contexts[found] = context
        return found

    def forget(self, context: int) -> None:
        """Let a piece's context go."""
        self._contexts.pop(context, None)

    def close(self) -> None:
        """Give the whole buffer back."""
        self._whole.close()

    def _copy_tensor(self, buffer: int, source: C._Pointer[ggml.Tensor], target: C._Pointer[ggml.Tensor]) -> bool:
        """Copy on the device.  Called by ggml; an exception must not cross into C: False lets it copy by the host."""
        holder = source.contents.buffer
        context = ggml.Buffer.from_address(holder).context if holder else None
        if context not in self._contexts or self._copy is None:
            return False
        stand_in = ggml.Buffer.from_buffer_copy(ggml.Buffer.from_address(holder))
        stand_in.iface = self._original
        twin = ggml.Tensor.from_buffer_copy(source.contents)
        twin.buffer = C.addressof(stand_in)
        self.copies += 1
        return bool(self._copy(buffer, C.byref(twin), target))


def check_device(place: str) -> str:
    """Prove on the live device that pieces work; returns an empty string, or what does not fit.

    A piece of one page between two others is cleared: its bytes must change, and no others.
    """
    whole = _Whole(place, 3 * ALIGNMENT)
    try:
        if ggml.DeviceContext.from_address(whole.buffer.context).address != ggml.lib.ggml_backend_buffer_get_base(
            whole.buffer_address
        ):
            return f"{place}: the data pointer is not where it is expected in a buffer's context"
        ggml.lib.ggml_backend_buffer_clear(whole.buffer_address, 0x11)
        memory, ended = DeviceMemory(whole), ggml.FREE(lambda _: None)
        table, start = memory.table(), whole.address + ALIGNMENT
        table.free_buffer = C.cast(ended, ggml.PTR).value
        context = memory.context(start)
        piece = ggml.lib.ggml_backend_buffer_init(ggml.buffer_type(place), table, context, ALIGNMENT)
        if ggml.lib.ggml_backend_buffer_get_base(piece) != start:
            return f"{place}: a piece does not begin where its context says"
        ggml.lib.ggml_backend_buffer_clear(piece, 0x22)
        found = _read(whole.buffer_address, whole.address, 3 * ALIGNMENT)
        ggml.lib.ggml_backend_buffer_free(piece)
        if found != b"\x11" * ALIGNMENT + b"\x22" * ALIGNMENT + b"\x11" * ALIGNMENT:
            return f"{place}: clearing a piece does not change its bytes and no others"
    finally:
        whole.close()
    return ""


def _read(buffer: int, address: int, size: int) -> bytes:
    """Read bytes of a device by way of a tensor that lies there."""
    tensor = ggml.Tensor(type=ggml.I8, buffer=buffer, data=address)
    tensor.ne[:], tensor.nb[:] = (size, 1, 1, 1), (1, size, size, size)
    out = C.create_string_buffer(size)
    ggml.lib.ggml_backend_tensor_get(C.addressof(tensor), C.addressof(out), 0, size)
    return out.raw


_CONTEXT_HEAD = 16  # bytes: the device's number and the data pointer; what follows is never read


def _table(kind: int) -> ggml.BufferInterface:
    """Return a copy of a buffer type's functions, taken from a small real buffer."""
    stock = C.cast(ggml.BufferType.from_address(kind).iface.alloc_buffer, ggml.ALLOC)
    buffer = stock(kind, 64)
    table = ggml.BufferInterface.from_buffer_copy(ggml.Buffer.from_address(buffer).iface)
    ggml.lib.ggml_backend_buffer_free(buffer)
    return table
