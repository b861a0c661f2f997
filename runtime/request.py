"""What is asked for: frozen values, checked once when they are made."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InvalidRequest

MAX_STOPS, MAX_STOP_LENGTH = 16, 256
SHOWN = 1e30  # numbers beyond it are not worth writing out


def _in_range(
    name: str, value: float, low: float, high: float, *, whole: bool = False, open_low: bool = False
) -> None:
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise InvalidRequest(f"{name} is {value!r}: give a {'whole number' if whole else 'number'}")
    if not low <= value <= high or (open_low and value == low):  # NaN fails the comparison
        shown = str(value) if abs(value) < SHOWN else "far outside"
        raise InvalidRequest(f"{name} is {shown}: it lies {'above' if open_low else 'from'} {low:g} to {high:g}")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is chosen from the logits.

    ``temperature``        0: the most likely token (greedy).  Otherwise logits are divided by it, up to 100
    ``top_k``              keep the k most likely; 0: all
    ``top_p``              keep the smallest set whose probability reaches p (nucleus sampling, Holtzman et al. 2019)
    ``min_p``              keep what is at least min_p times as likely as the best (Nguyen et al. 2024)
    ``repeat_penalty``     divides positive and multiplies negative logits of recent tokens (Keskar et al. 2019); 1: off
    ``frequency_penalty``  subtracted once per occurrence among recent tokens, -2 to 2
    ``presence_penalty``   subtracted once if the token occurs among recent tokens, -2 to 2
    ``penalty_window``     how many of the last tokens, prompt included, are "recent"
    ``seed``               None: drawn at random and reported with the answer

    Filters work in this order, as llama.cpp's default chain does: penalties, top_k, top_p, min_p, temperature.
    """

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_window: int = 64
    seed: int | None = None

    def __post_init__(self) -> None:
        _in_range("temperature", self.temperature, 0.0, 100.0)
        _in_range("top_k", self.top_k, 0, 1 << 20, whole=True)
        _in_range("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _in_range("min_p", self.min_p, 0.0, 1.0)
        _in_range("repeat_penalty", self.repeat_penalty, 0.0, 100.0, open_low=True)
        _in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _in_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _in_range("penalty_window", self.penalty_window, 0, 1 << 20, whole=True)
        if self.seed is not None:
            _in_range("seed", self.seed, 0, (1 << 64) - 1, whole=True)

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken, without drawing."""
        return self.temperature == 0.0

    @property
    def penalised(self) -> bool:
        """Whether recent tokens change the logits."""
        active = self.repeat_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0
        return active and self.penalty_window > 0


GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, as tokens, and how to answer it.

    ``max_tokens``: None lets the answer run to the end of the context.  ``stop``: texts that end the answer and are
    not part of it.  ``ignore_end``: go on past the model's own end of text (benchmarks).
    """

    tokens: tuple[int, ...]
    max_tokens: int | None = None
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    ignore_end: bool = False

    def __post_init__(self) -> None:
        if not self.tokens:
            raise InvalidRequest("the prompt is empty: give at least one token")
        if not all(type(token) is int for token in self.tokens):
            raise InvalidRequest("the prompt holds something that is no token: give whole numbers")
        if self.max_tokens is not None:
            _in_range("max_tokens", self.max_tokens, 1, 1 << 24, whole=True)
        texts = all(isinstance(text, str) and 0 < len(text) <= MAX_STOP_LENGTH for text in self.stop)
        if len(self.stop) > MAX_STOPS or not texts:
            raise InvalidRequest(f"stop: give at most {MAX_STOPS} texts of 1 to {MAX_STOP_LENGTH} characters")
