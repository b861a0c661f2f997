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

L = ggml.L
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
        self.plan, self.memory = plan, memory
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
        self.batch, self._native, self._keep = _native_batch(options.batch)
        self._address = 0
        self._rows = np.zeros((0, self.info.vocabulary), np.float32)

    @property
    def output_bytes(self) -> int:
        """Size of the buffer that holds the logits, which is how the arena recognises it."""
        return 4 * self.info.vocabulary * self.info.streams

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
            rows = (C.c_float * (self.info.streams * self.info.vocabulary)).from_address(address)
            self._rows = np.ctypeslib.as_array(rows).reshape(self.info.streams, self.info.vocabulary)
            self._address = address
        return self._rows

    def drop(self, sequence: int) -> None:
        """Free the cells of a sequence."""
        L.llama_memory_seq_rm(self._kv, sequence, -1, -1)

    def warm_up(self) -> None:
        """Run a full prompt step over all streams, then a full decode step, then forget them."""
        streams = min(self.info.streams, self.info.cells // 2)
        share = max(1, min(self.info.batch, self.info.cells - streams) // streams)
        for n, first in ((share, 0), (1, share)):
            rows = np.arange(n * streams)
            self.batch.tokens[: len(rows)] = 0
            self.batch.positions[: len(rows)] = first + rows % n
            self.batch.sequences[: len(rows)] = rows // n
            self.batch.outputs[: len(rows)] = rows % n == n - 1
            self.decode(len(rows))
        L.llama_memory_clear(self._kv, True)

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
