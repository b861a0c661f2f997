"""One JSON object of a checkpoint, read with typed getters, because nothing in a file can be taken on trust."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..runtime.errors import BadModel

if TYPE_CHECKING:
    from pathlib import Path

LARGEST = 2**31 - 1
"""No size in a checkpoint is larger; libllama counts tokens, rows and layers in 32 bits."""

_LARGEST_FLOAT = 3.4e38


@dataclass(frozen=True, slots=True)
class Fields:
    """The values of one JSON object; ``name`` says in messages which one.  A missing or null key is its default."""

    name: str
    values: dict[str, Any] = field(default_factory=dict)

    def get(self, key: str) -> Any:
        """Return the value as it stands, None for a missing one."""
        return self.values.get(key)

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a positive whole number.  Raises BadModel if it is missing without a default, or anything else."""
        value = self._value(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= LARGEST:
            raise self._wrong(key, value, "a positive whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a positive number that a float32 can hold.  Raises BadModel as ``integer`` does."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _LARGEST_FLOAT:
            raise self._wrong(key, value, "a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false.  Raises BadModel for anything else."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def table(self, key: str) -> Fields:
        """Return the object below ``key``, empty if there is none.  Raises BadModel for anything else."""
        value = self._value(key, {})
        if not isinstance(value, dict):
            raise self._wrong(key, value, "an object")
        return Fields(f"{self.name}: {key}", value)

    def items(self, key: str) -> list[Any]:
        """Return the list below ``key``, empty if there is none.  Raises BadModel for anything else."""
        value = self._value(key, [])
        if not isinstance(value, list):
            raise self._wrong(key, value, "a list")
        return value

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise BadModel(f"{self.name}: {key} is missing")
        return value

    def _wrong(self, key: str, value: Any, wanted: str) -> BadModel:
        return BadModel(f"{self.name}: {key} is {shortened(value)}, not {wanted}")


def shortened(value: Any) -> str:
    """Return a value as a message may show it: at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def parse_object(name: str, data: bytes) -> Fields:
    """Parse one JSON object in UTF-8.  Raises BadModel for anything else."""
    try:
        value = json.loads(data.decode("utf-8"))
        if b"\\u" in data:  # an escape can smuggle in half a character, which no file can hold
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:  # a UnicodeError is a ValueError
        raise BadModel(f"{name} is not JSON", shortened(str(error))) from None
    if not isinstance(value, dict):
        raise BadModel(f"{name} is not a JSON object")
    return Fields(name, value)


def read_object(path: Path) -> Fields:
    """Read one JSON object from a file.  Raises BadModel if it can not be read or is none."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadModel(f"{path.name} can not be read", error.strerror or str(error)) from None
    return parse_object(path.name, data)
