"""GGUF through llama-cpp-python's low-level API: one context, one unified KV pool, many sequences."""

from __future__ import annotations

import ctypes as C  # noqa: N812 - as in the ggml module
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import EngineFailed
from . import ggml, libllama
from .base import Memory, ModelInfo, StepBatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..arena import Plan
    from ..config import ModelOptions
    from .base import Saved

L = ggml.L
COPY_STEP = 16 << 10  # copies of sequences are allocated in such steps: blocks of many sizes fragment the heap
_DECODE_ERRORS = {
    1: "the KV cache has no room for the batch",
    2: "the step was aborted",
    -1: "the batch is not valid",
    -2: "memory was refused",
    -3: "the computation failed",
}


class LlamaBackend:
    """A model and its context.  Allocates only while it is built and warmed up, inside the caller's `Slab.loading`."""

    def __init__(self, options: ModelOptions, plan: Plan, memory: Memory, threads: int) -> None:
        self.plan, self.memory, self._flash = plan, memory, options.flash_attention
        self._context = self._model = 0
        try:
            self._model = libllama.open_model(options)
            self._context = libllama.open_context(self._model, options, threads)
            self.info: ModelInfo = libllama.read_info(self._model, self._context, options, threads)
        except BaseException:
            self._free()
            raise
        self.vocabulary = libllama.LlamaVocabulary(self._model)
        self._kv = L.llama_get_memory(self._context)
        # libllama asks a C function before each node of a graph whether to go on.  A Python one would take the GIL
        # a thousand times a step; libc's atoi over a buffer of ours is a native "read this flag".
        self._aborted = C.create_string_buffer(b"0", 2)
        atoi = C.cast(C.CDLL(None).atoi, C.c_void_p)
        L.llama_set_abort_callback(self._context, C.cast(atoi, L.ggml_abort_callback), self._aborted)
        self.batch, self._native, self._keep = _native_batch(options.batch)
        self._address = 0
        self._rows = np.zeros((0, self.info.vocabulary), np.float32)

    @property
    def output_bytes(self) -> int:
        """Size of the buffer that holds the logits, which is how the arena recognises it."""
        return 4 * self.info.vocabulary * (self.info.slots + 1)

    def decode(self, n: int) -> NDArray[np.float32]:
        """Run the first ``n`` rows of the batch; see `base.Backend`."""
        self._native.n_tokens = n
        code = L.llama_decode(self._context, self._native)
        if code:
            reason = _DECODE_ERRORS.get(code, f"libllama returned {code}")
            raise EngineFailed(f"{reason}: {ggml.log().last_error() or 'libllama gave no reason'}")
        return self._logits()[: int(np.count_nonzero(self.batch.outputs[:n]))]

    def _logits(self) -> NDArray[np.float32]:
        """View libllama's output rows; the address is the same from step to step, so the view is made once."""
        address = C.cast(L.llama_get_logits(self._context), ggml.PTR).value or 0
        if address != self._address:
            shape = self.info.slots + 1, self.info.vocabulary
            self._rows = np.ctypeslib.as_array((C.c_float * (shape[0] * shape[1])).from_address(address)).reshape(shape)
            self._address = address
        return self._rows

    def drop(self, sequence: int) -> None:
        """Free the cells of a sequence."""
        L.llama_memory_seq_rm(self._kv, sequence, -1, -1)

    def share(self, source: int, target: int, length: int) -> None:
        """Refer to the same cells from two sequences; see `base.Backend`."""
        L.llama_memory_seq_cp(self._kv, source, target, -1, length if self.info.reuse == "any" else -1)

    def trim(self, sequence: int, length: int) -> None:
        """Free the cells behind the first ``length``."""
        L.llama_memory_seq_rm(self._kv, sequence, length, -1)

    def save(self, sequence: int, first: int) -> Saved:
        """Copy the state of a sequence; of a part of it by way of a spare one, which libllama then saves whole."""
        source = sequence
        if first:
            source = self.info.slots
            L.llama_memory_seq_cp(self._kv, sequence, source, first, -1)
        size = L.llama_state_seq_get_size(self._context, source)
        data = np.empty(-(-size // COPY_STEP) * COPY_STEP, np.uint8)
        written = L.llama_state_seq_get_data(self._context, _bytes(data), data.nbytes, source)
        if first:
            self.drop(source)
        return data[:written]

    def restore(self, sequence: int, first: int, saved: Saved) -> bool:
        """Write the state of a sequence; libllama empties the one it writes to, so a part goes by a spare one too."""
        target = self.info.slots if first else sequence
        done = L.llama_state_seq_set_data(self._context, _bytes(saved), saved.nbytes, target) == saved.nbytes
        if first:
            if done:
                L.llama_memory_seq_cp(self._kv, target, sequence, first, -1)
            self.drop(target)
        return bool(done)

    def interrupt(self) -> None:
        """Set the flag that libllama looks at before each node of a graph."""
        self._aborted.raw = b"1\0"

    def warm_up(self) -> None:
        """Run a full prompt step over all streams, then a full decode step, then forget them."""
        each = int(L.llama_n_ctx_seq(self._context)) - 1
        streams = min(self.info.streams, self.info.cells // 2)
        full = max(streams, min(self.info.batch, self.info.cells - streams, streams * each))
        shares = [full // streams + (i < full % streams) for i in range(streams)]
        self._warm(shares, [0] * streams)
        self._warm([1] * streams, shares)
        if self.info.gpu_layers and not self._flash:
            self._warm_deep(shares, each)
        L.llama_memory_clear(self._kv, True)

    def _warm_deep(self, shares: list[int], each: int) -> None:
        """Fill the cache to its end: without flash attention CUDA's scratch pool grows with the depth of a step."""
        firsts = [share + 1 for share in shares]
        while sum(firsts) + self.info.batch <= self.info.cells and max(firsts) + max(shares) <= each:
            self._warm(shares, firsts)
            firsts = [first + share for first, share in zip(firsts, shares, strict=True)]

    def _warm(self, shares: list[int], firsts: list[int]) -> None:
        """Decode a step in which sequence i has ``shares[i]`` rows from position ``firsts[i]`` on."""
        n = 0
        for sequence, (share, first) in enumerate(zip(shares, firsts, strict=True)):
            end = n + share
            self.batch.tokens[n:end] = 0
            self.batch.positions[n:end] = range(first, first + share)
            self.batch.sequences[n:end] = sequence
            self.batch.outputs[n:end] = 0
            self.batch.outputs[end - 1] = 1
            n = end
        self.decode(n)

    def close(self) -> None:
        """Free context and model."""
        self.vocabulary.close()
        self._free()

    def _free(self) -> None:
        context, self._context = self._context, 0
        model, self._model = self._model, 0
        if context:
            L.llama_free(context)
        if model:
            L.llama_model_free(model)


def _bytes(data: Saved) -> Any:
    return data.ctypes.data_as(C.POINTER(C.c_uint8))


def _native_batch(size: int) -> tuple[StepBatch, Any, list[NDArray[np.generic]]]:
    """Return a step's arrays, a ``llama_batch`` over the very same memory, and what must stay referenced."""
    batch = StepBatch(
        np.zeros(size, np.int32), np.zeros(size, np.int32), np.zeros(size, np.int32), np.zeros(size, np.int8)
    )
    one = np.ones(size, np.int32)
    addresses = batch.sequences.ctypes.data + 4 * np.arange(size, dtype=np.uint64)  # row i's list of one sequence
    native = L.llama_batch()
    native.token = batch.tokens.ctypes.data_as(C.POINTER(C.c_int32))
    native.pos = batch.positions.ctypes.data_as(C.POINTER(C.c_int32))
    native.n_seq_id = one.ctypes.data_as(C.POINTER(C.c_int32))
    native.seq_id = addresses.ctypes.data_as(C.POINTER(C.POINTER(C.c_int32)))
    native.logits = batch.outputs.ctypes.data_as(C.POINTER(C.c_int8))
    return batch, native, [one, addresses]
