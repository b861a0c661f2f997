"""Durations as people write them: ``250ms``, ``5s``, ``10min``, ``2h``; and back.  Sizes, written exactly.

A bare number is no duration: nobody remembers whether it was seconds or milliseconds.
"""

from __future__ import annotations

import re

from ..runtime.errors import ConfigError

DURATIONS = "write a duration with its unit: 250ms, 5s, 10min or 2h"

_MILLISECONDS = {"h": 3_600_000, "min": 60_000, "s": 1000, "ms": 1}
_SIZES = {"TiB": 1 << 40, "GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "B": 1}


def parse_duration(text: object) -> float:
    """Return seconds.  Raises ConfigError, with the units, for anything but a text of a number and its unit."""
    match = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*(ms|s|min|h)\s*", text) if isinstance(text, str) else None
    if not match:
        raise ConfigError(f"{text!r} is not a duration: {DURATIONS}")
    return float(match[1]) * _MILLISECONDS[match[2]] / 1000


def format_duration(seconds: float) -> str:
    """Write seconds with the largest unit that needs no fraction, to the millisecond; `parse_duration` reads it."""
    count = round(1000 * seconds)
    unit = next(unit for unit, size in _MILLISECONDS.items() if count % size == 0 and (count or unit == "s"))
    return f"{count // _MILLISECONDS[unit]}{unit}"


def exact_size(size: int) -> str:
    """Write bytes with the largest binary unit that needs no fraction; ``0`` is ``0``."""
    unit = next(unit for unit, whole in _SIZES.items() if size % whole == 0)
    return f"{size // _SIZES[unit]}{unit}" if size else "0"
