"""What is asked for: frozen values, checked once when they are made."""

from __future__ import annotations

from collections.abc import ItemsView, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from .errors import InvalidRequest

if TYPE_CHECKING:
    from .forms import Form

Priority = Literal["control", "interactive", "background"]
Policy = Literal["latest", "queue", "reject"]
PRIORITIES: tuple[Priority, ...] = ("control", "interactive", "background")
POLICIES: tuple[Policy, ...] = ("latest", "queue", "reject")
MAX_STOPS, MAX_STOP_LENGTH, MAX_KEY_LENGTH = 16, 256, 256
LONGEST_DEADLINE = 86400.0  # seconds
SHOWN = 1e30  # numbers beyond it are not worth writing out


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidRequest(f"{name} is {value!r}: give one of {', '.join(allowed)}")


def _in_range(
    name: str, value: float, low: float, high: float, *, whole: bool = False, open_low: bool = False
) -> None:
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise InvalidRequest(f"{name} is {value!r}: give a {'whole number' if whole else 'number'}")
    if not low <= value <= high or (open_low and value == low):  # NaN fails the comparison
        shown = "not a number" if value != value else str(value) if abs(value) < SHOWN else "far outside"  # noqa: PLR0124
        ends = (f"{end:.0f}" if end == int(end) else f"{end:g}" for end in (low, high))
        raise InvalidRequest(f"{name} is {shown}: it lies {'above' if open_low else 'from'} {' to '.join(ends)}")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is chosen from the logits.

    ``temperature``        0: the most likely token (greedy).  Otherwise logits are divided by it, up to 100
    ``top_k``              keep the k most likely; 0: all
    ``top_p``              keep the smallest set whose probability reaches p (nucleus sampling, Holtzman et al. 2019)
    ``min_p``              keep what is at least min_p times as likely as the best (Nguyen et al. 2024)
    ``repeat_penalty``     divides positive and multiplies negative logits of recent tokens (Keskar et al. 2019),
                           0.01 to 100; 1: off
    ``frequency_penalty``  subtracted once per occurrence among recent tokens, -2 to 2
    ``presence_penalty``   subtracted once if the token occurs among recent tokens, -2 to 2
    ``penalty_window``     how many of the last tokens, prompt included, are "recent"
    ``seed``               None, -1 or 0xFFFFFFFF (random to llama.cpp and its server): drawn at random and reported
                           with the answer
    ``logit_bias``         token -> number from -100 to 100 that is added to its logit, at most 300 of them; a mapping
                           or pairs, kept as pairs in the order of the tokens
    ``logprobs``           report each token's log-probability and the so many most likely alternatives, 0 to 20, as
                           the model sees them, untouched by all of the above; None: off

    They work in this order, as in llama.cpp's default chain: bias, penalties, top_k, top_p, min_p, temperature.
    """

    MAX_BIASES: ClassVar[int] = 300
    RANDOM_SEEDS: ClassVar[tuple[int, int]] = (-1, 0xFFFFFFFF)

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_window: int = 64
    seed: int | None = None
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _in_range("temperature", self.temperature, 0.0, 100.0)
        _in_range("top_k", self.top_k, 0, 1 << 20, whole=True)
        _in_range("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _in_range("min_p", self.min_p, 0.0, 1.0)
        _in_range("repeat_penalty", self.repeat_penalty, 0.01, 100.0)
        _in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _in_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _in_range("penalty_window", self.penalty_window, 0, 1 << 20, whole=True)
        if self.seed is not None:
            _in_range("seed", self.seed, -1, (1 << 64) - 1, whole=True)
        if self.logprobs is not None:
            _in_range("logprobs", self.logprobs, 0, 20, whole=True)
        object.__setattr__(self, "logit_bias", self._checked_biases())  # frozen from here on

    def _checked_biases(self) -> tuple[tuple[int, float], ...]:
        given = self.logit_bias.items() if isinstance(self.logit_bias, Mapping) else self.logit_bias
        if not isinstance(given, (tuple, ItemsView)) or not all(isinstance(x, tuple) and len(x) == 2 for x in given):
            raise InvalidRequest("logit_bias: give a mapping from tokens to numbers")
        if len(given) > self.MAX_BIASES:
            raise InvalidRequest(f"logit_bias has {len(given)} entries: give at most {self.MAX_BIASES}")
        for token, bias in given:
            _in_range("logit_bias: a token", token, 0, (1 << 31) - 1, whole=True)
            _in_range(f"logit_bias of token {token}", bias, -100.0, 100.0)
        if len({token for token, _ in given}) < len(given):
            raise InvalidRequest("logit_bias names a token twice: give one bias per token")
        return tuple(sorted((token, float(bias)) for token, bias in given))

    def check_vocabulary(self, size: int) -> None:
        """Raise InvalidRequest if a token of ``logit_bias`` is none of a vocabulary of ``size``."""
        if self.biases and self.biases[-1][0] >= size:
            raise InvalidRequest(
                f"logit_bias names token {self.biases[-1][0]}: the vocabulary of this model ends at {size - 1}"
            )

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """``logit_bias`` as it is kept."""
        return self.logit_bias if isinstance(self.logit_bias, tuple) else ()

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken, without drawing."""
        return self.temperature == 0.0

    @property
    def penalised(self) -> bool:
        """Whether recent tokens change the logits."""
        active = self.repeat_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0
        return active and self.penalty_window > 0

    @property
    def untouched(self) -> bool:
        """Whether the logits are taken as the model computes them."""
        return not self.logit_bias and not self.penalised

    @property
    def filtered(self) -> bool:
        """Whether a draw is from fewer tokens than there are."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0

    @property
    def argmax_only(self) -> bool:
        """Whether the position of the largest logit is all that is asked for."""
        return self.greedy and self.untouched and self.logprobs is None


GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class Resume:
    """The beginning of an answer that another engine gave, and how many random numbers it had drawn for it."""

    tokens: tuple[int, ...] = ()
    draws: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, as tokens, and how to answer it.

    ``max_tokens``   None lets the answer run to the end of the context
    ``stop``         texts that end the answer and are not part of it
    ``ignore_end``   go on past the model's own end of text (benchmarks)
    ``priority``     ``control`` before ``interactive`` before ``background``
    ``deadline``     seconds from submission; then the answer ends with what there is
    ``key``          requests with the same key are about the same thing, and ``policy`` says what a new one does to
                     unfinished ones: ``latest`` ends them, ``queue`` waits for them, ``reject`` gives way to them
    ``form``         what the answer must look like
    ``resume``       what has been answered already; it counts for ``max_tokens`` and is not sent again
    """

    tokens: tuple[int, ...]
    max_tokens: int | None = None
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    ignore_end: bool = False
    priority: Priority = "interactive"
    deadline: float | None = None
    key: str | None = None
    policy: Policy = "queue"
    form: Form | None = None
    resume: Resume | None = None

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
        _one_of("priority", self.priority, PRIORITIES)
        _one_of("policy", self.policy, POLICIES)
        if self.deadline is not None:
            _in_range("deadline", self.deadline, 0.0, LONGEST_DEADLINE, open_low=True)
        if self.key is not None and (not isinstance(self.key, str) or not 0 < len(self.key) <= MAX_KEY_LENGTH):
            raise InvalidRequest(f"key: give a text of 1 to {MAX_KEY_LENGTH} characters")
