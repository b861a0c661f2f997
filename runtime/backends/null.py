"""A fake model that obeys the real contract and computes nothing: for schedulers, tests and a first look.

Its vocabulary is the 256 bytes and one end token.  The next token depends on the sequence's whole history and on
nothing else, so a mixed-up sequence, position or restart shows in the text.  Load it as ``null:``.
"""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from llguidance import LLTokenizer, TokenizerWrapper

from ..arena import Plan
from ..errors import EngineFailed
from .base import Memory, ModelInfo, StepBatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..config import ModelOptions
    from .base import Saved

END = 256
VOCABULARY = 257
_LETTERS = b"abcdefghijklmnopqrstuvwxyz     .,"


@dataclass(slots=True, eq=False)
class _Cell:
    token: int
    holders: int = 1


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

    def matcher_tokenizer(self) -> Any:
        """Return llguidance's tokenizer: see `base.Vocabulary`."""
        return _matcher_tokenizer()


class _Bytes:
    """The vocabulary as llguidance asks for it."""

    tokens = (*(bytes([byte]) for byte in range(END)), b"<end>")
    eos_token_id = END
    bos_token_id = None
    special_token_ids = (END,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


@cache
def _matcher_tokenizer() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Bytes()))


class NullBackend:
    """The fake.  ``step_s``: seconds per step; ``end_at``: answers end once a sequence has that many tokens."""

    def __init__(self, options: ModelOptions, *, step_s: float = 0.0, end_at: int | None = None) -> None:
        self.info = ModelInfo(
            name=options.name, architecture="null", vocabulary=VOCABULARY, context=options.context,
            cells=options.context, streams=options.streams, batch=options.settled().batch, threads=1, device="none",
            chat_template=None, start_text="", end_text="", parameters=0, file_bytes=0, slots=options.slots,
        )
        self.plan = Plan((), 1)
        self.memory = Memory("", {})
        self.vocabulary = NullVocabulary()
        size = self.info.batch
        self.batch = StepBatch(
            np.zeros(size, np.int32), np.zeros(size, np.int32), np.zeros(size, np.int32), np.zeros(size, np.int8)
        )
        self.step_s, self.end_at = step_s, end_at
        self._history: dict[int, list[_Cell]] = {}
        self._used = 0
        self._interrupted = False
        self._logits = np.zeros((options.slots + 1, VOCABULARY), np.float32)

    @property
    def used(self) -> int:
        """Cells that hold a token; shared ones count once."""
        return self._used

    def decode(self, n: int) -> NDArray[np.float32]:
        """Check the batch as a real backend would, and return made-up logits."""
        if self.step_s:
            time.sleep(self.step_s)
        if self._interrupted:
            raise EngineFailed("the step was interrupted")
        if self._used + n > self.info.cells:
            raise EngineFailed(f"no room for {n} tokens in {self.info.cells} cells")
        batch, rows = self.batch, 0
        for i in range(n):
            sequence, position = int(batch.sequences[i]), int(batch.positions[i])
            history = self._history.setdefault(sequence, [])
            if position != len(history) or not 0 <= sequence <= self.info.slots:
                raise EngineFailed(f"sequence {sequence} is at {len(history)}, the batch says {position}")
            history.append(_Cell(int(batch.tokens[i])))
            self._used += 1
            if batch.outputs[i]:
                self._logits[rows] = self._guess([cell.token for cell in history])
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
        self.trim(sequence, 0)
        self._history.pop(sequence, None)

    def share(self, source: int, target: int, length: int) -> None:
        """Hold the same cells twice."""
        shared = self._history[source][:length]
        if len(shared) < length or self._history.get(target):
            raise EngineFailed(f"sequence {source} can not share {length} tokens with {target}")
        for cell in shared:
            cell.holders += 1
        self._history[target] = list(shared)

    def trim(self, sequence: int, length: int) -> None:
        """Forget the end of a sequence."""
        history = self._history.get(sequence, [])
        for cell in history[length:]:
            cell.holders -= 1
            self._used -= not cell.holders
        del history[length:]

    def save(self, sequence: int, first: int) -> Saved:
        """Return the tokens."""
        tokens = [cell.token for cell in self._history[sequence][first:]]
        return np.frombuffer(np.asarray(tokens, np.int32).tobytes(), np.uint8)

    def restore(self, sequence: int, first: int, saved: Saved) -> bool:
        """Put the tokens back into cells of their own."""
        tokens = np.frombuffer(saved.tobytes(), np.int32).tolist()
        history = self._history.setdefault(sequence, [])
        if len(history) != first or self._used + len(tokens) > self.info.cells:
            return False
        history += [_Cell(token) for token in tokens]
        self._used += len(tokens)
        return True

    def interrupt(self) -> None:
        """Fail from now on."""
        self._interrupted = True

    def warm_up(self) -> None:
        """Do nothing: nothing grows here."""

    def close(self) -> None:
        """Forget all sequences."""
        self._history.clear()
        self._used = 0
