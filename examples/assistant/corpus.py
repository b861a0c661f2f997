"""Examples: conversations that end with a request, and the action that answers it.

`command`, `refusal` and `follow_up` make one of a split; `training` is an endless stream; `held_out` the fixed sets
the model is judged by.
Three things keep the sets apart: normal forms of frames (`frames.py`), pairs of slot values (`slots.py`), and topics
(`topics.py`).
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .follow_ups import follow_ups
from .frames import frames_in
from .home import INTENTS, NUMBERS, compact
from .sentences import sentence
from .slots import allowed, value
from .speech import dress, fill, finish, mistype

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .frames import Frame
    from .home import Action, Value

SEED = 20260
KINDS = ("plain", "follow_up", "typo", "refusal")
REFUSALS = ("unsupported", "unsafe", "unclear")
QUESTIONS = ("what", "is", "how", "who", "did", "does", "has", "can", "when", "why", "do")
RARE = frozenset(("pause", "resume", "next", "previous", "mute", "volume", "label", "timer"))
SYSTEM_LINES = (
    "You are a helpful assistant.",
    "You are the assistant of this home.",
    "Answer with one short sentence.",
    "You control a smart home and a small rover.",
    "You are a voice assistant. Be brief.",
    "Reply briefly.",
)


@dataclass(frozen=True, slots=True)
class Turn:
    """What was said in one exchange: the user's words, the frame behind them, and the action they ask for."""

    text: str
    frame: Frame
    action: Action


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation and the action it ends with. `kind` is one of `KINDS`, `split` one of `frames.SPLITS`."""

    kind: str
    split: str
    turns: tuple[Turn, ...]
    system: str | None = None
    spoken: tuple[bool, ...] = ()  # for each earlier turn: did the assistant answer with the sentence (or the JSON)

    @property
    def action(self) -> Action:
        """The action asked for."""
        return self.turns[-1].action

    @property
    def text(self) -> str:
        """The last thing the user said."""
        return self.turns[-1].text

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as chat messages, the last of them the user's."""
        said = [{"role": "system", "content": self.system}] if self.system else []
        for turn, spoken in zip(self.turns, (*self.spoken, None), strict=True):
            said.append({"role": "user", "content": turn.text})
            if spoken is not None:
                said.append({"role": "assistant", "content": sentence(turn.action) if spoken else compact(turn.action)})
        return said


def _values(intent: str, split: str, rng: random.Random) -> dict[str, Value]:
    """Return slot values for an intent whose action the split allows."""
    spec = INTENTS[intent]
    while True:
        values = {slot: value(slot, rng, split) for slot in spec.slots.values()}
        if allowed(spec.build(values), split):
            return values


def _pending(name: str, split: str, rng: random.Random) -> tuple[dict[str, Value], Action]:
    """Return what was said of an incomplete request, and the complete action behind it."""
    full = f"{name}_{rng.choice(('minutes', 'minutes', 'seconds', 'hours'))}" if name in ("timer", "label") else name
    values = _values(full, split, rng)
    return values, INTENTS[full].build(values)


def _turn(
    frame: Frame, values: dict[str, Value], action: Action, split: str, rng: random.Random, *, typo: bool
) -> Turn:
    """Return a turn that says a frame with its slots filled."""
    text = dress(fill(frame, values, split, rng), frame, rng)
    if typo:
        text = mistype(text, rng)
    return Turn(finish(text, rng, question=frame.template.split(" ", 1)[0] in QUESTIONS), frame, action)


@functools.cache
def _weights(split: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Return the intents a plain command of a split may have, and how often."""
    heavy = {"on": 3.0, "off": 3.0, "temperature": 1.5, "sensor": 1.5, "color": 1.5, "brightness": 1.5}
    names = tuple(n for n in frames_in(split) if not n.startswith("follow:") and n not in REFUSALS)
    light = {n: 0.35 for n in names if n.startswith("ask:")} | {"greeting": 0.5, "thanks": 0.5, "goodbye": 0.5}
    light |= {n: 0.6 for n in names if n.split("_")[0] in RARE}
    if split == "train":  # copying digits takes the most practice
        heavy |= {n: 3.0 for n, spec in INTENTS.items() if not NUMBERS.keys().isdisjoint(spec.slots.values())}
    return names, tuple({**light, **heavy}.get(n, 1.0) for n in names)


def _opening(intent: str, split: str, rng: random.Random, *, typo: bool) -> tuple[Turn, Action]:
    """Return a first turn, and the action its speaker has in mind, which differs when a slot is missing."""
    frame = rng.choice(frames_in(split)[intent])
    if intent.startswith("ask:"):
        values, meant = _pending(intent[4:], split, rng)
        return _turn(frame, values, INTENTS[intent].build({}), split, rng, typo=typo), meant
    values = _values(intent, split, rng) if intent not in REFUSALS else {}
    if intent in REFUSALS:
        values = {s: value(s, rng, "train") for s in ("room", "device", "door") if f"{{{s}}}" in frame.template}
    action = INTENTS[intent].build(values)
    return _turn(frame, values, action, split, rng, typo=typo), action


def command(split: str, rng: random.Random, *, typo: bool = False, intent: str | None = None) -> Example:
    """Return a plain command: one turn, any intent that is no refusal."""
    names, weights = _weights(split)
    turn, _ = _opening(intent or rng.choices(names, weights)[0], split, rng, typo=typo)
    return Example("typo" if typo else "plain", split, (turn,))


def refusal(split: str, rng: random.Random, *, typo: bool = False) -> Example:
    """Return a request that must be declined."""
    intent = rng.choices(REFUSALS, (5, 2, 2))[0]
    return Example("refusal", split, (_opening(intent, split, rng, typo=typo)[0],))


def _next(last: Turn, meant: Action, split: str, rng: random.Random, *, typo: bool) -> Turn | None:
    """Return a follow-up to a turn, or None when the split has none that fits."""
    makers = {k: m for k, m in follow_ups(last.action, meant).items() if f"follow:{k}" in frames_in(split)}
    for _ in range(8 if makers else 0):
        kind = rng.choice(sorted(makers))
        action, values = makers[kind](split, rng)
        if allowed(action, split):
            return _turn(rng.choice(frames_in(split)[f"follow:{kind}"]), values, action, split, rng, typo=typo)
    return None


def follow_up(split: str, rng: random.Random, *, typo: bool = False) -> Example:
    """Return a conversation of two or three turns whose last turn means nothing without the turn before."""
    before = "train" if split == "validation" else split
    names, weights = _weights(before)
    while True:
        turn, meant = _opening(rng.choices(names, weights)[0], before, rng, typo=False)
        turns = [turn]
        for _ in range(2 if rng.random() < 0.25 else 1):
            after = _next(turns[-1], meant, split, rng, typo=typo)
            if after is not None:
                turns.append(after)
        if len(turns) > 1:
            return Example("follow_up", split, tuple(turns), spoken=tuple(rng.random() < 0.6 for _ in turns[1:]))


def _unrelated(split: str, rng: random.Random) -> Example:
    """Return a conversation whose last turn is a new request that owes nothing to what was said before."""
    before = follow_up(split, rng) if rng.random() < 0.3 else (refusal if rng.random() < 0.2 else command)(split, rng)
    while True:
        new = (refusal if rng.random() < 0.2 else command)(split, rng)
        if new.action.get("reason") != "unclear" and new.action["action"] != "ask":
            turns = (*before.turns, new.turns[0])
            return Example(new.kind, split, turns, spoken=tuple(rng.random() < 0.6 for _ in turns[1:]))


def training(seed: int, split: str = "train") -> Iterator[Example]:
    """Yield examples for ever: 52 % commands, 26 % follow-ups, 16 % refusals, the rest after unrelated talk."""
    rng = random.Random(seed)
    while True:
        typo = rng.random() < 0.18
        match rng.random():
            case x if x < 0.52:
                made = command(split, rng, typo=typo)
            case x if x < 0.78:
                made = follow_up(split, rng, typo=typo)
            case x if x < 0.94:
                made = refusal(split, rng, typo=typo)
            case _:
                made = _unrelated(split, rng)
        yield replace(made, system=rng.choice(SYSTEM_LINES)) if rng.random() < 0.08 else made


def examples(kind: str, count: int, split: str = "held_out", seed: int = SEED) -> list[Example]:
    """Return `count` different examples of a kind, the same for the same seed; plain commands go round the intents."""
    rng = random.Random(f"{seed}/{split}/{kind}")
    intents = sorted(_weights(split)[0])
    found: dict[tuple[str, ...], Example] = {}
    turn = 0
    while len(found) < count:
        turn += 1
        if kind in ("plain", "typo"):
            made = command(split, rng, typo=kind == "typo", intent=intents[turn % len(intents)])
        else:
            made = {"follow_up": follow_up, "refusal": refusal}[kind](split, rng)
        found.setdefault(tuple(m["content"].lower().strip("?!. ") for m in made.messages), made)
    return list(found.values())


@functools.cache
def held_out() -> dict[str, tuple[Example, ...]]:
    """Return the held-out sets: 1,200 commands, 300 follow-ups, 300 commands with typing errors, 300 refusals."""
    sizes = {"plain": 1200, "follow_up": 300, "typo": 300, "refusal": 300}
    return {kind: tuple(examples(kind, size)) for kind, size in sizes.items()}
