"""How many prompt tokens a step may take, from what steps have cost.

A step that only decodes takes about ``a(rows)``; prompt tokens add about ``b`` each.  Both are followed with a moving
average, so the size of a chunk adapts to the machine, to its neighbours and to growing contexts.
"""

from __future__ import annotations

FIRST_CHUNK, LEAST_CHUNK = 32, 8
FOLLOW = 0.25  # weight of the newest step


class Pace:
    """The cost of steps.  ``target_s``: what a step should take at most."""

    def __init__(self, target_s: float) -> None:
        self.target_s = target_s
        self._decode: dict[int, float] = {}  # rows -> seconds
        self._token: float | None = None

    def decode_s(self, rows: int) -> float:
        """Return what a step that decodes ``rows`` sequences takes, as far as is known."""
        if not rows or not self._decode:
            return 0.0
        return self._decode[min(self._decode, key=lambda known: abs(known - rows))]

    @property
    def token_s(self) -> float:
        """Return what a prompt token takes; 0.0 before anything is known."""
        return self._token or 0.0

    def chunk(self, rows: int, room: int) -> int:
        """Return how many prompt tokens, at most ``room``, a step with ``rows`` decoding sequences may take.

        At least `LEAST_CHUNK`, so that prompts get on where decoding alone takes longer than the target.
        """
        if self._token is None:
            return min(room, FIRST_CHUNK)
        affordable = int((self.target_s - self.decode_s(rows)) / max(self._token, 1e-9))
        return min(room, max(LEAST_CHUNK, affordable))

    def note(self, rows: int, prompt: int, seconds: float) -> None:
        """Take note of a step."""
        if not prompt:
            before = self._decode.get(rows, seconds)
            self._decode[rows] = before + FOLLOW * (seconds - before)
            return
        each = max(seconds - self.decode_s(rows), 0.1 * seconds) / prompt
        before = each if self._token is None else self._token
        if prompt >= LEAST_CHUNK or self._token is None:  # a few tokens say little of many
            self._token = before + FOLLOW * (each - before)
