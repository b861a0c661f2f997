"""The plainest loop over libllama that Python can write: the yardstick for our own, and nothing else.

One preallocated batch, greedy over a numpy view, no text, no scheduler, stock allocation.
"""

from __future__ import annotations

import ctypes as C  # noqa: N812 - as in the ggml module
import time
from typing import TYPE_CHECKING

import numpy as np

from .. import machine
from ..errors import EngineFailed
from . import ggml, libllama

if TYPE_CHECKING:
    from ..config import ModelOptions

L = ggml.L


class RawLoop:
    """A model with a context of its own, loaded with the same parameters as `llama.LlamaBackend` gives.

    Make it before any Runtime of the process: it allocates from ggml's stock allocator.
    """

    def __init__(self, options: ModelOptions) -> None:
        options = options if options.batch else options.settled()
        threads = options.threads or machine.usable_cores()
        self._model = libllama.open_model(options)
        self._context = libllama.open_context(self._model, options, threads)
        self._vocabulary = int(L.llama_vocab_n_tokens(L.llama_model_get_vocab(self._model)))
        self._batch = L.llama_batch_init(options.batch, 0, 1)

    def run(self, prompt: list[int], n: int) -> tuple[list[int], float]:
        """Return ``n`` greedy tokens after ``prompt`` and the seconds that all but the first of them took."""
        L.llama_memory_clear(L.llama_get_memory(self._context), True)
        token, at = self._decode(prompt, 0), len(prompt)
        tokens, start = [token], time.perf_counter()
        for _ in range(n - 1):
            token = self._decode([token], at)
            tokens.append(token)
            at += 1
        return tokens, time.perf_counter() - start

    def _decode(self, tokens: list[int], at: int) -> int:
        batch = self._batch
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, at + i, 1, 0
            batch.logits[i] = i == len(tokens) - 1
        batch.n_tokens = len(tokens)
        if L.llama_decode(self._context, batch):
            raise EngineFailed(f"the raw loop failed: {ggml.log().last_error()}")
        address = C.cast(L.llama_get_logits_ith(self._context, -1), ggml.PTR).value or 0
        view = np.ctypeslib.as_array((C.c_float * self._vocabulary).from_address(address))
        return int(view.argmax())

    def close(self) -> None:
        """Free everything."""
        L.llama_batch_free(self._batch)
        L.llama_free(self._context)
        L.llama_model_free(self._model)
