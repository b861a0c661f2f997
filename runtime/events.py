"""What the engine says of a request: frozen values, in one legal order.

::

    Accepted  Progress*  (Finished | Failed)        exactly one of the last two, whatever happens
    Failed                                          refused: nothing came before

`Progress` carries every token that was committed, also those whose text is still held back (half a character, the
possible start of a stop text), so that a journal can rebuild the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .errors import Error  # noqa: TC001 - the annotations of frozen values are read at run time by codecs

Reason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request took: tokens, and seconds from its submission to the first token and to the end.

    ``seed`` is the one that was used, given or drawn; ``draws`` how many random numbers were taken.
    """

    prompt_tokens: int
    answer_tokens: int
    first_token_s: float
    total_s: float
    seed: int
    draws: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """The request has its place; the answer will come."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Progress:
    """``tokens`` were committed and ``text`` (never half a character) may be shown."""

    ticket: int
    tokens: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The end: ``stop`` (end of text or a stop text), ``length`` (max_tokens or context) or ``cancelled``."""

    ticket: int
    reason: Reason
    usage: Usage


@dataclass(frozen=True, slots=True)
class Failed:
    """The end, without an answer or in the middle of one."""

    ticket: int
    error: Error


Event = Accepted | Progress | Finished | Failed
