"""Token bytes become text that may be shown: no half characters, no text that a stop text might swallow."""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field


@dataclass(slots=True)
class TextAssembler:
    """Turns the bytes of one answer into text, step by step.

    ``push`` returns what is safe to show.  Held back are the first bytes of an unfinished UTF-8 character and the
    longest tail that could still grow into a stop text.  Once a stop text appears, ``stopped`` is true, the text
    before it has been returned, and nothing follows.  Bytes that are not UTF-8 become U+FFFD, one per bad sequence.
    """

    stops: tuple[str, ...] = ()
    stopped: bool = False
    _held: str = ""
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )

    def push(self, raw: bytes) -> str:
        """Take the bytes of one token; returns text that may be shown now, often empty."""
        text = self._decoder.decode(raw)
        if not self.stops:
            return text
        return self._release(text)

    def finish(self) -> str:
        """Return what was held back, at the end of the answer."""
        if self.stopped:
            return ""
        rest = self._release(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return rest if self.stopped else rest + held

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [at for at in map(text.find, self.stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self.stops), default=0)
        self._held = text[len(text) - keep:]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest tail of ``text`` that begins ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
