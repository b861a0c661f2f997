"""Many streams on real models: shared heads, suspension, equality with solo runs, other memories, the end."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import arenite
from arenite.benchmarks import shapes
from arenite.runtime.backends.llama import LlamaBackend
from arenite.runtime.backends.loader import Loader
from arenite.runtime.config import ModelOptions

from . import checkpoints, other_models

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

EXACT: dict[str, Any] = {"kv_type": "f32", "flash_attention": False, "threads": 1}


@pytest.fixture
def backend() -> Iterator[LlamaBackend]:
    loader = Loader("64MiB")
    options = ModelOptions(str(checkpoints.gguf_file("tiny", "q8_0")), context=512, streams=4, batch=64, threads=1)
    made = loader.load(options)
    assert isinstance(made, LlamaBackend)
    yield made
    made.close()
    loader.close()


def feed(backend: LlamaBackend, sequence: int, tokens: list[int], first: int = 0) -> np.ndarray[Any, Any]:
    """Compute tokens of one sequence; returns a copy of the last one's logits."""
    n, batch = len(tokens), backend.batch
    batch.tokens[:n], batch.positions[:n], batch.sequences[:n] = tokens, range(first, first + n), sequence
    batch.outputs[:n] = [0] * (n - 1) + [1]
    logits: np.ndarray[Any, Any] = backend.decode(n)[0].copy()
    return logits


def test_a_restored_sequence_is_byte_for_byte_what_was_saved(backend: LlamaBackend) -> None:
    feed(backend, 0, list(range(40, 90)))
    saved = backend.save(0, 0)
    expected = feed(backend, 0, [7], 50)
    backend.drop(0)
    feed(backend, 1, list(range(5, 25)))  # somebody else has the cells now
    assert backend.restore(0, 0, saved)
    assert backend.save(0, 0).tobytes() == saved.tobytes()
    assert np.allclose(feed(backend, 0, [7], 50), expected, atol=1e-3)


def test_a_sequence_that_shares_its_head_saves_and_restores_the_rest(backend: LlamaBackend) -> None:
    head, tail = list(range(40, 80)), list(range(100, 110))
    feed(backend, 0, head)
    backend.share(0, 1, 40)
    feed(backend, 1, tail, 40)
    whole, part = backend.save(1, 0), backend.save(1, 40)
    assert part.nbytes < whole.nbytes / 3
    backend.trim(1, 40)
    feed(backend, 2, list(range(5, 25)))
    assert backend.restore(1, 40, part)
    assert backend.save(1, 40).tobytes() == part.tobytes()
    assert backend.save(1, 0).nbytes == whole.nbytes
    backend.drop(0)  # the head lives on in who shares it
    assert np.isfinite(feed(backend, 1, [7], 50)).all()


def test_a_copy_for_which_there_is_no_room_is_refused_and_harms_nobody(backend: LlamaBackend) -> None:
    for at in range(0, 300, 50):
        feed(backend, 0, [9] * 50, at)
    saved = backend.save(0, 0)
    for at in range(0, 200, 50):
        feed(backend, 1, [8] * 50, at)
    assert not backend.restore(2, 0, saved)
    backend.drop(0)
    assert backend.restore(2, 0, saved)


def solo(path: Path, prompts: list[list[int]], n: int, **settings: Any) -> list[tuple[int, ...]]:
    with arenite.Runtime() as runtime:
        model = runtime.load(path, **{"context": 1024, "streams": 1, "batch": 64, "remember": 0, **EXACT, **settings})
        return [model.generate(prompt, max_tokens=n, ignore_end=True).tokens for prompt in prompts]


def prompts(count: int, longest: int = 90, seed: int = 2) -> list[list[int]]:
    choose = random.Random(seed)
    return [[choose.randrange(3, 300) for _ in range(choose.randint(5, longest))] for _ in range(count)]


@pytest.mark.reference
def test_on_stories260k_company_sharing_and_suspension_change_no_text(stories: Path) -> None:
    asked = [f"Once upon a time, there was a {what}" for what in (
        "little girl", "big dog", "cat", "boy named Tim", "red ball", "tree", "small bird", "happy fish", "king",
        "princess", "bear", "frog", "car", "mouse", "sun", "rabbit",
    )]
    with arenite.Runtime() as runtime:
        one = runtime.load(stories, name="one", context=512, streams=1, remember=0, **EXACT)
        expected = [one.generate(text, max_tokens=120).text for text in asked]
        one.close()
    with arenite.Runtime() as runtime:
        many = runtime.load(stories, context=2048, streams=16, **EXACT)
        tickets = [many.submit(text, max_tokens=120) for text in asked]
        assert [ticket.result(60).text for ticket in tickets] == expected, "16 in one batch"
        again = [many.generate(text, max_tokens=120) for text in asked]
        assert [one.text for one in again] == expected, "from cached prefixes"
        assert any(one.usage.cached_tokens for one in again)
        many.close()
    with arenite.Runtime() as runtime:
        tight = runtime.load(stories, context=256, streams=8, remember=2, **EXACT)
        tickets = [
            tight.submit(text, max_tokens=120, priority=("background", "interactive", "control")[i % 3])
            for i, text in enumerate(asked)
        ]
        assert [ticket.result(60).text for ticket in tickets] == expected, "in a cache too small for all at once"
        status = runtime.status()
        assert status.models[0].counters.preempted > 0
        assert status.allocations_after_seal == 0


def test_elsewhere_company_changes_only_what_was_nearly_a_tie() -> None:
    path, asked = checkpoints.gguf_file("tiny", "q4_0"), prompts(12)
    expected = solo(path, asked, 20, kv_type="f16", flash_attention=True)
    with arenite.Runtime() as runtime:
        model = runtime.load(path, context=2048, streams=12, batch=128, threads=1)
        tickets = [model.submit(prompt, max_tokens=20, ignore_end=True, logprobs=2) for prompt in asked]
        for ticket, wanted in zip(tickets, expected, strict=True):
            found = ticket.result(60)
            for token, other, logprob in zip(found.tokens, wanted, found.logprobs, strict=True):
                if token != other:
                    (_, best), (_, second) = logprob.top
                    assert best - second < 0.1, "only where two tokens were as good as equal"
                    break


@pytest.mark.parametrize("kind", ["f32", "q4_0"])
def test_deterministic_answers_do_not_depend_on_the_neighbours_bit_for_bit(kind: str) -> None:
    path, asked = checkpoints.gguf_file("tiny", kind), prompts(8, longest=150, seed=5)
    with arenite.Runtime() as runtime:
        model = runtime.load(path, context=2048, streams=8, batch=128, threads=1, deterministic=True)
        settings: dict[str, Any] = {"max_tokens": 25, "ignore_end": True, "logprobs": 5}
        alone = [model.generate(prompt, **settings) for prompt in asked]
        tickets = []
        for prompt in asked:  # arriving one by one, in the middle of the others
            tickets.append(model.submit(prompt, **settings))
            time.sleep(0.003)
        together = [ticket.result(60) for ticket in tickets]
        assert [one.tokens for one in together] == [one.tokens for one in alone]
        assert [one.logprobs for one in together] == [one.logprobs for one in alone], "to the last bit"


@pytest.mark.parametrize("write", [other_models.gemma2, other_models.mamba])
def test_memories_that_forget_are_shared_whole_or_not_at_all(write: Callable[[Path], Path], tmp_path: Path) -> None:
    path, (first, other) = write(tmp_path / "model.gguf"), prompts(2, longest=60, seed=9)
    settings = {"context": 1024, "streams": 2, "batch": 64, **EXACT}
    with arenite.Runtime() as runtime:
        model = runtime.load(path, **settings)
        assert model.info.reuse == "whole"
        answer = model.generate(first, max_tokens=12, ignore_end=True)
        follow = [*first, *answer.tokens[:-1], *other]  # goes on where the whole first sequence ends
        found = model.generate(follow, max_tokens=12, ignore_end=True)
        assert found.usage.cached_tokens == len(first) + 11
        part = [*first[:-3], 299, *other]  # leaves it before its end
        assert model.generate(part, max_tokens=12, ignore_end=True).usage.cached_tokens == 0
    assert solo(path, [follow], 12)[0] == found.tokens


def test_two_models_are_planned_together_and_answer_at_once() -> None:
    paths = [checkpoints.gguf_file("tiny", "f32"), checkpoints.gguf_file("tiny", "q8_0")]
    settings = {"context": 1024, "streams": 4, "batch": 64, **EXACT}
    asked = prompts(6)
    expected = [solo(path, asked, 15) for path in paths]
    with arenite.Runtime(arena="64MiB") as runtime:
        models = [runtime.load(path, name=name, **settings) for path, name in zip(paths, "ab", strict=True)]
        tickets = [[model.submit(p, max_tokens=15, ignore_end=True) for p in asked] for model in models]
        assert [[t.result(60).tokens for t in each] for each in tickets] == expected
        status = runtime.status()
        assert [model.info.name for model in status.models] == ["a", "b"]
        assert all(model.counters.requests == 6 for model in status.models)
        assert status.arena is not None
        assert {span.tenant for span in status.arena.spans} == {"a", "b"}
        models[0].close()
        third = runtime.load(paths[0], name="c", **settings)  # at run time, inside the plan
        assert third.generate(asked[0], max_tokens=15, ignore_end=True).tokens == expected[0][0]
        assert runtime.status().allocations_after_seal == 0


def test_closing_cuts_the_running_step_short() -> None:
    long = shapes.Shape(hidden=64, layers=4, heads=4, kv_heads=2, ffn=128, vocab=512, context=8192)
    path = checkpoints.gguf_file(long)
    runtime = arenite.Runtime()
    model = runtime.load(path, context=8192, streams=1, batch=4096, step_ms=10_000, threads=1)
    model.generate([5] * 3000, max_tokens=1, ignore_end=True)  # teaches it to take large chunks
    ticket = model.submit([6] * 6000, max_tokens=4, ignore_end=True)
    time.sleep(0.05)
    begin = time.perf_counter()
    runtime.close()
    assert time.perf_counter() - begin < 5.0
    with pytest.raises(arenite.EngineClosed):
        ticket.result(5)


def test_copies_of_one_prompt_differ_by_seeds_that_can_be_asked_for_again() -> None:
    with arenite.Runtime() as runtime:
        model = runtime.load(checkpoints.gguf_file("tiny", "f32"), context=1024, streams=4, batch=64, **EXACT)
        prompt = prompts(1, longest=90, seed=4)[0] * 2
        tickets = model.submit_many(prompt, 4, max_tokens=8, temperature=1.5, seed=7, ignore_end=True)
        answers = arenite.wait_all(tickets, 60)
        assert len({answer.tokens for answer in answers}) == 4
        assert answers[0].usage.seed == 7
        known = [answer.usage.cached_tokens > 0 for answer in answers]
        assert known == [False, True, True, True], "the prompt is computed once"
        again = model.generate(prompt, max_tokens=8, temperature=1.5, seed=answers[2].usage.seed, ignore_end=True)
        assert again.tokens == answers[2].tokens


def test_chaos_from_several_threads_leaves_the_accounts_in_order() -> None:
    """Seeded chaos: cancels, deadlines, keys and priorities from several threads on a cache that is too small."""
    path = checkpoints.gguf_file("tiny", "q8_0")
    errors: list[BaseException] = []
    with arenite.Runtime() as runtime:
        model = runtime.load(path, context=512, streams=4, batch=64, threads=1, remember=4, host_cache="1MiB")

        def client(seed: int) -> None:
            choose = random.Random(seed)
            try:
                for _ in range(40):
                    head = [choose.randrange(3, 300)] * choose.randint(1, 5)
                    prompt = head + list(range(40, 40 + choose.randint(1, 120)))
                    with model.submit(
                        prompt, max_tokens=choose.choice([1, 20, 60]), ignore_end=True, seed=1,
                        temperature=choose.choice([0.0, 1.0]), priority=choose.choice(["control", "background"]),
                        deadline=choose.choice([None, 0.05, 5.0]), key=choose.choice([None, "k"]),
                        policy=choose.choice(["latest", "queue"]),
                    ) as ticket:
                        if choose.random() < 0.7:
                            with contextlib.suppress(arenite.DeadlineMissed):
                                ticket.result(60)
            except BaseException as error:  # noqa: BLE001 - shown by the test's own thread
                errors.append(error)

        clients = [threading.Thread(target=client, args=(seed,)) for seed in range(6)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        assert not errors, errors[0]
        deadline = time.monotonic() + 30
        while runtime.status().models[0].running and time.monotonic() < deadline:
            time.sleep(0.01)
        status = runtime.status().models[0]
        assert (status.running, status.waiting, status.free_cells) == (0, 0, 512)
        assert runtime.status().allocations_after_seal == 0
