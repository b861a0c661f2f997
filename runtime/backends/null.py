"""A fake model that obeys the real contract and computes nothing: for schedulers, tests and a first look.

Its vocabulary is the 256 bytes and one end token.  The next token depends on the sequence's whole history and on
nothing else, so a mixed-up sequence, position or restart shows in the text.  Load it as ``null:``.
"""

from __future__ import annotations

import time
import zlib
from typing import TYPE_CHECKING

import numpy as np

from ..arena import Plan
from ..errors import EngineFailed
from .base import Memory, ModelInfo, StepBatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..config import ModelOptions

END = 256
VOCABULARY = 257
_LETTERS = b"abcdefghijklmnopqrstuvwxyz     .,"


class NullVocabulary:
    """Bytes as tokens, plus ``END``."""

    def encode(self, text: str, *, special: bool, start: bool) -> list[int]:  # noqa: ARG002 - the contract's arguments
        """Return the UTF-8 bytes of ``text``."""
        return list(text.encode("utf-8", "surrogatepass"))

    def piece(self, token: int) -> bytes:
        """Return the byte itself."""
        return bytes([token]) if token < END else b""

    def is_end(self, token: int) -> bool:
        """Tell whether the token is ``END``."""
        return token == END


class NullBackend:
    """The fake.  ``step_s``: seconds per step; ``end_at``: answers end once a sequence has that many tokens."""

    def __init__(self, options: ModelOptions, *, step_s: float = 0.0, end_at: int | None = None) -> None:
        self.info = ModelInfo(
            name=options.name, architecture="null", vocabulary=VOCABULARY, context=options.context,
            cells=options.context, streams=options.streams, batch=options.batch, threads=1, device="none",
            chat_template=None, start_text="", end_text="", parameters=0, file_bytes=0,
        )
        self.plan = Plan((), 1)
        self.memory = Memory("", {})
        self.vocabulary = NullVocabulary()
        size = options.batch
        self.batch = StepBatch(
            np.zeros(size, np.int32), np.zeros(size, np.int32), np.zeros(size, np.int32), np.zeros(size, np.int8)
        )
        self.step_s, self.end_at = step_s, end_at
        self._history: dict[int, list[int]] = {}
        self._logits = np.zeros((options.streams, VOCABULARY), np.float32)

    def decode(self, n: int) -> NDArray[np.float32]:
        """Check the batch as a real backend would, and return made-up logits."""
        if self.step_s:
            time.sleep(self.step_s)
        if sum(map(len, self._history.values())) + n > self.info.cells:
            raise EngineFailed(f"no room for {n} tokens in {self.info.cells} cells")
        batch, rows = self.batch, 0
        for i in range(n):
            sequence, position = int(batch.sequences[i]), int(batch.positions[i])
            history = self._history.setdefault(sequence, [])
            if position != len(history) or not 0 <= sequence < self.info.streams:
                raise EngineFailed(f"sequence {sequence} is at {len(history)}, the batch says {position}")
            history.append(int(batch.tokens[i]))
            if batch.outputs[i]:
                self._logits[rows] = self._guess(history)
                rows += 1
        return self._logits[:rows]

    def _guess(self, history: list[int]) -> NDArray[np.float32]:
        seed = zlib.crc32(np.asarray(history, np.int32).tobytes())
        logits = np.random.Generator(np.random.Philox(seed)).normal(0, 1, VOCABULARY).astype(np.float32)
        logits[np.frombuffer(_LETTERS, np.uint8)] += 6
        logits[END] = 100 if self.end_at is not None and len(history) >= self.end_at else -100
        return logits

    def drop(self, sequence: int) -> None:
        """Forget a sequence."""
        self._history.pop(sequence, None)

    def warm_up(self) -> None:
        """Do nothing: nothing grows here."""

    def close(self) -> None:
        """Forget all sequences."""
        self._history.clear()
