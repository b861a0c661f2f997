"""Python types as forms: a schema is made of the type, and the finished answer becomes an object of it.

pydantic models and msgspec structs describe and check themselves; neither package is imported here.
"""

from __future__ import annotations

import collections.abc as abstract
import dataclasses
import json
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, NoReturn

from .errors import BadAnswer, BadSchema
from .forms import OPTIONS, Form

Decoder = Callable[[str], Any]
Read = Callable[[Any], Any]
_LISTS: dict[Any, Callable[[list[Any]], Any]] = {
    list: list, abstract.Sequence: list, abstract.MutableSequence: list, abstract.Iterable: list,
    abstract.Collection: list, set: set, abstract.Set: set, abstract.MutableSet: set, frozenset: frozenset,
}
_MAPPINGS = (dict, abstract.Mapping, abstract.MutableMapping)
_SCALARS = {str: "string", bool: "boolean", int: "integer", float: "number", types.NoneType: "null"}


def form_of(schema: object) -> tuple[Form, Decoder]:
    """Return the form that ``schema`` asks for, and what turns a finished answer into an object.

    ``schema``: a JSON schema (a mapping or its text), a `Form`, or a type: a dataclass, TypedDict, Enum, pydantic model
    or msgspec struct, or an annotation of these and of str, int, float, bool, None, Literal, unions, list, tuple, set,
    dict with text keys, Any.  ``Annotated[int, {"minimum": 0}]`` adds to the schema; the mask holds to it.

    A JSON schema gives plain lists and dicts, a regular expression or grammar the text itself.  The decoder raises
    BadAnswer if the text, cut off perhaps, does not make an object.  Raises BadSchema.
    """
    if isinstance(schema, Form):
        return schema, _parse if schema.kind == "json_schema" else _as_it_is
    if isinstance(schema, (str, Mapping)):
        return Form.json_schema(schema), _parse
    reader = _Reader()
    top, read = reader.shape(schema)
    # The object's own checks follow, so of several that might fit any may be written.
    form = Form.json_schema({**top, "$defs": reader.definitions, OPTIONS: {"coerce_one_of": True}})

    def decode(text: str) -> Any:
        value = _parse(text)
        try:
            return read(value)
        except Exception as error:  # noqa: BLE001 - a class checks what it likes
            line = " ".join(str(error).split())
            message = f"the answer makes no {_name(schema)} ({line}): ask again, or widen the type"
            raise BadAnswer(message, text) from None

    return form, decode


def _as_it_is(text: str) -> str:
    return text


def _parse(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"the answer is not JSON ({error}): allow more tokens, or ask again", text) from None


def _refuse_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _refuse_number(digits)


def _refusal(kind: object) -> BadSchema:
    return BadSchema(
        f"{_name(kind)} makes no JSON schema: give a schema, a dataclass, an Enum, a pydantic model, a msgspec struct, "
        "or an annotation of such types"
    )


def _name(kind: object) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")[:60]


class _Reader:
    """Walks a type; ``definitions`` collects the classes, by name, so that they may contain themselves."""

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}
        self._classes: dict[type, tuple[str, list[Read]]] = {}

    def shape(self, kind: Any) -> tuple[dict[str, Any], Read]:
        """Return a type's schema, and what reads a JSON value as that type or raises ValueError."""
        if not isinstance(kind, abstract.Hashable):
            raise _refusal(kind)
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin is typing.Annotated:
            schema, read = self.shape(arguments[0])
            for part in arguments[1:]:
                schema = {**schema, **part} if isinstance(part, Mapping) else schema
            return schema, read
        if isinstance(kind, typing.NewType):
            return self.shape(kind.__supertype__)
        if kind is Any or kind is object:
            return {}, _anything
        if kind is None or kind in _SCALARS:
            return _scalar(types.NoneType if kind is None else kind)
        if origin is typing.Literal:
            return _choice([(value, value) for value in arguments], kind)
        if origin in {typing.Union, types.UnionType}:
            return _any_of([self.shape(part) for part in arguments], kind)
        if kind is tuple or origin is tuple:
            return self._tuple(arguments)
        base = origin or kind
        if base in _LISTS:
            return self._list(_LISTS[base], arguments[0] if arguments else Any)
        if base in _MAPPINGS:
            return self._mapping(arguments)
        if isinstance(kind, type) and not arguments:
            if issubclass(kind, Enum):
                return _choice([(member.value, member) for member in kind], kind)
            describe = self._description(kind)
            if describe is not None:
                return self._class(kind, describe)
        raise _refusal(kind)

    def _list(self, make: Callable[[list[Any]], Any], item: Any) -> tuple[dict[str, Any], Read]:
        schema, read = self.shape(item)
        return {"type": "array", "items": schema}, lambda value: make([read(part) for part in _is(list, value)])

    def _tuple(self, arguments: tuple[Any, ...]) -> tuple[dict[str, Any], Read]:
        if not arguments or arguments[1:] == (...,):
            return self._list(tuple, arguments[0] if arguments else Any)
        shapes = [self.shape(part) for part in arguments if part != ()]
        schema = {"type": "array", "prefixItems": [schema for schema, _ in shapes], "items": False,
                  "minItems": len(shapes)}

        def read(value: Any) -> tuple[Any, ...]:
            parts = zip(shapes, _is(list, value), strict=True)
            return tuple(read_part(part) for (_, read_part), part in parts)

        return schema, read

    def _mapping(self, arguments: tuple[Any, ...]) -> tuple[dict[str, Any], Read]:
        key, item = arguments or (str, Any)
        if key is not str:
            raise BadSchema(f"a mapping has keys of type {_name(key)}: JSON has texts only, so give dict[str, ...]")
        schema, read = self.shape(item)

        def read_all(value: Any) -> dict[str, Any]:
            return {name: read(part) for name, part in _is(dict, value).items()}

        return {"type": "object", "additionalProperties": schema}, read_all

    def _description(self, kind: type) -> Callable[[type], tuple[dict[str, Any], Read]] | None:
        """Return what describes classes of this sort, None if nothing does."""
        if dataclasses.is_dataclass(kind):
            return self._dataclass
        if typing.is_typeddict(kind):
            return self._typed_dict
        if hasattr(kind, "model_json_schema") and hasattr(kind, "model_validate_json"):
            return self._pydantic
        msgspec: Any = sys.modules.get("msgspec")  # loaded, if the class is one of its structs
        if msgspec is not None and issubclass(kind, msgspec.Struct):
            return self._msgspec
        return None

    def _class(
        self, kind: type, describe: Callable[[type], tuple[dict[str, Any], Read]]
    ) -> tuple[dict[str, Any], Read]:
        """Describe a class once; further mentions, its own among them, refer to that."""
        if kind not in self._classes:
            name = kind.__name__ if kind.__name__ not in self.definitions else f"{kind.__name__}-{len(self._classes)}"
            readers: list[Read] = []
            self._classes[kind] = name, readers
            self.definitions[name] = {}
            self.definitions[name], read = describe(kind)
            readers.append(read)
        name, readers = self._classes[kind]

        def read_it(value: Any) -> Any:
            return readers[0](value)  # known once the class that mentions itself is described

        return {"$ref": f"#/$defs/{name}"}, read_it

    def _dataclass(self, kind: Any) -> tuple[dict[str, Any], Read]:
        hints = _hints(kind)
        fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
        required = [
            name for name, field in fields.items()
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        ]
        schema, read = self._object({name: hints[name] for name in fields}, required)
        return schema, lambda value: kind(**read(value))

    def _typed_dict(self, kind: Any) -> tuple[dict[str, Any], Read]:
        hints, required = _hints(kind), []
        for name, hint in hints.items():
            marked = typing.get_origin(hint)  # of annotations kept as text, __required_keys__ knows nothing
            if marked is typing.Required or (marked is not typing.NotRequired and name in kind.__required_keys__):
                required.append(name)
            if marked in {typing.Required, typing.NotRequired}:
                hints[name] = typing.get_args(hint)[0]
        return self._object(hints, required)

    def _object(self, hints: dict[str, Any], required: list[str]) -> tuple[dict[str, Any], Read]:
        shapes = {name: self.shape(hint) for name, hint in hints.items()}
        schema = {"type": "object", "properties": {name: schema for name, (schema, _) in shapes.items()},
                  "required": required, "additionalProperties": False}

        def read(value: Any) -> dict[str, Any]:
            missing = [name for name in required if name not in _is(dict, value)]
            if missing:
                raise ValueError(f"{', '.join(missing)} missing")
            unknown = [name for name in value if name not in shapes]
            if unknown:
                raise ValueError(f"{', '.join(unknown)} unknown")
            return {name: shapes[name][1](part) for name, part in value.items()}

        return schema, read

    def _pydantic(self, kind: Any) -> tuple[dict[str, Any], Read]:
        schema = kind.model_json_schema(ref_template="#/$defs/{model}")
        return self._foreign(kind, schema, schema.pop("$defs", {})), lambda x: kind.model_validate_json(json.dumps(x))

    def _msgspec(self, kind: Any) -> tuple[dict[str, Any], Read]:
        msgspec: Any = sys.modules["msgspec"]
        (schema,), parts = msgspec.json.schema_components((kind,), ref_template="#/$defs/{name}")
        return self._foreign(kind, schema, parts), lambda value: msgspec.convert(value, kind)

    def _foreign(self, kind: type, schema: dict[str, Any], parts: dict[str, Any]) -> dict[str, Any]:
        """Take in a schema that a package made, and its parts; returns what describes the class itself."""
        own = schema.get("$ref", "").removeprefix("#/$defs/")
        for name, part in parts.items():
            closed = _close(part)
            if self.definitions.get(name) not in ({}, None, closed):
                raise BadSchema(f"two types of {_name(kind)} are called {name}: rename one")
            self.definitions[name] = closed
        return self.definitions[own] if own else _close(schema)  # type: ignore[no-any-return]


def _close(schema: Any) -> Any:
    """Let objects have no properties beyond the named ones: these packages ignore others, and models like to add."""
    if isinstance(schema, list):
        return [_close(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _close(value) for key, value in schema.items() if key not in {"default", "discriminator"}}
    if closed.get("type") == "object" and "properties" in closed:
        closed.setdefault("additionalProperties", False)
    return closed


def _hints(kind: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except Exception as error:  # noqa: BLE001 - annotations are somebody's program
        raise BadSchema(f"the annotations of {_name(kind)} can not be read ({error}): define its types at the top level"
                        ) from None


def _anything(value: Any) -> Any:
    return value


def _is(kind: type, value: Any) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{json.dumps(value)[:40]} is no {kind.__name__}")
    return value


def _scalar(kind: Any) -> tuple[dict[str, Any], Read]:
    schema = {"type": _SCALARS[kind]}
    if kind is float:
        return schema, lambda value: float(value if type(value) is int else _is(float, value))
    return schema, lambda value: _is(kind, value)


def _choice(pairs: list[tuple[Any, Any]], kind: Any) -> tuple[dict[str, Any], Read]:
    values = [value for value, _ in pairs]
    if not values or not all(isinstance(value, (str, int, types.NoneType)) for value in values):
        raise BadSchema(f"{_name(kind)} has values that are no texts, whole numbers, booleans or null: use such values")
    found = {json.dumps(value): item for value, item in pairs}  # to JSON, 1 and true differ

    def read(value: Any) -> Any:
        written = json.dumps(value)
        if written not in found:
            raise ValueError(f"{written[:40]} is none of its values")
        return found[written]

    return {"enum": values}, read


def _any_of(shapes: list[tuple[dict[str, Any], Read]], kind: Any) -> tuple[dict[str, Any], Read]:
    def read(value: Any) -> Any:
        for _, read_one in shapes:
            try:
                return read_one(value)
            except Exception:  # noqa: BLE001, S112 - the next may fit
                continue
        raise ValueError(f"{json.dumps(value)[:40]} is no {_name(kind)}")

    return {"anyOf": [schema for schema, _ in shapes]}, read
