"""What an answer must look like, as a value: a JSON schema, a regular expression or a Lark grammar.

Forms come from strangers, and llguidance's compiler can neither be interrupted nor survive its own recursion: what
would make it slow or overflow its stack is refused here, in plain arithmetic.  Measured with llguidance 1.9.1::

    multipleOf            time and memory follow the least common multiple: 27 ms at 1e4, 0.5 s at 1e5, no end at 1e7
    properties            time follows the square of an object's properties: 0.06 s at 1,000, 9 s at 10,000
    references, rules     a chain of them recurses: 4 to 16 KiB of stack per link
    the rest              bounded by llguidance's own limits, whatever the text says (see `grammar`)
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, NoReturn

from .errors import BadSchema

Kind = Literal["json_schema", "regex", "lark"]
MAX_TEXT: dict[Kind, int] = {"json_schema": 1 << 18, "regex": 1 << 15, "lark": 1 << 15}  # characters
MAX_DEPTH = 100  # of brackets; the JSON parser inside llguidance ends at 128
MAX_OBJECTS = 5_000  # in a schema: what a chain of references is made of
MAX_PROPERTIES = 1_000  # of one object
MAX_MULTIPLE = 100_000  # least common multiple of all multipleOf
LARGEST = (1 << 63) - 1
OPTIONS = "x-guidance"  # llguidance's own key for how JSON is written
COMPACT = {"whitespace_flexible": False}
_EMBEDDED = re.compile(r"%json\s*")


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer must look like.  Equal forms are compiled once; make one with the class methods.

    ``text`` is compact JSON, a pattern (syntax of the Rust crate ``regex``; it matches the whole answer) or a grammar
    (llguidance's Lark).  Raises BadSchema if a limit of this module is passed.
    """

    kind: Kind
    text: str

    def __post_init__(self) -> None:
        if self.kind not in MAX_TEXT:
            raise BadSchema(f"{self.kind!r} is no kind of form: give one of {', '.join(MAX_TEXT)}")
        if not isinstance(self.text, str):
            raise BadSchema(f"the {self.kind} is {type(self.text).__name__}: give a text")
        if len(self.text) > MAX_TEXT[self.kind]:
            raise BadSchema(
                f"the {self.kind} has {len(self.text):,} characters: give at most {MAX_TEXT[self.kind]:,}; a long list "
                "of values is better checked after the answer"
            )
        try:
            self.text.encode()
        except UnicodeEncodeError:
            raise BadSchema(f"the {self.kind} holds half a character (a lone surrogate): give whole ones") from None
        if self.kind == "json_schema":
            _check_schema(_read(self.text))
        elif self.kind == "lark":
            _check_embedded(self.text)

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> Form:
        """Make the form of JSON that fits ``schema``, given as a mapping or as JSON text.

        Without white space, and with properties in the order of the schema; a key ``x-guidance`` of the schema may
        say otherwise (see llguidance's documentation).
        """
        value = _read(schema) if isinstance(schema, str) else schema
        if not isinstance(value, Mapping):
            raise BadSchema(f"the schema is {type(value).__name__}: give a JSON object")
        options = value.get(OPTIONS, {})
        if not isinstance(options, Mapping):
            raise BadSchema(f"the schema's {OPTIONS} is {type(options).__name__}: give an object, or leave it out")
        return cls("json_schema", _write({**value, OPTIONS: {**COMPACT, **options}}))

    @classmethod
    def regex(cls, pattern: str) -> Form:
        """Make the form of a text that matches ``pattern`` from its first to its last character."""
        return cls("regex", pattern)

    @classmethod
    def lark(cls, grammar: str) -> Form:
        """Make the form of a text that ``grammar`` derives from its rule ``start``."""
        return cls("lark", grammar)

    @property
    def schema(self) -> dict[str, Any] | None:
        """The JSON schema without llguidance's options, for chat templates; None for other kinds."""
        if self.kind != "json_schema":
            return None
        return {key: value for key, value in json.loads(self.text).items() if key != OPTIONS}


def _write(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except RecursionError:
        raise BadSchema("the schema is nested too deeply: flatten it, or give parts of it names in $defs") from None
    except (TypeError, ValueError) as error:
        raise BadSchema(f"the schema is not JSON ({error}): use texts, finite numbers, lists and mappings") from None


def _read(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise BadSchema("the schema is nested too deeply: flatten it, or give parts of it names in $defs") from None
    except ValueError as error:
        raise BadSchema(f"the schema is not JSON: {error}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _check_schema(schema: object) -> None:
    """Walk over everything in a schema, known or not, and hold it to the limits."""
    if not isinstance(schema, dict):
        raise BadSchema(f"the schema is {type(schema).__name__}: give a JSON object")
    objects, multiple = 0, 1
    ahead: list[tuple[Any, int]] = [(schema, 1)]
    while ahead:
        value, depth = ahead.pop()
        if depth > MAX_DEPTH:
            raise BadSchema(f"the schema is nested deeper than {MAX_DEPTH}: give parts of it names in $defs")
        if isinstance(value, dict):
            objects += 1
            multiple = math.lcm(multiple, _multiple(value.get("multipleOf")))
            properties = value.get("properties")
            if isinstance(properties, dict) and len(properties) > MAX_PROPERTIES:
                raise BadSchema(f"an object has {len(properties):,} properties: give at most {MAX_PROPERTIES:,}")
            ahead.extend((part, depth + 1) for part in value.values())
        elif isinstance(value, list):
            ahead.extend((part, depth + 1) for part in value)
        elif isinstance(value, int) and not -LARGEST <= value <= LARGEST:
            raise BadSchema("the schema holds a whole number beyond 64 bits: leave the limit out or give a smaller one")
        elif isinstance(value, float) and not math.isfinite(value):
            raise BadSchema("the schema holds a number beyond the range of a double: give a smaller one")
    if objects > MAX_OBJECTS:
        raise BadSchema(f"the schema consists of {objects:,} objects: give at most {MAX_OBJECTS:,}")
    if multiple > MAX_MULTIPLE:
        raise BadSchema(
            f"multipleOf: the values have a least common multiple above {MAX_MULTIPLE:,}: give rounder ones, or check "
            "that after the answer"
        )


def _multiple(value: object) -> int:
    """Return what counts of a ``multipleOf``: its digits without leading and trailing zeros, as a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return 1
    digits = Decimal(repr(value)).normalize().as_tuple().digits
    return int("".join(map(str, digits))) or 1


def _check_embedded(grammar: str) -> None:
    """Hold the JSON schemas inside a grammar to the limits as well."""
    for found in _EMBEDDED.finditer(grammar):
        try:
            value, _ = json.JSONDecoder().raw_decode(grammar, found.end())
        except (ValueError, RecursionError):
            raise BadSchema(f"%json at character {found.start()} is not followed by a JSON object") from None
        _check_schema(value)
