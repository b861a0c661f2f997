"""Answers of a given form on real models: forced tokens, typed results, refusals, and nobody else disturbed."""

from __future__ import annotations

import enum
import json
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pytest

import arenite
from arenite.examples import rover_loop
from arenite.examples.assistant.corpus import held_out
from arenite.examples.assistant.demo import SCHEMA, assistant
from arenite.examples.assistant.home import compact

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIMIT = {"max_tokens": 64}


class Room(enum.Enum):
    KITCHEN = "kitchen"
    BEDROOM = "bedroom"


@dataclass(frozen=True)
class Switch:
    action: Literal["turn_on", "turn_off"]
    device: str
    room: Room


@pytest.fixture(scope="module")
def model(cache: Path) -> Iterator[arenite.Model]:
    assert cache.exists()
    with arenite.Runtime() as runtime:
        yield runtime.load(assistant(), name="assistant", context=4096, streams=16)
        assert runtime.status().allocations_after_seal == 0


def test_forced_tokens_change_no_answer_to_any_held_out_command(cache: Path) -> None:
    assert cache.exists()
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    asked = [example.messages for made in held_out().values() for example in made]
    texts, counted = [], []
    for forced in (True, False):
        with arenite.Runtime(limit=8192) as runtime:
            model = runtime.load(
                assistant(), context=4096, streams=16, forced_tokens=forced, kv_type="f32", flash_attention=False
            )
            tickets = [model.submit(messages, schema=schema, **LIMIT) for messages in asked]
            answers = arenite.wait_all(tickets, 600)
            texts.append([answer.text for answer in answers])
            counted.append(runtime.status().models[0].counters)
    different = [(a, b) for a, b in zip(*texts, strict=True) if a != b]
    assert not different, different[:3]
    assert counted[0].forced_tokens > counted[0].answer_tokens / 2
    assert counted[0].steps < 0.7 * counted[1].steps
    assert counted[1].forced_tokens == 0
    plain = [compact(example.action) for example in held_out()["plain"]]
    right = sum(a == b for a, b in zip(texts[0], plain, strict=False))
    assert right > 0.9 * len(plain), "and they are right"


def test_a_python_type_is_what_comes_back(model: arenite.Model) -> None:
    found = model.generate("turn on the kitchen light", schema=Switch, **LIMIT)
    assert found == Switch("turn_on", "light", Room.KITCHEN)
    ticket = model.submit("turn off the bedroom light", schema=Switch, **LIMIT)
    assert json.loads("".join(ticket)) == {"action": "turn_off", "device": "light", "room": "bedroom"}
    assert ticket.result().room is Room.BEDROOM
    assert ticket.completion().reason == "stop"
    with pytest.raises(arenite.BadAnswer, match="cut off"):
        model.generate("turn on the kitchen light", schema=Switch, max_tokens=3)


def test_regular_expressions_and_grammars(model: arenite.Model) -> None:
    assert model.generate("what time is it", schema=arenite.Form.regex("[0-9]{2}:[0-9]{2}"), **LIMIT).text[2] == ":"
    answer = model.generate("yes or no", schema=arenite.Form.lark('start: "yes" | "no"'), **LIMIT)
    assert answer.text in {"yes", "no"}
    assert answer.reason == "stop"


ENDLESS = {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}


@pytest.mark.parametrize("schema", [
    {"type": "no such type"}, {"type": 5}, "not json", {"$ref": "#/$defs/gone"}, 5, {"enum": [float("nan")]},
    {"$defs": {"a": ENDLESS}, "$ref": "#/$defs/a"},
])
def test_what_is_no_schema_is_refused_and_the_engine_goes_on(model: arenite.Model, schema: object) -> None:
    running = model.submit("turn on the kitchen light", ignore_end=True, max_tokens=200)
    with pytest.raises(arenite.BadSchema):
        model.generate("hello", schema=schema, **LIMIT)
    assert running.result(60).usage.answer_tokens == 200


@pytest.mark.parametrize("pattern", [
    "(a{1,1000}){1,1000}", "((a|b|c|d|e|f){0,400}){0,400}x", "(.*a){40}.{500}", "(?:x+x+)+y{1000}",
])
def test_a_regex_that_bombs_other_engines_is_answered(model: arenite.Model, pattern: str) -> None:
    answer = model.submit("hello", schema=arenite.Form.regex(pattern), max_tokens=20, deadline=20.0).result(25)
    assert answer.reason in {"length", "stop"}


def test_a_regex_bomb_is_refused_with_the_reason_and_others_go_on(model: arenite.Model) -> None:
    running = model.submit("turn on the kitchen light", ignore_end=True, max_tokens=200)
    with pytest.raises(arenite.BadSchema, match="too many expressions"):
        model.submit("hello", schema=arenite.Form.regex("((((a{99}){99}){99}){99}){99}")).result(25)
    assert running.result(60).usage.answer_tokens == 200


def test_compiling_does_not_hold_up_running_streams(model: arenite.Model) -> None:
    slow = {"type": "integer", "multipleOf": 99_991}  # takes llguidance half a second
    stop, gaps = threading.Event(), []

    def listen() -> None:
        while not stop.is_set():
            last = None
            for _ in model.submit("tell me", ignore_end=True, max_tokens=300):
                now = time.perf_counter()
                if last is not None:
                    gaps.append(now - last)
                last = now

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        begin = time.perf_counter()
        model.generate("hello", schema=slow, max_tokens=2)
        took = time.perf_counter() - begin
    finally:
        stop.set()
        listener.join()
    assert took > 0.1, "else this shows nothing"
    assert sorted(gaps)[int(0.99 * len(gaps))] < took / 4, "no step waited for the compiler"


def test_the_form_is_part_of_a_conversation_in_a_session(model: arenite.Model) -> None:
    session = model.session("kitchen", ttl=60)
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert session.generate("turn on the kitchen light", schema=schema, **LIMIT).json()["room"] == "kitchen"
    follow = session.generate("and the bedroom too", schema=schema, **LIMIT)
    assert follow.json() == {"action": "turn_on", "device": "light", "room": "bedroom"}
    assert follow.usage.cached_tokens > 8, "what both turns begin with is warm"
    model.sessions.forget("kitchen")
    with pytest.raises(arenite.UnknownSession):
        model.submit("and the hall", session="kitchen")


def test_the_rover_drives_while_a_chat_streams(model: arenite.Model) -> None:
    report = rover_loop.drive(model, 2.0)
    assert report.ticks >= 20
    assert report.actions + report.fallbacks == report.ticks
    assert report.actions > 0
    assert report.moves > 0
    assert report.chat > 0
