"""Logits become a token.  numpy only, so that every backend samples alike.

One uniform number is drawn per sampled token, from the counter-based generator Philox4x64 (Salmon et al. 2011): its
state is (seed, draws), so a stream that must be rebuilt continues with the very numbers it would have drawn.

From `NARROW_FROM` tokens of vocabulary on, one vectorised pass leaves few candidates before anything is sorted.  It
drops only what can not be drawn, so the token is that of the plain chain:

- with ``top_k`` the logits are laid out in `ROWS` rows.  k columns hold one logit each that reaches the k-th largest
  column maximum, so the k-th largest logit is no lower than that;
- with ``min_p`` the filter's own border is the floor;
- else the head of the distribution grows until it holds the share that ``top_p`` keeps or, without any filter, the
  point that was drawn.  No tail is cut off: what stays unsorted lies behind that share or that point.

The mass of a whole vocabulary is summed from single-precision exponentials, within `MASS_ERROR` of the exact sum.
The border of top_p without top_k, and the point of an unfiltered draw, are exact to this share of the mass.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .errors import EngineFailed
from .request import Sampling

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Tokens

    from numpy.typing import NDArray

    Logits = NDArray[np.float32]
    Indices = NDArray[np.int64]
    Weights = NDArray[np.float64]
    Mask = Callable[[Logits], None]

NARROW_FROM = 8192
ROWS = 64
REACHES = (5.0, 10.0)  # temperatures below the best; a head that is not found there is all there is
MASS_ERROR = 2e-6  # relative: 16 exponentials are added in single precision, their sums in double
COLDEST = 1e-6  # temperatures below draw as this one does: logits are no finer, and gap / temperature stays finite
FEW = 256  # up to here a stable sort is faster than sorting packed keys
NOT_FINITE = "the model computed values that are not finite: its weights or their type are at fault"
LOWEST = float(np.finfo(np.float32).min)  # what is not -inf, so not forbidden, is at least this


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely the model held a token: natural logarithms, from its own distribution.

    ``top``: (token, logprob) of the most likely ones, likeliest first; may hold the chosen token or not.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """The next token, and its log-probability if the request asks for it."""

    token: int
    logprob: TokenLogprob | None = None


def real_seed(seed: int | None) -> int:
    """Return ``seed``, or a random one in place of None, -1 and 0xFFFFFFFF, which mean "random" in the field.

    A random seed is a 32-bit number below 0xFFFFFFFF: every client can hold it and send it back.
    """
    return secrets.randbelow(0xFFFFFFFF) if seed is None or seed in Sampling.RANDOM_SEEDS else seed


def seed_of_copy(seed: int, copy: int) -> int:
    """Return the seed of the ``copy``-th answer to one request (n > 1); copy 0 has the request's own seed.

    The others are the SplitMix64 sequence (Steele et al. 2014) that starts at ``seed``, cut to 53 bits so that JSON
    carries them exactly.  The highest of these is always set: such a seed never means "random", and copies of
    neighbouring seeds share no stream, as seed + copy would.  Asking for one of them gives that answer alone.
    """
    if copy == 0:
        return seed
    mixed = (seed + copy * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (mixed ^ mixed >> 31) >> 11 | 1 << 52


class Sampler:
    """Chooses the tokens of one answer.  ``seed`` is the one in use; ``draws`` counts random numbers taken.

    A sampler that begins with ``draws`` goes on where another with the same seed stood after so many, at no cost.
    ``narrow_from``: the vocabulary from which candidates are narrowed; it changes the time, never the token.
    """

    def __init__(self, sampling: Sampling, draws: int = 0, narrow_from: int = NARROW_FROM) -> None:
        self.sampling = sampling
        self.narrow_from = narrow_from
        self.seed = real_seed(sampling.seed)
        self.draws = draws
        bits = np.random.Philox(self.seed)
        bits.advance(draws // 4)  # it makes four numbers at a time
        self._uniform = np.random.Generator(bits)
        self._uniform.random(draws % 4)
        self._biased = np.array([token for token, _ in sampling.biases], np.int64)
        self._biases = np.array([bias for _, bias in sampling.biases], np.float32)

    def pick(self, logits: Logits, recent: Tokens[int], mask: Mask | None = None) -> Choice:
        """Return the next token as `choose` does, with its log-probability if the request asks for it.

        Log-probabilities are those of the logits as they come in: before bias, mask, penalties and temperature.
        """
        count = self.sampling.logprobs
        if count is None:
            return Choice(self.choose(logits, recent, mask))
        raw = logits if self.sampling.untouched and mask is None else logits.copy()
        token = self.choose(logits, recent, mask)
        return Choice(token, logprobs_of(raw, token, count))

    def choose(self, logits: Logits, recent: Tokens[int], mask: Mask | None = None) -> int:
        """Return the next token.

        ``logits``: float32 of shape [vocabulary]; may be overwritten.  ``recent``: prompt and answer so far, newest
        last.  ``mask``: sets the logits of forbidden tokens to -inf in place; such a token is never returned.
        Raises EngineFailed if the logits are not numbers, or if no token is left.
        """
        rule = self.sampling
        best = int(logits.argmax())  # a NaN, if there is one
        if not math.isfinite(logits[best]):
            raise EngineFailed(NOT_FINITE)
        if mask is not None or not rule.untouched:
            self._change(logits, recent, mask)
            best = int(logits.argmax())
            if not math.isfinite(logits[best]):
                raise EngineFailed("no token may come next: the mask forbids all of them")
        if rule.greedy:
            return best
        self.draws += 1
        return draw(logits, rule, self._uniform.random(), self.narrow_from)

    def _change(self, logits: Logits, recent: Tokens[int], mask: Mask | None) -> None:
        """Apply bias, mask and penalties in place."""
        logits[self._biased] += self._biases
        if mask is not None:
            mask(logits)
        if self.sampling.penalised:
            penalise(logits, recent[-self.sampling.penalty_window:], self.sampling)


def penalise(logits: Logits, recent: Tokens[int], rule: Sampling) -> None:
    """Lower the logits of recent tokens in place; formulas as in llama.cpp's penalties sampler."""
    counter = Counter(recent)
    tokens = np.fromiter(counter, np.int64, len(counter))
    counts = np.fromiter(counter.values(), np.float32, len(counter))
    chosen = logits[tokens]
    chosen = np.where(chosen <= 0, chosen * rule.repeat_penalty, chosen / rule.repeat_penalty)
    logits[tokens] = chosen - (counts * rule.frequency_penalty + rule.presence_penalty)


def logprobs_of(logits: Logits, token: int, count: int) -> TokenLogprob:
    """Return the logarithm of the softmax at ``token`` and at the ``count`` most likely tokens.

    Tokens that can not come (-inf) are not among these.  Raises EngineFailed if ``token`` is one of them, or if a
    logit is not a number.
    """
    best = float(logits.max())
    total = best + math.log(_mass(logits, best)) if math.isfinite(best) else math.nan
    logprob = float(logits[token]) - total
    if not math.isfinite(logprob):
        raise EngineFailed(NOT_FINITE)
    if not count:
        return TokenLogprob(token, logprob)
    tokens, values = _sorted(logits, _largest(logits, count, NARROW_FROM))
    top = zip(tokens[:count].tolist(), (values[:count] - total).tolist(), strict=True)
    return TokenLogprob(token, logprob, tuple(top))


def draw(logits: Logits, rule: Sampling, uniform: float, narrow_from: int = NARROW_FROM) -> int:
    """Return the token at ``uniform``, from 0 to below 1, of the distribution that the filters leave."""
    if rule.filtered:
        tokens, weights = candidates(logits, rule, narrow_from)
        reached = weights.cumsum()
        whole = float(reached[-1])
    else:
        best, temperature = float(logits.max()), max(rule.temperature, COLDEST)
        whole = _mass(logits, best, temperature)
        tokens, _, reached = _head(logits, best, uniform * whole, temperature, narrow_from)
    at = int(reached.searchsorted(uniform * whole, "right"))
    return int(tokens[min(at, len(tokens) - 1)])


def candidates(logits: Logits, rule: Sampling, narrow_from: int = NARROW_FROM) -> tuple[Indices, Weights]:
    """Return the tokens that may be drawn, most likely first, ties to the lower, and their weights (not normalised).

    The filters see the distribution at temperature 1, as in llama.cpp; the temperature shapes the draw among what
    they leave.
    """
    border = math.log(rule.min_p) if rule.min_p else -math.inf
    whole = 0.0
    if rule.top_k:
        tokens, values = _sorted(logits, _largest(logits, rule.top_k, narrow_from))
        tokens, gaps = tokens[: rule.top_k], values[: rule.top_k] - values[0]
    else:
        best = float(logits.max())
        whole = _mass(logits, best) if rule.top_p < 1.0 else math.inf
        if rule.min_p:
            tokens, values = _sorted(logits, _near(logits, best, -border if len(logits) >= narrow_from else math.inf))
            gaps = values - best
        else:
            tokens, gaps, _ = _head(logits, best, rule.top_p * whole, 1.0, narrow_from)
    if rule.top_p < 1.0:
        reached = np.exp(gaps).cumsum()
        keep = int(reached.searchsorted(rule.top_p * (whole or float(reached[-1])))) + 1
        tokens, gaps = tokens[:keep], gaps[:keep]
    if rule.min_p:
        keep = int(np.count_nonzero(gaps >= border))
        tokens, gaps = tokens[:keep], gaps[:keep]
    return tokens, np.exp(gaps / max(rule.temperature, COLDEST))


def _head(
    logits: Logits, best: float, mass: float, temperature: float, narrow_from: int
) -> tuple[Indices, Weights, Weights]:
    """Return the most likely tokens, their gaps to the best, and the mass that is reached with each.

    They hold more than ``mass``, or are all that can come.
    """
    narrow = len(logits) >= narrow_from and mass < math.inf
    for reach in (*REACHES, math.inf) if narrow else (math.inf,):
        tokens, values = _sorted(logits, _near(logits, best, reach * temperature))
        gaps = values - best
        reached = np.exp(gaps / temperature).cumsum()
        if reached[-1] > mass:
            break
    return tokens, gaps, reached


def _mass(logits: Logits, best: float, temperature: float = 1.0) -> float:
    """Return the sum of exp((logit - best) / temperature) over the vocabulary."""
    weights = logits - np.float32(best)
    if temperature != 1.0:
        weights /= np.float32(temperature)
    np.exp(weights, out=weights)
    whole = len(weights) & ~15
    sums = weights[:whole].reshape(16, -1).sum(axis=0)
    return float(sums.sum(dtype=np.float64) + weights[whole:].sum(dtype=np.float64))


def _largest(logits: Logits, k: int, narrow_from: int) -> Indices:
    """Return, in order, tokens among which are the k most likely; ties with the k-th are all there."""
    size = len(logits)
    if k >= size:
        return _near(logits, 0.0, math.inf)
    columns = size // ROWS
    pool = logits if size < narrow_from or k > columns else logits[: columns * ROWS].reshape(ROWS, columns).max(axis=0)
    edge = float(np.partition(pool, len(pool) - k)[len(pool) - k])
    return (logits >= max(edge, LOWEST)).nonzero()[0]


def _near(logits: Logits, best: float, reach: float) -> Indices:
    """Return, in order, the tokens that are at most ``reach`` below the best, or a rounding error more."""
    floor = best - reach - 1e-6 * (abs(best) + reach)
    return (logits >= max(floor, LOWEST)).nonzero()[0]


def _sorted(logits: Logits, tokens: Indices) -> tuple[Indices, Weights]:
    """Return ``tokens``, which ascend, most likely first, ties to the lower, and their logits."""
    values = logits[tokens]
    if len(tokens) <= FEW:
        order = (-values).argsort(kind="stable")
        return tokens[order], values[order].astype(np.float64)
    # The bits of a float, read as a whole number, order as it does, but for the sign; the token breaks ties.
    bits = (values + np.float32(0.0)).view(np.int32)
    keys = (~(bits ^ (bits >> 31 & 0x7FFFFFFF))).astype(np.int64) << 32 | tokens
    keys.sort()
    tokens = keys & 0xFFFFFFFF
    return tokens, logits[tokens].astype(np.float64)
