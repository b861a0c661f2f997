"""How many prompt tokens a step may take, from what steps have cost.

A step that decodes ``rows`` sequences takes about ``base(rows)``; each prompt token adds a price that grows with its
depth, the tokens before it.  Both are followed, so chunks adapt to the machine, to its neighbours and to growing
contexts.  What a step with prompts took more than expected is laid to the two by the squares of their parts (a Kalman
filter whose uncertainties are proportional to the values): to the price alone, a small chunk would look ever dearer.

There are two prices, because ggml's flash attention on a CPU works in tiles from `ModelInfo.tile` rows on, and row by
row below.  Measured on two cores (0.5B, q4_0, nothing decodes), milliseconds per step::

    depth        8 rows   16 rows   32 rows   64 rows
    0               35        55       114       196
    1000           138       258       503       289
    2000           233       450       896       367

So a *wide* step of 64 rows can be cheaper than a narrow one of 16: where nobody waits for its next token, deep prompts
are computed in wide steps, though one takes longer than the target.
"""

from __future__ import annotations

FIRST_CHUNK, FIRST_BESIDE = 32, 8  # tokens of the first chunk ever, alone and beside decoding sequences
FOLLOW = 0.25  # weight of the newest step
SLACK = 0.6  # what prompts may add to a step that takes longer than the target anyway, as a part of it
SLACK_ALONE = 2.0  # the same where nobody decodes: else most of such a step would go into reading the weights again
HURRY = 4.0  # targets that a step with nothing but control prompts may take
WORTH = 2.0  # how much cheaper per token a wide step must be to be taken though it exceeds the target
PROBE = 8  # steps with prompts in a row before one without
TRUST = 0.3  # how uncertain a base is beside a price: it is measured by itself now and then
LEAST_S = 1e-9  # no token is free
FIRST_BASE = 0.1  # of the first step for the base: too little is corrected by what follows, too much is not
SPAN = 128  # tokens of depth that share a price


class Pace:
    """The cost of steps.  ``target_s``: what a step should take at most; ``tile``: rows of a wide step, 0: no such."""

    def __init__(self, target_s: float, tile: int = 0) -> None:
        self.target_s, self.tile = target_s, tile
        self._base: dict[int, float] = {}  # decoding rows -> seconds
        self._mixed = 0  # steps in a row that computed prompts beside decoding sequences
        self._narrow: dict[int, float] = {}  # depth // SPAN -> seconds per token
        self._wide: dict[int, float] = {}

    def base_s(self, rows: int) -> float:
        """Return what a step with ``rows`` decoding sequences takes without prompts; 0.0 before anything is known."""
        return (_nearest(self._base, rows) or 0.0) if rows else min(self._base.values(), default=0.0)

    def allowance_s(self, rows: int, *, hurry: bool = False) -> float:
        """Return the seconds that prompts may add to a step that decodes ``rows`` sequences.

        ``hurry``: the prompt is of the most urgent class and nobody decodes, so few long steps end sooner.
        """
        base = self.base_s(rows)
        if hurry and not rows:
            return HURRY * self.target_s
        return max(self.target_s - base, (SLACK if rows else SLACK_ALONE) * base)

    def prompt_s(self, tokens: int, rows: int = 0) -> float:
        """Return about how long a prompt takes beside ``rows`` decoding sequences; 0.0 before anything is known."""
        where = tokens // 2 // SPAN
        prices = [price for price in (_nearest(self._narrow, where), _nearest(self._wide, where)) if price is not None]
        alone = tokens * min(prices, default=0.0)
        return alone + max(1.0, alone / self.allowance_s(rows)) * self.base_s(rows)

    def chunk(self, rows: int, room: int, pending: int, depth: int, *, hurry: bool = False) -> int:
        """Return how many of ``pending`` prompt tokens a step with ``rows`` decoding sequences takes.

        ``room``: rows that the batch has left; ``depth``: tokens before the first of them.  At least one, so that
        prompts get on where decoding alone takes longer than the target; but none in every so many steps, which then
        show what decoding alone takes by now.
        """
        self._mixed = self._mixed + 1 if rows else 0
        if self._mixed > PROBE:
            self._mixed = 0
            return 0
        most, allowance = min(room, pending), self.allowance_s(rows, hurry=hurry)
        narrow, wide = (_nearest(prices, depth // SPAN) for prices in (self._narrow, self._wide))
        if narrow is None:
            narrow = wide
        first = FIRST_BESIDE if rows else FIRST_CHUNK
        affordable = first if narrow is None else int(allowance / narrow)
        if not rows and pending - affordable <= affordable // 4:
            affordable = pending  # a small rest comes along
        if not self.tile:
            return min(most, max(1, affordable))
        least = max(1, self.tile - rows)  # tokens that make the step wide
        if most >= least and self._worth(narrow, wide, 0.0 if rows else WORTH, least / allowance):
            size = max(least, 0 if wide is None else int(allowance / wide))
            left = pending - size
            return min(most, size + (left if left < self.tile and not rows else 0))  # a rest would take narrow steps
        return min(most, max(1, min(affordable, least - 1)))

    @staticmethod
    def _worth(narrow: float | None, wide: float | None, factor: float, steps_per_s: float) -> bool:
        """Tell whether to take a wide step rather than narrow ones.

        ``factor``: how much cheaper it must be if it exceeds the allowance, 0: it must not.  Unknown prices are worth
        a try where that may exceed it.
        """
        price = narrow if wide is None else wide
        if price is not None and steps_per_s * price <= 1:
            return wide is None or narrow is None or wide <= narrow
        return factor > 0 and (wide is None or (narrow is not None and narrow >= factor * wide))

    def note(self, rows: int, prompt: int, depth: int, seconds: float) -> None:
        """Take note of a step; arguments as in `chunk`, ``prompt``: tokens of prompts that it computed."""
        if not prompt:
            _follow(self._base, rows, seconds)
            return
        prices = self._wide if self.tile and rows + prompt >= self.tile else self._narrow
        price, base = _nearest(prices, depth // SPAN), self.base_s(rows)
        if price is None:
            base = min(base, 0.9 * seconds) if rows and base else FIRST_BASE * seconds
            price = (seconds - base) / prompt
        surprise, parts = FOLLOW * (seconds - base - price * prompt), ((TRUST * base) ** 2, (price * prompt) ** 2)
        share = parts[1] / max(sum(parts), 1e-18)
        self._base[rows] = max(0.0, base + (1 - share) * surprise)
        prices[depth // SPAN] = max(LEAST_S, price + share * surprise / prompt)


def _nearest(known: dict[int, float], key: int) -> float | None:
    """Return what is known of a key, or of the one next to it."""
    if not known:
        return None
    value = known.get(key)
    return known[min(known, key=lambda other: abs(other - key))] if value is None else value


def _follow(known: dict[int, float], key: int, value: float) -> None:
    before = known.get(key, value)
    known[key] = before + FOLLOW * (value - before)
