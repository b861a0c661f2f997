"""Logits become a token.  numpy only, so that every backend samples alike.

One uniform number is drawn per sampled token, from the counter-based generator Philox4x64 (Salmon et al. 2011): its
state is (seed, draws), so a stream that must be rebuilt continues with the very numbers it would have drawn.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import numpy as np

from .errors import EngineFailed

if TYPE_CHECKING:
    from collections.abc import Sequence as Tokens

    from numpy.typing import NDArray

    from .request import Sampling

    Logits = NDArray[np.float32]


class Sampler:
    """Chooses the tokens of one answer.  ``seed`` is the one in use; ``draws`` counts random numbers taken."""

    def __init__(self, sampling: Sampling, draws: int = 0) -> None:
        self.sampling = sampling
        self.seed = sampling.seed if sampling.seed is not None else secrets.randbits(63)
        self.draws = draws
        self._bits = np.random.Philox(self.seed)
        self._uniform = np.random.Generator(self._bits)
        if draws:
            self._uniform.random(draws)

    def choose(self, logits: Logits, recent: Tokens[int]) -> int:
        """Return the next token.

        ``logits``: shape [vocabulary]; may be overwritten.  ``recent``: prompt and answer so far, newest last.
        Raises EngineFailed if the logits are not numbers.
        """
        rule = self.sampling
        if not np.isfinite(logits.max()):
            raise EngineFailed("the model computed values that are not finite: its weights or their type are at fault")
        if rule.penalised:
            penalise(logits, recent[-rule.penalty_window:], rule)
        if rule.greedy:
            return int(logits.argmax())
        tokens, probabilities = candidates(logits, rule)
        self.draws += 1
        at = int(np.searchsorted(np.cumsum(probabilities), self._uniform.random() * probabilities.sum(), "right"))
        return int(tokens[min(at, len(tokens) - 1)])


def penalise(logits: Logits, recent: Tokens[int], rule: Sampling) -> None:
    """Lower the logits of recent tokens in place; formulas as in llama.cpp's penalties sampler."""
    if not recent:
        return
    tokens, counts = np.unique(np.asarray(recent, dtype=np.int64), return_counts=True)
    chosen = logits[tokens]
    chosen = np.where(chosen <= 0, chosen * rule.repeat_penalty, chosen / rule.repeat_penalty)
    logits[tokens] = chosen - counts * rule.frequency_penalty - rule.presence_penalty


def candidates(logits: Logits, rule: Sampling) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the tokens that may be drawn, most likely first, and their weights (not normalised).

    The filters see the distribution at temperature 1, as in llama.cpp; the temperature shapes the draw among what
    they leave.  Exact: `_narrow` drops only what a filter would drop anyway.
    """
    tokens = _narrow(logits, rule)
    values = logits[tokens].astype(np.float64)
    order = np.lexsort((tokens, -values))  # ties go to the lower token, on every machine
    if rule.top_k:
        order = order[: rule.top_k]
    tokens, values = tokens[order], values[order]
    if rule.top_p < 1.0:
        whole = values if rule.top_k else logits.astype(np.float64)
        weights = np.exp(values - values[0])
        reached = np.cumsum(weights) / np.exp(whole - values[0]).sum()
        keep = int(np.searchsorted(reached, rule.top_p)) + 1
        tokens, values = tokens[:keep], values[:keep]
    if rule.min_p > 0.0:
        keep = int(np.count_nonzero(values >= values[0] + np.log(rule.min_p)))
        tokens, values = tokens[: max(1, keep)], values[: max(1, keep)]
    return tokens, np.exp((values - values[0]) / rule.temperature)


def _narrow(logits: Logits, rule: Sampling) -> NDArray[np.int64]:
    """Cut the vocabulary in one vectorised pass before anything is sorted; the result holds every survivor."""
    if rule.top_k and rule.top_k < len(logits):
        best = logits.max()
        for reach in (8.0, 16.0):
            near = np.flatnonzero(logits >= best - reach)
            if rule.top_k <= len(near) <= 64 * rule.top_k:
                return near
        edge = np.partition(logits, len(logits) - rule.top_k)[len(logits) - rule.top_k]
        return np.flatnonzero(logits >= edge)
    if rule.min_p > 0.0 and not rule.top_k:
        return np.flatnonzero(logits >= logits.max() + np.float32(np.log(rule.min_p) - 1e-3))
    return np.arange(len(logits))
