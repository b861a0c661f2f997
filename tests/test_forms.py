"""Schemas, patterns and grammars as values, and Python types as schemas: what is taken, refused, read."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, NewType, NotRequired, Optional, TypedDict

import jsonschema
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

import arenite
from arenite.runtime.forms import MAX_OBJECTS, MAX_TEXT, Form
from arenite.runtime.typed import form_of

if TYPE_CHECKING:
    from collections.abc import Callable

Percent = NewType("Percent", int)


class Room(enum.Enum):
    KITCHEN = "kitchen"
    ATTIC = "attic"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclass(frozen=True)
class Light:
    room: Room
    percent: Annotated[Percent, {"minimum": 0, "maximum": 100}]
    colour: Literal["warm", "cold"] | None = None


@dataclass
class Tree:
    name: str
    children: list[Tree] = field(default_factory=list)


@dataclass(frozen=True)
class Checked:
    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low is above high")


class Place(TypedDict):
    x: float
    y: float
    label: NotRequired[str]


class Sensor(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=8)
    value: float | None = None


class House(pydantic.BaseModel):
    sensors: list[Sensor]
    inner: House | None = None


class Point(msgspec.Struct):
    x: int
    y: int = 0


class Turn(msgspec.Struct, tag="turn"):
    degrees: int


class Move(msgspec.Struct, tag="move"):
    to: Point


class Plan(msgspec.Struct):
    steps: list[Turn | Move]


@dataclass
class Mixed:
    sensor: Sensor
    points: dict[str, Point]
    tree: Tree


OBJECTS: list[tuple[Any, Any, Any]] = [
    (str, "a", "a"), (int, 5, 5), (float, 2, 2.0), (bool, True, True), (None, None, None), (Any, [1], [1]),
    (Percent, 7, 7), (Optional[int], None, None), (int | str, "a", "a"), (float | bool, True, True),  # noqa: UP045
    (Literal[1, True, "a"] | None, True, True), (list[int], [1, 2], [1, 2]), (tuple[int, ...], [1, 2], (1, 2)),
    (tuple[int, str], [1, "a"], (1, "a")), (set[str], ["a", "a"], {"a"}), (frozenset[int], [1], frozenset({1})),
    (dict[str, list[bool]], {"a": [True]}, {"a": [True]}), (list, ["a", 1], ["a", 1]), (dict, {"a": 1}, {"a": 1}),
    (Room, "attic", Room.ATTIC), (Level, 2, Level.HIGH),
    (Light, {"room": "kitchen", "percent": 40}, Light(Room.KITCHEN, Percent(40))),
    (Light, {"room": "kitchen", "percent": 0, "colour": "warm"}, Light(Room.KITCHEN, Percent(0), "warm")),
    (Tree, {"name": "a", "children": [{"name": "b"}]}, Tree("a", [Tree("b")])),
    (Place, {"x": 1, "y": 2.5}, {"x": 1.0, "y": 2.5}),
    (Sensor, {"name": "co2", "value": 3}, Sensor(name="co2", value=3.0)),
    (House, {"sensors": [], "inner": {"sensors": []}}, House(sensors=[], inner=House(sensors=[]))),
    (Point, {"x": 1}, Point(1)), (Plan, {"steps": [{"type": "turn", "degrees": 9}]}, Plan([Turn(9)])),
    (list[Point], [{"x": 1, "y": 2}], [Point(1, 2)]),
    (
        Mixed, {"sensor": {"name": "a"}, "points": {"p": {"x": 1}}, "tree": {"name": "t"}},
        Mixed(Sensor(name="a"), {"p": Point(1)}, Tree("t")),
    ),
]


@pytest.mark.parametrize(("kind", "value", "expected"), OBJECTS, ids=str)
def test_a_type_makes_a_schema_that_its_values_fit_and_reads_them(kind: Any, value: Any, expected: Any) -> None:
    form, decode = form_of(kind)
    jsonschema.Draft202012Validator.check_schema(form.schema)
    jsonschema.validate(value, form.schema)
    found = decode(json.dumps(value))
    assert found == expected
    assert type(found) is type(expected)
    assert form == form_of(kind)[0], "the same type is the same form, compiled once"
    assert hash(form) == hash(form_of(kind)[0])


WRONG: list[tuple[Any, str]] = [
    (int, "true"), (int, "1.5"), (bool, "1"), (str, "null"), (float, '"1"'), (float, "1e999"), (None, "0"),
    (Literal[1], "true"), (list[int], '[1,"a"]'), (list[int], "{}"), (tuple[int, str], "[1]"), (dict[str, int], "[]"),
    (Room, '"cellar"'), (Light, '{"room":"attic"}'), (Light, '{"room":"attic","percent":1,"more":2}'), (Light, "[]"),
    (Light, '{"room":"attic","per'), (Checked, '{"low":2,"high":1}'), (Place, '{"x":1}'), (int | str, "1.5"),
    (Sensor, '{"name":"longer than eight"}'), (Point, '{"x":"1"}'), (Plan, '{"steps":[{"type":"stop"}]}'),
    ({"type": "integer"}, "1 2"), ({"type": "number"}, "NaN"), ({"type": "array"}, "[" * 100_000),
    ({"type": "integer"}, "9" * 5000), (Tree, ""),
]


@pytest.mark.parametrize(("kind", "text"), WRONG, ids=lambda value: str(value)[:40])
def test_what_makes_no_object_is_a_bad_answer_with_its_text(kind: Any, text: str) -> None:
    _, decode = form_of(kind)
    with pytest.raises(arenite.BadAnswer) as caught:
        decode(text)
    assert caught.value.text == text
    assert "\n" not in str(caught.value)


def test_a_class_closes_its_objects_and_says_what_may_be_left_out() -> None:
    schema = form_of(Light)[0].schema
    assert schema is not None
    assert schema["$defs"]["Light"] == {
        "type": "object", "required": ["room", "percent"], "additionalProperties": False,
        "properties": {
            "room": {"enum": ["kitchen", "attic"]}, "percent": {"type": "integer", "minimum": 0, "maximum": 100},
            "colour": {"anyOf": [{"enum": ["warm", "cold"]}, {"type": "null"}]},
        },
    }
    for kind in (House, Plan):
        definitions = (form_of(kind)[0].schema or {})["$defs"]
        assert all(part["additionalProperties"] is False for part in definitions.values())


def test_a_schema_gives_plain_values_and_other_forms_their_text() -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    form, decode = form_of(schema)
    assert form == form_of(json.dumps(schema))[0] == form_of(form)[0] == Form.json_schema(schema)
    assert form.schema == schema
    assert form.text.index('"b"') < form.text.index('"a"'), "answers follow the schema's order"
    assert '"x-guidance":{"whitespace_flexible":false}' in form.text
    assert decode('{"b":1}') == {"b": 1}
    for other in (Form.regex("[0-9]+"), Form.lark('start: "a"')):
        assert form_of(other)[1]("12") == "12"
        assert other.schema is None
    spaced = Form.json_schema({"type": "array", "x-guidance": {"whitespace_flexible": True}})
    assert '"whitespace_flexible":true' in spaced.text


def test_a_form_can_not_be_changed() -> None:
    form = Form.regex("a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        form.text = "b"  # type: ignore[misc]


def loop() -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array"}
    schema["items"] = schema
    return schema


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


class Unreadable:
    pass


@dataclass
class Lost:
    what: "Nowhere"  # type: ignore[name-defined] # noqa: F821, UP037


class Fraction(enum.Enum):
    HALF = 0.5


REFUSED: dict[str, Callable[[], object]] = {
    "no JSON": lambda: form_of("{"),
    "a list": lambda: form_of("[1]"),
    "true": lambda: form_of("true"),
    "a number": lambda: form_of(5),
    "a value": lambda: form_of([int]),
    "bytes": lambda: form_of(bytes),
    "a class": lambda: form_of(Unreadable),
    "an unknown name": lambda: form_of(Lost),
    "keys": lambda: form_of(dict[int, str]),
    "an enum of fractions": lambda: form_of(Fraction),
    "NaN": lambda: Form.json_schema({"minimum": math.nan}),
    "NaN as text": lambda: Form.json_schema('{"minimum": NaN}'),
    "infinity": lambda: Form.json_schema('{"minimum": 1e999}'),
    "a set": lambda: Form.json_schema({"enum": {1}}),
    "half a character": lambda: Form.json_schema({"const": "\ud800"}),
    "64 bits": lambda: Form.json_schema({"maximum": 1 << 64}),
    "itself": lambda: Form.json_schema(loop()),
    "too deep": lambda: Form.json_schema(nested(120)),
    "far too deep": lambda: Form.json_schema(nested(10_000)),
    "far too deep, as text": lambda: Form.json_schema('{"items":' * 9_000 + "{}" + "}" * 9_000),
    "a huge enum": lambda: Form.json_schema({"enum": [f"value {i}" for i in range(100_000)]}),
    "objects": lambda: Form.json_schema({"anyOf": [{} for _ in range(MAX_OBJECTS)]}),
    "properties": lambda: Form.json_schema({"properties": {f"p{i}": {} for i in range(1_001)}}),
    "multiples": lambda: Form.json_schema({"multipleOf": 9_999_991}),
    "multiples together": lambda: Form.json_schema({"allOf": [{"multipleOf": 997}, {"multipleOf": 9.91}]}),
    "options": lambda: Form.json_schema({"x-guidance": 1}),
    "a long pattern": lambda: Form.regex("a" * (MAX_TEXT["regex"] + 1)),
    "a pattern of bytes": lambda: Form.regex(b"a"),  # type: ignore[arg-type]
    "a schema in a grammar": lambda: Form.lark('start: %json {"multipleOf": 9999991}'),
    "no schema in a grammar": lambda: Form.lark("start: %json x"),
    "a kind": lambda: Form("gbnf", ""),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=list(REFUSED))
def test_what_is_no_form_is_refused_in_one_line(make: Callable[[], object]) -> None:
    with pytest.raises(arenite.BadSchema) as caught:
        make()
    assert isinstance(caught.value, arenite.InvalidRequest)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20,
)


@given(JSON)
def test_any_value_is_a_form_or_refused(value: Any) -> None:
    for given_value in (value, {"properties": value}, {"enum": [value]}, {"x-guidance": value}):
        try:
            form, _ = form_of(given_value)
        except arenite.BadSchema:
            continue
        assert form == Form.json_schema(json.loads(form.text)), "what is written is read back as the same form"


@given(st.integers(1, 100_000), st.integers(-12, 4))
def test_multiples_count_by_their_digits(digits: int, exponent: int) -> None:
    assert Form.json_schema({"multipleOf": float(f"{digits}e{exponent}")}).kind == "json_schema"
