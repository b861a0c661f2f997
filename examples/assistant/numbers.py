"""Numbers as people say them: digits or words, with or without a unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

_SMALL = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen
""".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
NUMBER_WORDS = "|".join(sorted([*_SMALL, *_TENS, "hundred"], key=len, reverse=True))
UNITS = (
    "percent|%|degrees celsius|degrees|degree|°c|°|minutes|minute|mins|min|seconds|second|secs|sec|hours|hour|"
    "centimeters|centimetres|centimeter|cm|meters|metres|meter|metre|m"
)
# Numbers that no training example contains, in digits or words: the held-out ones must be copied, not recalled.
HELD_NUMBERS = frozenset((23, 27, 34, 38, 46, 58, 63, 72, 85, 91, 115, 160, 235, 340, 480, 610, 720))


def in_words(value: int) -> str:
    """Return a number from 0 to 100 in words: 21 is "twenty one"."""
    if value < len(_SMALL):
        return _SMALL[value]
    if value == 100:
        return "one hundred"
    tens, ones = divmod(value, 10)
    return _TENS[tens - 2] + (f" {_SMALL[ones]}" if ones else "")


def written(value: int, rng: random.Random) -> str:
    """Return a number as digits, or now and then in words."""
    return in_words(value) if value <= 100 and rng.random() < 0.15 else str(value)


def say(slot: str, value: int, rng: random.Random) -> str:
    """Return the value of a number slot as somebody would say it, unit included.

    `slot` is the name in a template: a trailing 0 asks for the bare number, a trailing 1 for the adjective form.
    """
    kind, form = slot.rstrip("01"), slot[-1]
    number = written(value, rng)
    if form == "0":
        return number
    if kind == "percent":
        return number + rng.choice((" percent", " percent", "%" if number.isdigit() else " percent"))
    if kind == "temp":
        return number + rng.choice(
            (" degrees", " degrees", " degrees", " degrees celsius", "°" if number.isdigit() else " degrees")
        )
    if kind == "angle":
        return f"{number} degrees"
    if kind == "cm":
        return _distance(value, rng)
    return _time(kind, value, number, form == "1", rng)


def _distance(value: int, rng: random.Random) -> str:
    """Return a distance in centimeters, or in meters when it is a whole number of them."""
    if value == 50 and rng.random() < 0.15:
        return "half a meter"
    if value % 100 == 0 and rng.random() < 0.8:
        meters = value // 100
        unit = rng.choice(("meter", "meter", "m") if meters == 1 else ("meters", "meters", "metres", "m"))
        return f"{meters if unit == 'm' else rng.choice((str(meters), in_words(meters)))} {unit}"
    return f"{value} {rng.choice(('centimeters', 'cm', 'cm', 'centimetres'))}"


def _time(unit: str, value: int, number: str, adjective: bool, rng: random.Random) -> str:
    """Return a duration: "10 minutes", "10 minute" as an adjective, "half an hour"."""
    if adjective:
        return f"{number}{rng.choice('  -') if number.isdigit() else ' '}{unit[:-1]}"
    if rng.random() < 0.5:
        idiom = {("minutes", 30): "half an hour", ("minutes", 1): "a minute", ("hours", 1): "an hour"}.get(
            (unit, value)
        )
        if idiom is not None:
            return idiom
    short = {"minutes": ("mins", "min"), "seconds": ("secs", "sec"), "hours": ("hours",)}[unit]
    name = rng.choice(short) if rng.random() < 0.08 and number.isdigit() else unit
    return f"{number} {name[:-1] if value == 1 and name == unit else name}"
