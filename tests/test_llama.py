"""Real models through the public door: the arena beneath ggml, and the answers that come out of it."""

from __future__ import annotations

import os
import random
import threading
from typing import TYPE_CHECKING, Any

import llama_cpp
import pytest

import arenite
from arenite.runtime import machine
from arenite.runtime.backends import ggml, libllama
from arenite.runtime.backends.raw import RawLoop
from arenite.runtime.backends.slab import OWNER
from arenite.runtime.config import ModelOptions

from . import checkpoints
from .test_bad_input import wreck_helpers

if TYPE_CHECKING:
    from pathlib import Path

SMALL = {"context": 512, "streams": 4, "batch": 64, "threads": 1}
EXACT = {**SMALL, "kv_type": "f32", "flash_attention": False}
PROMPT = list(range(40, 60))


def raw_tokens(path: Path, prompt: list[int], n: int) -> list[int]:
    loop = RawLoop(ModelOptions(str(path), **EXACT))  # type: ignore[arg-type]
    try:
        return loop.run(prompt, n)[0]
    finally:
        loop.close()


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "q4_0"])
def test_the_arena_changes_no_token(kind: str) -> None:
    path = checkpoints.gguf_file("tiny", kind)
    expected = raw_tokens(path, PROMPT, 40)
    with arenite.Runtime() as runtime:
        model = runtime.load(path, **EXACT)
        completion = model.generate(PROMPT, max_tokens=40, ignore_end=True)
        assert list(completion.tokens) == expected
        assert runtime.status().allocations_after_seal == 0


def test_streams_in_one_batch_say_what_each_says_alone() -> None:
    path, choose = checkpoints.gguf_file("tiny", "f32"), random.Random(2)
    prompts = [[choose.randrange(300) for _ in range(choose.randint(1, 100))] for _ in range(12)]
    with arenite.Runtime() as runtime:
        model = runtime.load(path, **{**EXACT, "context": 2048})
        tickets = [model.submit(prompt, max_tokens=24, ignore_end=True) for prompt in prompts]
        together = [completion.tokens for completion in arenite.wait_all(tickets, timeout=60)]
        alone = [model.generate(prompt, max_tokens=24, ignore_end=True).tokens for prompt in prompts]
        agree = sum(a == b for a, b in zip(together, alone, strict=True))
        assert agree >= len(prompts) - 1, "a random model has near ties; one may fall to the other side"
        assert runtime.status().allocations_after_seal == 0


def test_the_plan_is_what_is_leased_and_unloading_gives_it_back() -> None:
    path = checkpoints.gguf_file("tiny", "q4_0")
    with arenite.Runtime() as runtime:
        plan = runtime.plan(path, **SMALL)
        assert OWNER.current() is None, "planning reserves nothing"
        model = runtime.load(path, **SMALL)
        arena = runtime.status().arena
        assert arena is not None
        by_kind: dict[str, int] = {}
        for span in arena.spans:
            by_kind[span.kind] = by_kind.get(span.kind, 0) + span.size
        assert by_kind == plan.by_kind()
        assert set(by_kind) == {"weights", "kv", "scratch", "outputs"}
        assert (arena.leased, arena.free) == (plan.size, 0)
        model.close()
        arena = runtime.status().arena
        assert arena is not None
        assert (arena.leased, arena.spans) == (0, ())


def test_a_thousand_mixed_requests_allocate_nothing() -> None:
    choose = random.Random(4)
    with arenite.Runtime() as runtime:
        model = runtime.load(checkpoints.gguf_file("tiny", "f16"), **SMALL)
        before = runtime.status().arena
        for _ in range(50):
            tickets = [
                model.submit([choose.randrange(300) for _ in range(choose.randint(1, 150))], ignore_end=True,
                             max_tokens=choose.randint(1, 12), temperature=choose.choice([0, 1.0]))
                for _ in range(20)
            ]
            choose.choice(tickets).cancel()
            arenite.wait_all(tickets, timeout=60)
        after = runtime.status()
        assert after.arena == before, "not one span moved"
        assert after.allocations_after_seal == 0
        assert after.models[0].free_cells == 512


def test_an_allocation_after_the_seal_is_counted_and_refused() -> None:
    path = checkpoints.gguf_file("tiny", "f16")
    with arenite.Runtime(arena="64MiB") as runtime:
        model = runtime.load(path, **SMALL)
        before = runtime.status().arena
        assert before is not None
        options = ModelOptions(str(path), **SMALL)  # type: ignore[arg-type]
        with pytest.raises(arenite.BadModel):
            libllama.open_model(options)  # somebody else's model: its weights would come from the arena
        sealed = runtime.status()
        assert (sealed.allocations_after_seal or 0) >= 1
        assert sealed.arena is not None
        assert sealed.arena.spans == before.spans
        mapped = ModelOptions(str(path), **{**SMALL, "weights": "mapped"})  # type: ignore[arg-type]
        other = libllama.open_model(mapped)
        count = runtime.status().allocations_after_seal or 0
        with pytest.raises(arenite.BadModel):
            libllama.open_context(other, mapped, 1)  # a second context: its KV cache as well
        llama_cpp.llama_model_free(other)
        assert (runtime.status().allocations_after_seal or 0) > count
        assert model.generate(PROMPT, max_tokens=5, ignore_end=True).usage.answer_tokens == 5


def test_too_small_an_arena_says_the_numbers_before_anything_is_loaded() -> None:
    path = checkpoints.gguf_file("tiny", "f16")
    with arenite.Runtime(arena="100KiB") as runtime:
        needed = runtime.plan(path, **SMALL).size
        with pytest.raises(arenite.ArenaTooSmall, match=f"needs {needed:,} bytes .*weights .*102,400 free") as caught:
            runtime.load(path, **SMALL)
        assert (caught.value.needed, caught.value.available) == (needed, 102_400)
        assert sum(caught.value.items.values()) == needed
        status = runtime.status()
        assert status.arena is not None
        assert (status.arena.leased, status.models, status.allocations_after_seal) == (0, (), 0)


def test_more_memory_than_the_machine_has_is_refused_at_once() -> None:
    with pytest.raises(arenite.ArenaTooSmall, match="this machine has"):
        arenite.Runtime(arena="4000GiB")
    assert OWNER.current() is None


def test_a_second_runtime_shares_the_arena_or_finds_it_busy() -> None:
    path = checkpoints.gguf_file("tiny", "f16")
    with arenite.Runtime(arena="24MiB") as first, arenite.Runtime(arena="1GiB") as second:
        one = first.load(path, **SMALL)
        two = second.load(path, **SMALL)
        arena = second.status().arena
        assert arena is not None
        assert arena.size == 24 << 20, "one slab per process: the first one's size holds"
        assert len({span.tenant for span in arena.spans}) == 2
        same = {"max_tokens": 12, "ignore_end": True}
        assert one.generate(PROMPT, **same).tokens == two.generate(PROMPT, **same).tokens
        with pytest.raises(arenite.ArenaBusy, match="close the other one"):
            second.load(path, name="more", context=65536, streams=4, threads=1)
        first.close()
        assert two.generate(PROMPT, **same).usage.answer_tokens == 12
        arena = second.status().arena
        assert arena is not None
        assert len({span.tenant for span in arena.spans}) == 1


def test_two_runtimes_that_load_at_once_do_not_seal_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are about to take their first bytes; then one loads to its end, and the other after it."""
    path, open_model = checkpoints.gguf_file("tiny", "f16"), libllama.open_model
    both, one_is_done = threading.Barrier(2, timeout=20), threading.Event()

    def take_turns(options: ModelOptions, **how: bool) -> int:
        if both.wait() == 0:
            assert one_is_done.wait(20)
        return open_model(options, **how)

    found: list[Any] = []

    def load(runtime: arenite.Runtime) -> None:
        try:
            found.append(runtime.load(path, **SMALL))
        except arenite.Error as error:
            found.append(error)
        one_is_done.set()

    monkeypatch.setattr(libllama, "open_model", take_turns)
    with arenite.Runtime(arena="64MiB") as first, arenite.Runtime() as second:
        threads = [threading.Thread(target=load, args=(runtime,)) for runtime in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert [type(model) for model in found] == [arenite.Model] * 2, found
        status = first.status()
        assert status.arena is not None
        assert {span.tenant for span in status.arena.spans} == {"f16", "f16#2"}
        assert status.allocations_after_seal == 0
        answers = [model.generate(PROMPT, max_tokens=5, ignore_end=True).tokens for model in found]
        assert answers[0] == answers[1]


def test_a_cache_as_large_as_the_outputs_is_still_the_cache() -> None:
    path = checkpoints.gguf_file(checkpoints.ODD, "f16")
    # keys and values: 256 cells * 2 layers * 2 heads of 16 * 2 * 2 bytes; outputs: 512 tokens * (31 + 1) rows * 4 bytes
    with arenite.Runtime() as runtime:
        runtime.load(path, context=256, streams=8, remember=23, batch=64, threads=1)
        arena = runtime.status().arena
        assert arena is not None
        kinds = {kind: [span.size for span in arena.spans if span.kind == kind] for kind in ("kv", "outputs")}
        assert kinds == {"kv": [65536], "outputs": [65536]}


def test_an_auto_arena_that_this_machine_has_no_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoints.gguf_file("tiny", "f16")
    with arenite.Runtime() as runtime:
        needs = runtime.plan(path, **SMALL).by_kind()
        monkeypatch.setattr(machine, "available_memory", lambda: 1 << 20)
        with pytest.raises(arenite.ArenaTooSmall, match=r"\(weights .*, kv .*\) but this machine has") as caught:
            runtime.load(path, **SMALL)
        assert caught.value.items == needs
        assert "arena" not in str(caught.value), "a larger one would not help"
        assert "shorter context" in str(caught.value)
        assert OWNER.current() is None


def test_closing_restores_the_stock_allocator() -> None:
    kind = ggml.BufferType.from_address(ggml.cpu_buffer_type())
    stock = kind.iface.alloc_buffer
    with arenite.Runtime() as runtime:
        runtime.load(checkpoints.gguf_file("tiny", "f16"), **SMALL)
        assert kind.iface.alloc_buffer != stock
    assert kind.iface.alloc_buffer == stock
    assert OWNER.current() is None
    assert raw_tokens(checkpoints.gguf_file("tiny", "f16"), PROMPT, 3)


def test_a_hundred_loads_leave_nothing_behind() -> None:
    path = checkpoints.gguf_file("tiny", "f16")
    with arenite.Runtime(arena="32MiB") as runtime:
        sizes = []
        for _ in range(100):
            model = runtime.load(path, **SMALL)
            model.generate(PROMPT, max_tokens=2, ignore_end=True)
            model.close()
            sizes.append(runtime.status().rss_bytes)
        arena = runtime.status().arena
        assert arena is not None
        assert (arena.leased, arena.largest_free) == (0, arena.size)
        assert sizes[-1] - sizes[50] < 4 << 20


def test_mapped_weights_stay_outside_and_are_named() -> None:
    path = checkpoints.gguf_file("tiny", "f16")
    with arenite.Runtime() as runtime:
        inside = runtime.plan(path, **SMALL)
        model = runtime.load(path, weights="mapped", **SMALL)
        status = runtime.status()
        assert status.arena is not None
        assert status.arena.leased == inside.size - inside.by_kind()["weights"]
        outside = status.models[0].memory.outside
        assert outside["mapped weights"] == pytest.approx(inside.by_kind()["weights"], rel=0.05)
        assert model.generate(PROMPT, max_tokens=5, ignore_end=True).usage.answer_tokens == 5


def test_kernels_whose_weights_bypass_the_arena_are_withheld() -> None:
    with arenite.Runtime() as runtime:
        model = runtime.load(checkpoints.gguf_file("tiny", "q4_0"), context=256, streams=1)
        assert model.generate(list(range(1, 60)), max_tokens=4).tokens  # a whole prompt at once: what crashed
        assert "AMX" not in ggml.extra_types()
        assert not any("weights" in name for name in runtime.status().models[0].memory.outside)


def test_unknown_layouts_mean_stock_allocation_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ggml, "VERSION", "0.0.0")
    with arenite.Runtime(arena="64MiB") as runtime:
        model = runtime.load(checkpoints.gguf_file("tiny", "f16"), **SMALL)
        status = runtime.status()
        assert status.state == "degraded"
        assert "0.0.0" in status.reason
        assert (status.arena, status.allocations_after_seal) == (None, None), "nothing counted, nothing claimed"
        assert runtime.plan(checkpoints.gguf_file("tiny", "f16"), **SMALL).needs == (), "read by layout, so not read"
        monkeypatch.setattr(machine, "available_memory", lambda: 1 << 10)
        with pytest.raises(arenite.ArenaTooSmall, match=r"\(weights .* this machine has 1,024 free: take"):
            runtime.load(checkpoints.gguf_file("tiny", "f16"), name="two", **SMALL)
        assert model.generate(PROMPT, max_tokens=5, ignore_end=True).usage.answer_tokens == 5
    assert ggml.check_layout()
    monkeypatch.undo()
    assert ggml.check_layout() == ""


@pytest.mark.parametrize("how", ["dies", "empty"])
def test_accounts_that_can_not_be_read_are_not_the_files_fault(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """The walk over libllama's C++ map by another layout ends in a signal, or finds something else."""
    path = checkpoints.gguf_file("tiny", "f16")
    wreck_helpers(monkeypatch, "probe.breakdown", how)
    with arenite.Runtime() as runtime:  # nobody knows how large an arena would have to be
        plan = runtime.plan(path, **SMALL)
        assert (plan.needs, plan.outside["buffers of unknown size"]) == ((), None)
        model = runtime.load(path, **SMALL)
        status = runtime.status()
        assert (status.state, status.arena, status.allocations_after_seal) == ("degraded", None, None)
        assert "accounts can not be read" in status.reason
        assert model.generate(PROMPT, max_tokens=5, ignore_end=True).usage.answer_tokens == 5
    with arenite.Runtime(arena="64MiB") as runtime:  # a given size is used as far as it goes
        with pytest.raises(arenite.ArenaTooSmall):
            runtime.load(path, context=1 << 20, threads=1)
        model = runtime.load(path, **SMALL)
        status = runtime.status()
        assert (status.state, status.allocations_after_seal) == ("ready", 0)
        assert status.arena is not None
        assert {span.kind for span in status.arena.spans} == {"weights", "kv", "scratch", "outputs"}
        assert model.generate(PROMPT, max_tokens=5, ignore_end=True).usage.answer_tokens == 5
        with arenite.Runtime() as other:  # and shared
            other.load(path, **SMALL)
            assert other.status().state == "ready"


def test_a_conversation_is_rendered_and_control_words_count_only_there() -> None:
    messages = [{"role": "user", "content": "hello"}]
    with arenite.Runtime() as runtime:
        model = runtime.load(checkpoints.gguf_file("tiny", "f16"), **SMALL)
        rendered = model.tokenize("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n", raw=True)
        assert model.tokenize(messages) == model.tokenize("hello") == rendered
        assert model.chat(messages, max_tokens=3, ignore_end=True).usage.prompt_tokens == len(rendered)
        assert model.detokenize(model.tokenize("hello \u00e9\u4f60", raw=True)) == "hello \u00e9\u4f60"


@pytest.mark.reference
@pytest.mark.skipif("ARENITE_REFERENCE_MODELS" not in os.environ, reason="ARENITE_REFERENCE_MODELS is not set")
def test_stories260k_goes_on_as_its_author_says(stories: Path) -> None:
    begin = "Once upon a time, there was a little girl"
    wanted = (
        " named Lily. She loved to play outside in the park. One day, she saw a big, red ball. She wanted to play with "
        "it, but it was too high."
    )
    with arenite.Runtime() as runtime:
        model = runtime.load(stories, context=512, streams=4, kv_type="f32", flash_attention=False)
        tickets = [model.submit(begin, max_tokens=120) for _ in range(4)]
        for completion in arenite.wait_all(tickets):
            assert completion.text.startswith(wanted)
        assert runtime.status().allocations_after_seal == 0
