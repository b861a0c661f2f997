"""Values for slots, and which pairs of them a split may see."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .frames import drawn_split
from .home import NUMBERS, WORDS, pairs
from .numbers import HELD_NUMBERS

if TYPE_CHECKING:
    import random

    from .home import Action, Value

# What people mostly say, where more is possible.
EVERYDAY = {**NUMBERS, "minutes": (1, 120), "seconds": (5, 90), "hours": (1, 24), "cm": (5, 900), "angle": (5, 360)}
# Between which steps a number is drawn; each as often as the next.
STEPS = {**dict.fromkeys(("percent", "minutes", "seconds"), (1, 5, 10)), **dict.fromkeys(("cm", "angle"), (5, 10))}


def _odd(slot: str, number: int) -> bool:
    """Return whether nobody would ask for this many centimeters or degrees."""
    return slot in ("cm", "angle") and number <= 90 and number % 5 != 0


def _practice(slot: str, rng: random.Random) -> int:
    """Return a number to practise copying with: often long, often with a digit twice, too many to know by heart."""
    low, high = NUMBERS[slot]
    while True:
        digits = rng.choices((1, 2, 3, 4), (2, 6, 4, 3))[0]
        drawn = rng.randint(10 ** (digits - 1), 10**digits - 1)
        if rng.random() < 0.15:
            text = str(drawn)
            drawn = int(rng.choice((text[0] + text, text[:-1] + text[-2:][:1], text[0] * digits))[:digits])
        meters = drawn // 100 if slot == "cm" and drawn % 100 == 0 else 0
        if low <= drawn <= high and drawn not in HELD_NUMBERS and meters not in HELD_NUMBERS:
            return drawn


def number(slot: str, rng: random.Random, split: str) -> int:
    """Return a value of a number slot, round ones more often; held-out numbers in the held-out split alone.

    Validation and held-out keep to everyday numbers.
    """
    if split == "train" and rng.random() < 0.6:
        return _practice(slot, rng)
    low, high = EVERYDAY[slot]
    if split == "held_out" and rng.random() < 0.35:
        fitting = [n for n in sorted(HELD_NUMBERS) if low <= n <= high and not _odd(slot, n)]
        if fitting:
            return rng.choice(fitting)
    while True:
        step = rng.choice(STEPS.get(slot, (1,)))
        value = rng.randint(low, high) // step * step
        if slot == "cm" and rng.random() < 0.3:
            value = 100 * rng.randint(1, 9)
        if slot == "temp" and rng.random() < 0.6:
            value = rng.randint(15, 26)
        if low <= value <= high and value not in HELD_NUMBERS:
            return value


def value(slot: str, rng: random.Random, split: str) -> Value:
    """Return a value for a slot; the light is asked for more often than other devices."""
    if slot in NUMBERS:
        return number(slot, rng, split)
    if slot == "device" and rng.random() < 0.15:
        return "light"
    return rng.choice(list(WORDS[slot]))


def allowed(action: Action, split: str) -> bool:
    """Return whether an action may appear in a split, by its pairs of slot values.

    Training sees only training pairs. In the other splits an action with two slots or more has a pair of that split.
    """
    found = {drawn_split(pair) for pair in pairs(action)}
    if split == "train":
        return found <= {"train"}
    if split == "validation":
        return not found or ("validation" in found and "held_out" not in found)
    return not found or "held_out" in found
