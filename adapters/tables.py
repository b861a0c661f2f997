"""TOML tables to frozen dataclasses: what a key may hold follows from its field's type, and its `Rule` if it has one.

Every refusal is a ConfigError that begins with the key's path and says what is allowed.
"""

from __future__ import annotations

import difflib
import types
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..runtime.errors import ConfigError
from .rules import LONGEST_SHOWN, Place, Rule, shown

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

T = TypeVar("T")
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def read_table(kind: type[T], table: Any, key: str, folder: Path) -> T:
    """Return an instance of the dataclass ``kind``; keys that are not in the table have its defaults."""
    return kind(**read_values(kind, table, key, folder))


def read_values(kind: type[Any], table: Any, key: str, folder: Path) -> dict[str, Any]:
    """Return the fields of the dataclass ``kind`` that stand in the table, each checked."""
    if not isinstance(table, dict):
        raise ConfigError(f"{key} is {shown(table)}: write a table, [{key}] with its keys below")
    hints = hints_of(kind)
    check_known(table, hints, f"{key}.")
    for each in fields(kind):
        if each.default is MISSING and each.default_factory is MISSING and each.name not in table:
            raise ConfigError(f"{key}.{each.name} is missing: it has no default")
    return {name: read_value(hints[name], value, Place(f"{key}.{name}", folder)) for name, value in table.items()}


def check_known(given: Iterable[str], known: Iterable[str], prefix: str = "") -> None:
    """Refuse the first key that is not known, with the one that it may be meant to be."""
    names = sorted(known)
    for key in given:
        if key not in names:
            near = did_you_mean(key, names)
            said = key if key.isidentifier() and len(key) <= LONGEST_SHOWN else shown(key)
            raise ConfigError(f"{prefix}{said} is unknown: {near}known are {', '.join(names)}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a question for a near miss, or an empty text."""
    near = difflib.get_close_matches(word.lower().replace("-", "_"), list(known), 1, 0.6)
    return f"did you mean {near[0]}? " if near else ""


def hints_of(kind: type[Any]) -> dict[str, Any]:
    """Return the types of a dataclass's fields, rules included."""
    return get_type_hints(kind, include_extras=True)


def rule_of(hint: Any) -> Rule | None:
    """Return the rule that a field's type, or the type of its items, names; None without one."""
    if get_origin(hint) is tuple:
        return rule_of(get_args(hint)[0])
    if get_origin(hint) is Annotated:
        return next((each for each in get_args(hint)[1:] if isinstance(each, Rule)), None)
    return None


def as_text(hint: Any, value: Any) -> str:
    """Return a field's value as it would stand in a file, for messages; lists by commas."""
    if isinstance(value, tuple):
        return ", ".join(as_text(get_args(hint)[0], each) for each in value) or "none"
    rule = rule_of(hint)
    if rule is not None:
        return rule.show(value) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def read_value(hint: Any, value: Any, place: Place) -> Any:
    """Return what a field of type ``hint`` holds for a value of a TOML file."""
    rule = rule_of(hint)
    if get_origin(hint) is tuple:
        return _read_list(get_args(hint)[0], value, place)
    if rule is not None:
        return rule.read(value, place)
    if not _fits(hint, value):
        near = did_you_mean(value, _choices(hint)) if isinstance(value, str) else ""
        raise ConfigError(f"{place.key} is {shown(value)}: {near}give {_allowed(hint)}")
    return value


def _read_list(hint: Any, value: Any, place: Place) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ConfigError(f"{place.key} is {shown(value)}: give a list, in brackets")
    return tuple(read_value(hint, each, Place(f"{place.key}[{at}]", place.folder)) for at, each in enumerate(value))


def _parts(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in {Union, types.UnionType} else (hint,)


def _choices(hint: Any) -> list[str]:
    return [choice for part in _parts(hint) if get_origin(part) is Literal for choice in get_args(part)]


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value is of a plain type, one of a Literal's texts, or fits one part of a union."""
    if isinstance(value, str) and value in _choices(hint):
        return True
    kinds = [part for part in _parts(hint) if get_origin(part) is not Literal]
    return type(value) in kinds or (float in kinds and type(value) is int)


def _allowed(hint: Any) -> str:
    words = [_WORDS[part] for part in _parts(hint) if part in _WORDS]
    choices = _choices(hint)
    return " or ".join([*words, *([f"one of {', '.join(choices)}"] if choices else [])])
