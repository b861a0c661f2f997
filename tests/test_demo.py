"""The shipped assistant, as a stranger meets it: converted, quantized and answering."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import arenite
from arenite.adapters.terminal import Conversation
from arenite.examples.assistant.demo import SCHEMA, assistant

from .test_bad_input import command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def model(cache: Path) -> Iterator[arenite.Model]:
    """Give the assistant, loaded once."""
    assert cache.exists()
    with arenite.Runtime() as runtime:
        yield runtime.load(assistant(), name="assistant", context=2048, streams=4)
        assert runtime.status().allocations_after_seal == 0


def test_once_names_the_room_and_the_device_and_gives_the_action(cache: Path) -> None:
    done = command("demo", "--once", "turn on the kitchen light")
    assert done.returncode == 0, done.stderr
    sentence, action = done.stdout.splitlines()
    assert "kitchen" in sentence
    assert "light" in sentence
    assert json.loads(action) == {"action": "turn_on", "device": "light", "room": "kitchen"}
    assert "allocations after the seal: 0" in done.stderr
    kept = assistant()
    assert kept.is_relative_to(cache)
    before = kept.stat().st_mtime_ns
    shown = json.loads(command("demo", "--once", "Lock the front door!", "--json", "--quiet").stdout)
    assert shown["action"] == {"action": "lock", "device": "front_door"}
    assert kept.stat().st_mtime_ns == before, "the converted model is kept"


def test_a_conversation_from_standard_input(cache: Path) -> None:  # noqa: ARG001 - the folder must be set
    done = command("demo", "--quiet", text="turn on the light in the bedroom\nand the kitchen too\n")
    assert done.returncode == 0, done.stderr
    actions = [json.loads(line) for line in done.stdout.splitlines()[1::2]]
    assert [action["room"] for action in actions] == ["bedroom", "kitchen"]


def test_without_input_the_demo_shows_an_example(cache: Path) -> None:  # noqa: ARG001 - the folder must be set
    done = command("demo", "--quiet", text="")
    assert done.stdout.startswith("Turning on the kitchen light.\n")


def test_a_schema_turns_the_sentence_into_an_action(model: arenite.Model) -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    spoken = model.generate("switch off all the lights", max_tokens=64)
    acted = model.generate("switch off all the lights", max_tokens=64, schema=schema)
    assert (spoken.reason, acted.reason) == ("stop", "stop")
    assert acted.json()["action"] == "turn_off"
    with pytest.raises(arenite.BadAnswer, match="not JSON"):
        spoken.json()


def test_a_conversation_forgets_rather_than_overflow(model: arenite.Model) -> None:
    conversation = Conversation(model, {}, turns=1000)
    for _ in range(60):
        turn = conversation.say("turn on the kitchen light", lambda _piece: None)
    assert turn.sentence.text == "Turning on the kitchen light."
    with pytest.raises(arenite.ContextOverflow):
        conversation.say("kitchen " * 2000, lambda _piece: None)
