"""What the engine says of a request: frozen values, in one legal order.

::

    Accepted  Started?  Progress*  (Finished | Failed)   exactly one of the last two, whatever happens
    Failed                                               refused: nothing came before

`Progress` carries every token that was committed, also those whose text is still held back (half a character, the
possible start of a stop text), so that a journal can rebuild the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .errors import Error  # noqa: TC001 - the annotations of frozen values are read at run time by codecs
from .sampling import TokenLogprob  # noqa: TC001 - the same

Reason = Literal["stop", "length", "cancelled", "deadline", "superseded"]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request took: tokens, and seconds from its submission to the first token and to the end.

    ``seed`` is the one that was used, given or drawn; ``draws`` how many random numbers were taken; ``cached_tokens``
    how many of the prompt's tokens were known from earlier requests and not computed again.
    """

    prompt_tokens: int
    answer_tokens: int
    first_token_s: float
    total_s: float
    seed: int
    draws: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Accepted:
    """The request has its place; the answer will come."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Started:
    """It has its place in the cache and is computed from now on."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Progress:
    """``tokens`` were committed and ``text`` (never half a character) may be shown.

    ``logprobs``: one per token where the request asked for them; tokens that a form forced have none.
    ``draws``: random numbers that the answer has taken so far.
    """

    ticket: int
    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob | None, ...] = ()
    draws: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer, whole or cut off.

    ``stop``        end of text, a stop text, or the form is complete
    ``length``      max_tokens or the context
    ``cancelled``   somebody asked for it
    ``deadline``    its time was up
    ``superseded``  a newer request with the same key took its place
    """

    ticket: int
    reason: Reason
    usage: Usage


@dataclass(frozen=True, slots=True)
class Failed:
    """The end, without an answer or in the middle of one."""

    ticket: int
    error: Error


Event = Accepted | Started | Progress | Finished | Failed
