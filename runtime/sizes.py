"""Sizes as people write them: ``600MiB``, ``2GiB``, ``80%``, ``auto``; and back."""

from __future__ import annotations

import re

from .errors import ConfigError

_UNITS = {"": 1, "b": 1} | {f"{letter}{tail}": base**power
          for power, letter in enumerate("kmgt", 1)
          for tail, base in (("", 1024), ("b", 1000), ("ib", 1024))}


def parse_size(text: str | int, whole: int) -> int | None:
    """Return bytes, or None for ``auto``.

    ``whole`` (bytes) is what a percentage is of.  KiB, MiB, GiB, TiB are powers of 1024, KB to TB powers of 1000,
    a bare K to T is the power of 1024.  Raises ConfigError for anything else, zero and negative sizes included.
    """
    given = str(text).strip().lower()
    if given == "auto":
        return None
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*(%|[kmgt]?i?b?)", given)
    if not match or (match[2] not in _UNITS and match[2] != "%"):
        raise ConfigError(f"{text!r} is not a size: write 600MiB, 2GiB, 80% or auto")
    number = float(match[1])
    if match[2] == "%":
        if not 0 < number <= 100:
            raise ConfigError(f"{text!r}: a percentage lies between 0 and 100")
        return int(whole * number / 100)
    size = int(number * _UNITS[match[2]])
    if size <= 0:
        raise ConfigError(f"{text!r}: a size is larger than zero")
    return size


def format_size(size: float) -> str:
    """Write bytes with a binary unit and three or four significant digits: ``373.4 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} TiB"
