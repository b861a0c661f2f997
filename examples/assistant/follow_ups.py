"""Follow-ups: what may be said after an action, and the action it then means."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from .frames import frames_in
from .home import OPPOSITES, WORDS, Action, Value
from .numbers import say, written
from .slots import number, value

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    # From the split and the source of chance: the next action, and the slot values that its words need.
    Maker: TypeAlias = Callable[[str, random.Random], tuple[Action, dict[str, Value]]]

# Keys of actions that hold a number, and the slot behind each.
NUMBER_KEYS = {
    **{key: key for key in ("percent", "minutes", "seconds", "hours")},
    "value": "temp",
    "distance_cm": "cm",
    "degrees": "angle",
}
REPEATABLE = frozenset(
    ("dim", "brighten", "heating_up", "heating_down", "volume_up", "volume_down", "next", "rover_move", "rover_turn")
)


def _changed(action: Action, key: str, slot: str, split: str, rng: random.Random) -> tuple[Action, dict[str, Value]]:
    """Return the action with another value under a key, and the slot values that say so."""
    new = value(slot, rng, split)
    while new == action[key]:
        new = value(slot, rng, split)
    return {**action, key: new}, {slot: new}


def _numbered(action: Action, split: str, rng: random.Random) -> tuple[Action, dict[str, Value]]:
    """Return the action with another number, said with its unit or without."""
    key = next(k for k in action if k in NUMBER_KEYS)
    slot = NUMBER_KEYS[key]
    new = number(slot, rng, split)
    bare = slot not in ("cm", "angle") and rng.random() < 0.4
    return {**action, key: new}, {"again": written(new, rng) if bare else say(slot, new, rng)}


def _turned(action: Action, split: str, rng: random.Random) -> tuple[Action, dict[str, Value]]:
    """Return a rover action the other way round."""
    del split
    other = {"left": "right", "right": "left", "forward": "backward", "backward": "forward"}[str(action["direction"])]
    surfaces = {**WORDS["turn"], **WORDS["move"]}[other]
    return {**action, "direction": other}, {"back": rng.choice(surfaces)}


def _named(action: Action, name: str) -> Action:
    """Return another action on the same timer or the same room."""
    return {"action": name, **{k: v for k, v in action.items() if k in ("label", "room")}}


def _answers(slot: str, meant: Action) -> dict[str, Maker]:
    """Return the kind of follow-up that gives the assistant what it asked for."""
    if slot == "duration":
        key = next(k for k in meant if k in NUMBER_KEYS)
        return {"answer_duration": lambda _, rng: (meant, {"again": say(key, int(meant[key]), rng)})}
    key = "device" if slot == "door" else "room"
    return {f"answer_{slot}": lambda *_: (meant, {slot: meant[key]})}


def follow_ups(action: Action, meant: Action) -> dict[str, Maker]:
    """Return the kinds of follow-up that make sense after an action, each with what makes the next action.

    `meant` is the complete action behind a request that lacked something.
    """
    name = str(action["action"])
    if name == "ask":
        return _answers(str(action["slot"]), meant)
    kinds: dict[str, Maker] = {}
    no_words: dict[str, Value] = {}
    if action.get("room", "all") != "all":
        kinds["room"] = lambda split, rng: _changed(action, "room", "room", split, rng)
        if action.get("device") in WORDS["device"] and name in ("turn_on", "turn_off", "query_state"):
            kinds["target"] = lambda split, rng: _changed(action, "device", "device", split, rng)
    if name in ("lock", "unlock", "query_lock"):
        kinds["answer_door"] = lambda split, rng: _changed(action, "device", "door", split, rng)
    if any(key in NUMBER_KEYS for key in action):
        kinds["number"] = lambda split, rng: _numbered(action, split, rng)
    if name in OPPOSITES:
        undone = {**action, "action": OPPOSITES[name]}
        kinds["opposite"] = lambda *_: (undone, no_words)
        if f"follow:{OPPOSITES[name]}" in frames_in("train"):
            kinds[OPPOSITES[name]] = kinds["opposite"]
    if name in REPEATABLE:
        kinds["repeat"] = lambda *_: (action, no_words)
    if name in ("rover_move", "rover_turn"):
        kinds["direction"] = lambda split, rng: _turned(action, split, rng)
    if name in ("rover_move", "rover_turn", "rover_goto", "rover_dock"):
        kinds["halt"] = lambda *_: (_named({}, "rover_stop"), no_words)
    if name == "set_timer":
        kinds["cancel"] = lambda *_: (_named(action, "cancel_timer"), no_words)
        kinds["left"] = lambda *_: (_named(action, "query_timer"), no_words)
    return kinds
