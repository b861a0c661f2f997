"""The shipped model keeps its accuracy: the held-out commands of the model card, asked of arenite itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import arenite
from arenite.examples.assistant.corpus import held_out
from arenite.examples.assistant.demo import assistant
from arenite.examples.assistant.evaluate import engine, score

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_held_out_commands_get_their_exact_action(cache: Path, kind: str) -> None:
    assert cache.exists()
    commands = held_out()["plain"]
    assert len(commands) >= 1000
    with arenite.Runtime(limit=4096) as runtime:
        model = runtime.load(assistant(kind), context=4096, streams=16)
        found = score(engine(model), {"plain": commands}, compare=False).scores["plain"]
        assert runtime.status().allocations_after_seal == 0
    assert found.action >= 0.95, "the goal of this project"
    assert found.sentence >= 0.95
