"""A 20 Hz control loop with typed actions while a chat streams in the background.

    python -m arenite.examples.rover_loop [MODEL.gguf] [SECONDS]

Each tick asks for an action with a deadline of one tick, a fallback (stop) and a key of which only the newest request
counts.  The loop never waits longer than its tick, whatever the model does; it prints how it went.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Literal

import arenite

HZ = 20
ORDERS = ("drive forward 50 centimeters", "turn left by 90 degrees", "drive backward 1 meter", "stop the rover")


@dataclass(frozen=True)
class Move:
    """Drive so many centimeters in a direction."""

    action: Literal["rover_move"]
    direction: Literal["forward", "backward"]
    distance_cm: int


@dataclass(frozen=True)
class Turn:
    """Turn by so many degrees."""

    action: Literal["rover_turn"]
    direction: Literal["left", "right"]
    degrees: int


@dataclass(frozen=True)
class Stop:
    """Stand still."""

    action: Literal["rover_stop"]


STOP = Stop("rover_stop")


@dataclass
class Report:
    """What the loop saw: ticks, actions in time, those that move, fallbacks, the longest tick, characters of chat."""

    ticks: int = 0
    actions: int = 0
    moves: int = 0
    fallbacks: int = 0
    longest_s: float = 0.0
    chat: int = 0


def drive(model: arenite.Model, seconds: float) -> Report:
    """Run the loop beside a chat that only ends with its context; returns what happened."""
    def chat() -> arenite.Ticket:
        return model.submit("tell me what you can do", ignore_end=True, priority="background", temperature=1.0)

    report, tick, talk = Report(), 1 / HZ, chat()
    started = time.monotonic()
    while (now := time.monotonic()) < started + seconds:
        order = ORDERS[report.ticks // HZ % len(ORDERS)]
        ticket = model.submit(
            order, schema=Move | Turn | Stop, max_tokens=40, priority="control", deadline=tick, key="nav",
            policy="latest", fallback=STOP,
        )
        action = ticket.result()
        report.ticks += 1
        report.fallbacks += ticket.fell_back
        report.actions += not ticket.fell_back
        report.moves += isinstance(action, (Move, Turn))
        report.longest_s = max(report.longest_s, time.monotonic() - now)
        if talk.done:  # it reached the end of its context: begin another
            report.chat += len(talk.partial())
            talk = chat()
        time.sleep(max(0.0, now + tick - time.monotonic()))
    report.chat += len(talk.partial())
    talk.cancel(wait=True)
    return report


def main() -> None:
    """Drive the shipped assistant, or a model of yours."""
    from arenite.examples.assistant.demo import assistant  # noqa: PLC0415 - only where no model is given

    path = sys.argv[1] if len(sys.argv) > 1 else assistant()
    with arenite.Runtime() as runtime:
        model = runtime.load(path, context=2048, streams=4)
        report = drive(model, float(sys.argv[2]) if len(sys.argv) > 2 else 5.0)
    print(report)


if __name__ == "__main__":
    main()
