"""What a backend is: the one narrow door between the engine and whatever computes.

A backend holds one loaded model with its sequences.  The engine fills `StepBatch` (plain arrays that the backend
owns), calls ``decode`` and reads logits.  Only the engine's thread may call it; `Vocabulary` is the exception and
may be used from any thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..arena import Plan

Saved: TypeAlias = NDArray[np.uint8]
"""A copy of a sequence's state in host memory; only the backend that made it can read it."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is true of a loaded model.

    ``context``  tokens that one request may take, prompt and answer together
    ``cells``    tokens of KV cache shared by all streams
    ``batch``    tokens that one step may compute
    ``slots``    sequences that the cache may hold at a time, running and kept ones
    ``reuse``    ``any``: every head of a sequence can be shared; ``whole``: only all of it (sliding windows have
                 forgotten the rest, recurrent states have no rest)
    ``tile``     rows from which on a step's attention is computed in tiles, at a lower price each; 0: no such width
    ``device``   what computes: ``cpu``, or ``CUDA0 (25 of 25 layers)``; ``gpu_layers`` of ``layers`` lie on a GPU, the
                 output counted as one
    ``start_text``, ``end_text``  the model's begin-of-text and end-of-text tokens, written out; may be empty
    """

    name: str
    architecture: str
    vocabulary: int
    context: int
    cells: int
    streams: int
    batch: int
    threads: int
    device: str
    chat_template: str | None
    start_text: str
    end_text: str
    parameters: int
    file_bytes: int
    slots: int
    reuse: Literal["any", "whole"] = "any"
    tile: int = 0
    gpu_layers: int = 0
    layers: int = 0


@dataclass(frozen=True, slots=True)
class Memory:
    """Where a model's bytes are.

    ``degraded``: why the arena could not be used (stock allocation then), or an empty string.
    ``note``: why no GPU is used, or an empty string.
    ``outside``: what lies outside the arena, in bytes, None where the size can not be known.
    """

    degraded: str
    outside: dict[str, int | None]
    note: str = ""


@dataclass(frozen=True, slots=True)
class StepBatch:
    """The arrays of one step, each of length ``batch``; the first ``n`` rows count.

    ``tokens``, ``positions``, ``sequences`` int32; ``outputs`` int8, 1 where logits are wanted.  Rows of one sequence
    stand in the order of their positions.
    """

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    sequences: NDArray[np.int32]
    outputs: NDArray[np.int8]


class Vocabulary(Protocol):
    """Text to tokens and back.  Any thread may call it, also while the engine runs."""

    def encode(self, text: str, *, special: bool, start: bool) -> list[int]:
        """Return the tokens of ``text``.

        ``special``: read control tokens written out in the text (a rendered chat template).
        ``start``: put the model's own begin-of-text in front, if it wants one.
        """

    def piece(self, token: int) -> bytes:
        """Return the bytes that a token stands for; control tokens are empty."""

    def is_end(self, token: int) -> bool:
        """Tell whether the token ends an answer."""

    def matcher_tokenizer(self) -> Any:
        """Return llguidance's ``LLTokenizer`` of this vocabulary: made at the first call, which may take a second.

        Its end tokens are those of `is_end`.
        """


class Backend(Protocol):
    """One loaded model."""

    @property
    def info(self) -> ModelInfo:
        """Facts about the model."""

    @property
    def plan(self) -> Plan:
        """What it was planned to take."""

    @property
    def memory(self) -> Memory:
        """Where its bytes are."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Its tokenizer."""

    @property
    def batch(self) -> StepBatch:
        """The arrays of the next step."""

    def decode(self, n: int) -> NDArray[np.float32]:
        """Compute the first ``n`` rows of the batch; the GIL is released meanwhile.

        Returns logits, one row per marked output in batch order, shape [outputs, vocabulary].  The array is a view
        of the backend's memory: it may be overwritten, and is valid until the next call.
        Raises EngineFailed; the sequences of the batch must then be dropped.
        """

    def drop(self, sequence: int) -> None:
        """Forget everything that sequence number ``sequence`` holds."""

    def share(self, source: int, target: int, length: int) -> None:
        """Let ``target``, which is empty, begin with the first ``length`` tokens of ``source``, by reference."""

    def trim(self, sequence: int, length: int) -> None:
        """Forget all but the first ``length`` tokens of a sequence."""

    def save(self, sequence: int, first: int) -> Saved:
        """Return a copy of what a sequence holds from its token number ``first`` on."""

    def restore(self, sequence: int, first: int, saved: Saved) -> bool:
        """Put a copy back behind the first ``first`` tokens, which the sequence still holds; False if it has no room.

        The state is then byte for byte what was saved.
        """

    def interrupt(self) -> None:
        """Make the running and every later ``decode`` fail soon.  For the end: it spares no sequence.  Any thread."""

    def warm_up(self) -> None:
        """Run the largest steps that can occur, so that everything that grows has grown; leaves no sequence."""

    def close(self) -> None:
        """Free the model; the backend is unusable afterwards.  Closing twice is harmless."""
