"""The border to ggml and libllama: loads them once, declares the structs we touch, and checks that they fit.

Layouts are those of ``ggml-backend-impl.h`` and ``ggml.h`` in llama-cpp-python 0.3.36 (``GGML_BACKEND_API_VERSION``
2).  `check_layout` proves them at start against the live library; the arena's hook is installed only if it passes.

Two traps, both measured.  The wheel holds three real copies of each ggml library (``.so``, ``.so.0``,
``.so.0.x``): opening one by path can load a second copy with its own device registry, so every symbol is taken from
libllama's own handle.  libgomp reads ``GOMP_SPINCOUNT`` when it is loaded: with its default a busy neighbour turns
18 ms per token into seconds, so the variable is set here, before the import that loads libgomp.
"""

from __future__ import annotations

import contextlib
import ctypes as C  # noqa: N812 - the declarations below read like the header they mirror
import itertools
import os
import re
from collections import deque
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

SPINCOUNT = "1000"


def libgomp_loaded() -> bool:
    """Tell whether libgomp is already in this process, so that its environment has been read."""
    try:
        return "libgomp" in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


GOMP_TOO_LATE = libgomp_loaded() and "GOMP_SPINCOUNT" not in os.environ
os.environ.setdefault("GOMP_SPINCOUNT", SPINCOUNT)
os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # a native abort would start a debugger to print its stack

import llama_cpp  # noqa: E402 - the environment above must be set first

VERSION = "0.3.36"
L: Any = llama_cpp
PTR = C.c_void_p
lib: Any = llama_cpp.llama_cpp._lib  # noqa: SLF001 - libllama's own handle; see the module docstring


def _table(*names: str) -> list[tuple[str, Any]]:
    return [(name, PTR) for name in names]


class BufferTypeInterface(C.Structure):
    """``ggml_backend_buffer_type_i``: the functions of a buffer type."""

    _fields_: ClassVar = _table(
        "get_name", "alloc_buffer", "get_alignment", "get_max_size", "get_alloc_size", "is_host"
    )


class BufferType(C.Structure):
    """``ggml_backend_buffer_type``."""

    _fields_: ClassVar = [("iface", BufferTypeInterface), ("device", PTR), ("context", PTR)]


class BufferInterface(C.Structure):
    """``ggml_backend_buffer_i``: the functions of one buffer."""

    _fields_: ClassVar = _table(
        "free_buffer", "get_base", "init_tensor", "memset_tensor", "set_tensor", "get_tensor",
        "set_tensor_2d", "get_tensor_2d", "cpy_tensor", "clear", "reset",
    )


class Buffer(C.Structure):
    """``ggml_backend_buffer``; ``usage`` is 0 any, 1 weights, 2 compute."""

    _fields_: ClassVar = [
        ("iface", BufferInterface), ("buft", PTR), ("context", PTR), ("size", C.c_size_t), ("usage", C.c_int),
    ]


class Tensor(C.Structure):
    """``ggml_tensor``."""

    _fields_: ClassVar = [
        ("type", C.c_int), ("buffer", PTR), ("ne", C.c_int64 * 4), ("nb", C.c_size_t * 4), ("op", C.c_int),
        ("op_params", C.c_int32 * 16), ("flags", C.c_int32), ("src", PTR * 10), ("view_src", PTR),
        ("view_offs", C.c_size_t), ("data", PTR), ("name", C.c_char * 64), ("extra", PTR), ("pad", C.c_char * 8),
    ]


class DeviceContext(C.Structure):
    """The head of ``ggml_backend_cuda_buffer_context``: all that CUDA's buffer functions read of it.

    Behind it stands a ``std::string`` that nothing reads but the destructor, which never runs on a copy of ours.
    """

    _fields_: ClassVar = [("device", C.c_int), ("address", PTR), ("name", C.c_char * 64)]


class InitParams(C.Structure):
    """``ggml_init_params``."""

    _fields_: ClassVar = [("mem_size", C.c_size_t), ("mem_buffer", PTR), ("no_alloc", C.c_bool)]


I8, BF16 = 24, 30  # GGML_TYPE_I8, GGML_TYPE_BF16
USAGE_ANY, USAGE_WEIGHTS, USAGE_COMPUTE = 0, 1, 2
CPU_DEVICE = 0
# Kernels for processors with AMX tiles take memory past the hook.  Worse, compiled by GCC 12 they crash on the first
# prompt, on any allocator: its ``_tile_loadconfig`` tells the compiler that 8 of the 64 bytes are read, and the stores
# of the others are dropped.  Without them a weight is repacked for AVX-512, inside the arena.
WITHHELD = "AMX"

ALLOC = C.CFUNCTYPE(PTR, PTR, C.c_size_t)
FREE = C.CFUNCTYPE(None, PTR)
GET_BASE = C.CFUNCTYPE(PTR, PTR)
CLEAR = C.CFUNCTYPE(None, PTR, C.c_uint8)
MEMSET = C.CFUNCTYPE(None, PTR, C.POINTER(Tensor), C.c_uint8, C.c_size_t, C.c_size_t)
GET_NAME = C.CFUNCTYPE(C.c_char_p, PTR)
GET_SIZE = C.CFUNCTYPE(C.c_size_t, PTR)
COPY = C.CFUNCTYPE(C.c_bool, PTR, C.POINTER(Tensor), C.POINTER(Tensor))

MISSING: list[str] = []  # functions that this build of ggml has not; `check_layout` reports them

for _name, _result, *_arguments in (
    ("ggml_backend_cpu_buffer_type", PTR),
    ("ggml_backend_dev_count", C.c_size_t),
    ("ggml_backend_dev_get", PTR, C.c_size_t),
    ("ggml_backend_dev_name", C.c_char_p, PTR),
    ("ggml_backend_dev_description", C.c_char_p, PTR),
    ("ggml_backend_dev_type", C.c_int, PTR),
    ("ggml_backend_dev_memory", None, PTR, C.POINTER(C.c_size_t), C.POINTER(C.c_size_t)),
    ("ggml_backend_dev_buffer_type", PTR, PTR),
    ("ggml_backend_dev_host_buffer_type", PTR, PTR),
    ("ggml_backend_dev_by_type", PTR, C.c_int),
    ("ggml_backend_dev_backend_reg", PTR, PTR),
    ("ggml_backend_reg_get_proc_address", PTR, PTR, C.c_char_p),
    ("ggml_backend_buft_name", C.c_char_p, PTR),
    ("ggml_backend_buft_get_alignment", C.c_size_t, PTR),
    ("ggml_backend_buft_alloc_buffer", PTR, PTR, C.c_size_t),
    ("ggml_backend_buffer_get_base", PTR, PTR),
    ("ggml_backend_buffer_get_size", C.c_size_t, PTR),
    ("ggml_backend_buffer_clear", None, PTR, C.c_uint8),
    ("ggml_backend_buffer_free", None, PTR),
    ("ggml_backend_buffer_init", PTR, PTR, BufferInterface, PTR, C.c_size_t),
    ("ggml_backend_tensor_alloc", C.c_int, PTR, PTR, PTR),
    ("ggml_backend_tensor_set", None, PTR, PTR, C.c_size_t, C.c_size_t),
    ("ggml_backend_tensor_get", None, PTR, PTR, C.c_size_t, C.c_size_t),
    ("ggml_init", PTR, InitParams),
    ("ggml_free", None, PTR),
    ("ggml_new_tensor_1d", PTR, PTR, C.c_int, C.c_int64),
    ("ggml_set_name", PTR, PTR, C.c_char_p),
    ("ggml_tensor_overhead", C.c_size_t),
    ("ggml_type_size", C.c_size_t, C.c_int),
    ("ggml_row_size", C.c_size_t, C.c_int, C.c_int64),
):
    try:
        getattr(lib, _name).restype, getattr(lib, _name).argtypes = _result, _arguments
    except AttributeError:
        MISSING.append(_name)


class LibraryLog:
    """Keeps the last lines that libllama and ggml logged, and the last one that tells of a failure.

    The library calls it from any thread and it must never raise; a deque's append is one atomic step.
    """

    ERROR, WARN, CONTINUED = 4, 3, 5

    def __init__(self, lines: int = 400) -> None:
        self.lines: deque[tuple[int, str]] = deque(maxlen=lines)
        self._callback = L.llama_log_callback(self._receive)
        L.llama_log_set(self._callback, None)

    def _receive(self, level: int, text: bytes, _user: int) -> None:
        with contextlib.suppress(Exception):  # none must cross into C; a log line may be lost
            self.lines.append((level, text.decode("utf-8", "replace")))

    def clear(self) -> None:
        """Forget everything, before an operation whose own lines are wanted."""
        self.lines.clear()

    def text(self) -> str:
        """All kept lines, oldest first."""
        return "".join(text for _, text in list(self.lines))

    def last_error(self) -> str:
        """Return libllama's last word on what went wrong: the last error line, else an empty string.

        The most specific reason stands first ("error loading model: ..."), behind it come the callers' repeats.
        """
        errors = [" ".join(text.split()) for level, text in list(self.lines) if level == self.ERROR and text.strip()]
        specific = [line for line in errors if "error loading model" in line or "invalid" in line]
        chosen = (specific or errors or [""])[-1]
        return re.sub(r"^(\w+: )+(?=error loading model)", "", chosen)


@cache
def log() -> LibraryLog:
    """Return the process's one library log; libllama keeps a single callback."""
    return LibraryLog()


@cache
def start() -> None:
    """Initialise libllama once in this process, with its log captured and without the AMX kernels."""
    log()
    L.llama_backend_init()
    withhold(WITHHELD)


def _extra_types() -> tuple[Any, list[int]]:
    """Return ggml's list of the buffer types that libllama may choose for weights, and the addresses in it.

    It is closed by a null, handed out by ggml's public ``ggml_backend_dev_get_extra_bufts``, and lives as long as the
    process.
    """
    device = lib.ggml_backend_dev_by_type(CPU_DEVICE)
    address = lib.ggml_backend_reg_get_proc_address(
        lib.ggml_backend_dev_backend_reg(device), b"ggml_backend_dev_get_extra_bufts"
    )
    if not address:
        return [None], []
    listed = C.cast(address, C.CFUNCTYPE(C.POINTER(PTR), PTR))(device)
    return listed, list(itertools.takewhile(bool, (listed[i] for i in itertools.count())))


def extra_types() -> list[str]:
    """Return the names of the buffer types, beside the plain one, that weights may be put into on the CPU."""
    start()
    return [] if MISSING else [lib.ggml_backend_buft_name(kind).decode() for kind in _extra_types()[1]]


@cache
def withhold(name: str) -> bool:
    """Strike a buffer type from that list: models loaded later use the next that fits.  Tells if it was there."""
    if MISSING:
        return False
    listed, known = _extra_types()
    kept = [kind for kind in known if lib.ggml_backend_buft_name(kind).decode() != name]
    for i in range(len(known)):
        listed[i] = kept[i] if i < len(kept) else None
    return kept != known


def devices() -> list[dict[str, Any]]:
    """Every device that ggml sees: name, description, type (0 CPU, 1 GPU, 2 integrated GPU, 3 other), bytes."""
    start()
    found: list[dict[str, Any]] = []
    if MISSING:
        return found
    for index in range(lib.ggml_backend_dev_count()):
        device = lib.ggml_backend_dev_get(index)
        free, total = C.c_size_t(), C.c_size_t()
        lib.ggml_backend_dev_memory(device, C.byref(free), C.byref(total))
        found.append({
            "name": lib.ggml_backend_dev_name(device).decode("utf-8", "replace"),
            "description": lib.ggml_backend_dev_description(device).decode("utf-8", "replace"),
            "type": lib.ggml_backend_dev_type(device), "free_bytes": free.value, "total_bytes": total.value,
        })
    return found


GPU_TYPES = (1, 2)  # ggml's device types: a GPU, and one that shares the host's memory


def gpus() -> list[dict[str, Any]]:
    """Return those of `devices` that are GPUs."""
    return [device for device in devices() if device["type"] in GPU_TYPES]


@cache
def device(name: str) -> int:
    """Return the address of a device of ggml.  Raises KeyError if there is none of that name."""
    start()
    for index in range(lib.ggml_backend_dev_count()):
        device = lib.ggml_backend_dev_get(index)
        if lib.ggml_backend_dev_name(device).decode("utf-8", "replace") == name:
            return int(device)
    raise KeyError(name)


@cache
def device_handles(names: tuple[str, ...]) -> Any:
    """Return a null-terminated list of devices, as ``llama_model_params`` wants it; without names an empty one.

    It lives as long as the process, since the parameters hold its address only.
    """
    return (PTR * (len(names) + 1))(*(device(name) for name in names), None)


def device_memory(name: str) -> tuple[int, int]:
    """Return a device's free and total bytes, as its driver tells them now."""
    free, total = C.c_size_t(), C.c_size_t()
    lib.ggml_backend_dev_memory(device(name), C.byref(free), C.byref(total))
    return free.value, total.value


@cache
def buffer_type(place: str) -> int:
    """Return the address of a place's buffer type, process-wide: ``CPU``, a GPU, or the pinned memory of one.

    Raises KeyError if ggml knows no such place.
    """
    start()
    if place == "CPU":
        return int(lib.ggml_backend_cpu_buffer_type())
    for gpu in gpus():
        handle = device(gpu["name"])
        if gpu["name"] == place:
            return int(lib.ggml_backend_dev_buffer_type(handle))
        pinned = lib.ggml_backend_dev_host_buffer_type(handle)
        if pinned and lib.ggml_backend_buft_name(pinned).decode() == place:
            return int(pinned)
    raise KeyError(place)


def cpu_buffer_type() -> int:
    """Address of the CPU's buffer type, process-wide."""
    return buffer_type("CPU")


def check_layout() -> str:
    """Prove the struct layouts against the live library; returns an empty string, or what does not fit.

    Pointers are looked up in the executable mappings before one is called, so a changed layout is found without
    a jump into the void.
    """
    if L.__version__ != VERSION:
        return f"llama-cpp-python is {L.__version__}, the arena was written for {VERSION}"
    if MISSING:
        return f"this build of ggml has no {MISSING[0]}"
    address = cpu_buffer_type()
    kind = BufferType.from_address(address)
    code = _executable_ranges()
    for name in ("get_name", "alloc_buffer", "get_alignment"):
        pointer = getattr(kind.iface, name) or 0
        if not any(low <= pointer < high for low, high in code):
            return f"buffer type: {name} does not point at code"
    if C.cast(kind.iface.get_name, GET_NAME)(address) != lib.ggml_backend_buft_name(address):
        return "buffer type: get_name is not where it is expected"
    if C.cast(kind.iface.get_alignment, GET_SIZE)(address) != lib.ggml_backend_buft_get_alignment(address):
        return "buffer type: get_alignment is not where it is expected"
    return _check_buffer(address, code) or _check_tensor()


def _executable_ranges() -> list[tuple[int, int]]:
    found = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        bounds, rights = line.split()[:2]
        if "x" in rights:
            low, high = bounds.split("-")
            found.append((int(low, 16), int(high, 16)))
    return found


def _check_buffer(buffer_type: int, code: list[tuple[int, int]]) -> str:
    size = 8192
    address = lib.ggml_backend_buft_alloc_buffer(buffer_type, size)
    try:
        buffer = Buffer.from_address(address)
        if (buffer.buft, buffer.size, buffer.usage) != (buffer_type, size, USAGE_ANY):
            return "buffer: type, size or usage is not where it is expected"
        for name in ("free_buffer", "get_base", "memset_tensor", "set_tensor", "get_tensor", "clear"):
            pointer = getattr(buffer.iface, name) or 0
            if not any(low <= pointer < high for low, high in code):
                return f"buffer: {name} does not point at code"
        if C.cast(buffer.iface.get_base, GET_BASE)(address) != lib.ggml_backend_buffer_get_base(address):
            return "buffer: get_base is not where it is expected"
        base = lib.ggml_backend_buffer_get_base(address)
        if not 0 <= base - buffer.context < 64:  # ggml rounds a CPU buffer's context up to its tensor alignment
            return "buffer: a CPU buffer's context is not its data pointer"
        C.cast(buffer.iface.clear, CLEAR)(address, 0x5A)
        if C.string_at(base, size) != b"\x5a" * size:
            return "buffer: clear is not where it is expected"
        C.cast(buffer.iface.memset_tensor, MEMSET)(address, C.byref(Tensor(data=base + 64)), 0x11, 0, 64)
        if C.string_at(base + 63, 66) != b"\x5a" + b"\x11" * 64 + b"\x5a":
            return "buffer: memset_tensor does not write where a tensor's data pointer says"
    finally:
        lib.ggml_backend_buffer_free(address)
    return ""


def _check_tensor() -> str:
    context = lib.ggml_init(InitParams(mem_size=1 << 16, mem_buffer=None, no_alloc=True))
    try:
        address = lib.ggml_new_tensor_1d(context, 0, 48)
        lib.ggml_set_name(address, b"arenite")
        tensor = Tensor.from_address(address)
        found = (tensor.type, list(tensor.ne), list(tensor.nb), tensor.name, tensor.data, tensor.buffer)
        if found != (0, [48, 1, 1, 1], [4, 192, 192, 192], b"arenite", None, None):
            return "tensor: type, shape, strides or name is not where it is expected"
        if not C.sizeof(Tensor) < lib.ggml_tensor_overhead() <= C.sizeof(Tensor) + 64:
            return f"tensor: the struct is not {C.sizeof(Tensor)} bytes long"
    finally:
        lib.ggml_free(context)
    return ""
