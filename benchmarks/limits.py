"""What a device can do at best, measured on the spot with ggml itself: copy bandwidth and matrix rate.

A decode step has to read every weight once, a prompt has to multiply by every weight once per token; so bandwidth
bounds the one and the matrix rate the other.
"""

from __future__ import annotations

import ctypes as C  # noqa: N812 - as in the ggml module
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..runtime.backends import ggml

if TYPE_CHECKING:
    from collections.abc import Callable

PTR = ggml.PTR
F32, F16 = 0, 1
OVERHEAD = 1 << 20

for _name, _result, *_arguments in (
    ("ggml_new_tensor_2d", PTR, PTR, C.c_int, C.c_int64, C.c_int64),
    ("ggml_mul_mat", PTR, PTR, PTR, PTR),
    ("ggml_cpy", PTR, PTR, PTR, PTR),
    ("ggml_new_graph", PTR, PTR),
    ("ggml_build_forward_expand", None, PTR, PTR),
    ("ggml_backend_dev_init", PTR, PTR, C.c_char_p),
    ("ggml_backend_free", None, PTR),
    ("ggml_backend_synchronize", None, PTR),
    ("ggml_backend_alloc_ctx_tensors", PTR, PTR, PTR),
    ("ggml_backend_graph_compute", C.c_int, PTR, PTR),
):
    getattr(ggml.lib, _name).restype, getattr(ggml.lib, _name).argtypes = _result, _arguments


@dataclass(frozen=True, slots=True)
class Limits:
    """``bandwidth``: bytes read and written per second by a copy; ``rate``: operations per second of an f16 product."""

    bandwidth: float
    rate: float


def measure(device: str, *, copy_bytes: int, side: int, repeats: int = 5) -> Limits:
    """Measure a device of ggml (``CPU``, ``CUDA0``): a copy of so many bytes, a product of matrices of that side."""

    def copy(context: int) -> int:
        rows = copy_bytes // (4 * 4096)
        source, target = (ggml.lib.ggml_new_tensor_2d(context, F32, 4096, rows) for _ in range(2))
        return int(ggml.lib.ggml_cpy(context, source, target))

    def product(context: int) -> int:
        left = ggml.lib.ggml_new_tensor_2d(context, F16, side, side)
        return int(ggml.lib.ggml_mul_mat(context, left, ggml.lib.ggml_new_tensor_2d(context, F32, side, side)))

    rows = copy_bytes // (4 * 4096)
    return Limits(
        2 * 4 * 4096 * rows / _seconds(device, copy, repeats), 2 * side**3 / _seconds(device, product, repeats)
    )


def _seconds(device: str, build: Callable[[int], int], repeats: int) -> float:
    """Return the median time of a graph of one operation; the first run, which loads kernels, does not count."""
    lib = ggml.lib
    backend = lib.ggml_backend_dev_init(ggml.device(device), None)
    context = lib.ggml_init(ggml.InitParams(mem_size=OVERHEAD, mem_buffer=None, no_alloc=True))
    buffer = None
    try:
        graph = lib.ggml_new_graph(context)
        lib.ggml_build_forward_expand(graph, build(context))
        buffer = lib.ggml_backend_alloc_ctx_tensors(context, backend)
        if not buffer:
            raise MemoryError(f"{device} has no room for the measurement")
        lib.ggml_backend_buffer_clear(buffer, 0)
        times = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            lib.ggml_backend_graph_compute(backend, graph)
            lib.ggml_backend_synchronize(backend)
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])
    finally:
        if buffer:
            lib.ggml_backend_buffer_free(buffer)
        lib.ggml_free(context)
        lib.ggml_backend_free(backend)
