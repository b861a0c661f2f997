"""The JSON Schema of all actions, made from `home.INTENTS`; `model/action.schema.json` is its written form."""

from __future__ import annotations

import json
from typing import Any

from .home import INTENTS, NUMBERS, WORDS, Intent


def _value(intent: Intent, key: str) -> dict[str, Any]:
    """Return the schema of one key of an intent: a range of whole numbers or a list of words."""
    if key == "action":
        return {"const": intent.action}
    if key in intent.fixed:
        return {"enum": [intent.fixed[key]]}
    slot = intent.slots[key]
    if slot in NUMBERS:
        low, high = NUMBERS[slot]
        return {"type": "integer", "minimum": low, "maximum": high}
    return {"enum": list(WORDS[slot])}


def _joined(one: dict[str, Any] | None, other: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that allows what either allows."""
    if one is None or "enum" not in other:
        return other
    return {"enum": [*one["enum"], *(word for word in other["enum"] if word not in one["enum"])]}


def schema() -> dict[str, Any]:
    """Return the schema: one object form for each action and set of keys, keys in the order they are written."""
    forms: dict[tuple[str, ...], dict[str, Any]] = {}
    for intent in INTENTS.values():
        keys = ("action", *intent.fixed, *intent.slots)
        form = forms.setdefault((intent.action, *sorted(keys)), dict.fromkeys(keys))
        for key in keys:
            form[key] = _joined(form[key], _value(intent, key))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "action",
        "description": "What the assistant asks the home to do: compact JSON, keys in the order given here.",
        "anyOf": [
            {"type": "object", "properties": form, "required": list(form), "additionalProperties": False}
            for form in forms.values()
        ],
    }


def text() -> str:
    """Return the schema as it is written to a file."""
    return json.dumps(schema(), indent=1) + "\n"
