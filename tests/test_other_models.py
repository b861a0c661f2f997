"""Models beyond the plain Llama: sliding windows, recurrent states, encoders; and odd sizes of everything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import arenite

from . import checkpoints, other_models

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PROMPT = list(range(40, 60))


@pytest.mark.parametrize("write", [other_models.gemma2, other_models.mamba])
@pytest.mark.parametrize("settings", [{}, {"kv_type": "q8_0", "context": 256}, {"streams": 1, "batch": 8}])
def test_other_memories_fit_their_plan_and_answer(
    write: Callable[[Path], Path], settings: dict[str, object], tmp_path: Path
) -> None:
    path = write(tmp_path / "model.gguf")
    with arenite.Runtime() as runtime:
        model = runtime.load(path, **{"context": 1024, "streams": 4, "threads": 1, "batch": 64, **settings})
        answers = arenite.wait_all([
            model.submit(PROMPT, max_tokens=10, ignore_end=True) for _ in range(6)
        ], timeout=60)
        assert [answer.usage.answer_tokens for answer in answers] == [10] * 6
        status = runtime.status()
        assert status.allocations_after_seal == 0
        assert status.arena is not None
        assert status.arena.free <= 2 * 4096, "the plan holds to a page per cache"


def test_an_encoder_is_refused_by_name(tmp_path: Path) -> None:
    path = other_models.bert(tmp_path / "bert.gguf")
    with arenite.Runtime(arena="64MiB") as runtime, pytest.raises(arenite.UnsupportedModel, match="generate text"):
        runtime.load(path)


@pytest.mark.parametrize("settings", [
    {"context": 256, "streams": 200, "batch": 512}, {"context": 256, "streams": 255, "batch": 256},
    {"context": 300, "streams": 3, "batch": 4096}, {"context": 16, "streams": 1, "batch": 1},
    {"context": 257, "streams": 7, "batch": 7},
])
def test_any_sizes_load_and_answer(settings: dict[str, int]) -> None:
    with arenite.Runtime() as runtime:
        model = runtime.load(checkpoints.gguf_file("tiny", "f16"), threads=1, **settings)
        assert model.generate([5, 6, 7], max_tokens=4, ignore_end=True).usage.answer_tokens == 4
        assert runtime.status().allocations_after_seal == 0


def test_an_auto_arena_grows_when_it_stands_empty() -> None:
    path = checkpoints.gguf_file("tiny", "f16")
    with arenite.Runtime() as runtime:
        runtime.load(path, context=256, streams=1, batch=16, threads=1).close()
        model = runtime.load(path, context=8192, streams=8, batch=256, threads=1)
        assert model.generate([5, 6, 7], max_tokens=4, ignore_end=True).usage.answer_tokens == 4
        with pytest.raises(arenite.ArenaTooSmall):
            runtime.load(path, name="second", context=8192, threads=1)
