"""The engine on the fake backend: order of events, ends, cancel, limits, threads."""

from __future__ import annotations

import asyncio
import gc
import pickle
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import arenite
from arenite.runtime.backends import loader
from arenite.runtime.backends.null import NullBackend
from arenite.runtime.config import ModelOptions
from arenite.runtime.engine import Engine
from arenite.runtime.errors import EngineFailed
from arenite.runtime.events import Accepted, Event, Failed, Finished, Progress, Started
from arenite.runtime.request import Request
from arenite.runtime.sampling import Sampler

SETTINGS = {"context": 256, "streams": 4, "batch": 32}


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a step take a millisecond, for tests that act in the middle of an answer."""
    build = NullBackend.__init__
    monkeypatch.setattr(NullBackend, "__init__", lambda self, options: build(self, options, step_s=0.001))


def alone(prompt: str, n: int, **rule: float) -> str:
    """Return what the fake answers to a prompt, computed without any engine."""
    backend = NullBackend(ModelOptions("null:", context=256, streams=1, batch=1))
    sampler, answer = Sampler(arenite.Sampling(**rule)), b""  # type: ignore[arg-type]
    tokens = list(prompt.encode())
    for position in range(len(tokens) + n - 1):
        backend.batch.tokens[0], backend.batch.positions[0], backend.batch.outputs[0] = tokens[position], position, 1
        logits = backend.decode(1)
        if position + 1 == len(tokens):
            tokens.append(sampler.choose(logits[0], tokens))
            answer += bytes([tokens[-1]])
    return answer.decode()


def test_many_streams_each_get_their_own_answer() -> None:
    choose = random.Random(5)
    with arenite.Runtime() as runtime:
        model = runtime.load("null:", **SETTINGS)
        texts = ["".join(choose.choices("abcdef ", k=choose.randint(1, 90))) for _ in range(40)]
        asked = [(text, choose.randint(1, 40)) for text in texts]
        tickets = [model.submit(prompt, max_tokens=n) for prompt, n in asked]
        for (prompt, n), completion in zip(asked, arenite.wait_all(tickets, timeout=60), strict=True):
            assert completion.text == alone(prompt, n)
            assert (completion.reason, completion.usage.prompt_tokens) == ("length", len(prompt))
            assert completion.usage.answer_tokens == len(completion.tokens) == n


def test_sampling_with_a_seed_is_the_same_alone_and_in_company() -> None:
    with arenite.Runtime() as runtime:
        model = runtime.load("null:", **SETTINGS)
        others = [model.submit("x" * i, max_tokens=60) for i in range(1, 6)]
        completion = model.generate("hello", max_tokens=30, temperature=1.5, seed=11)
        assert completion.text == alone("hello", 30, temperature=1.5, seed=11)
        assert (completion.usage.seed, completion.usage.draws) == (11, 30)
        arenite.wait_all(others)


def test_events_come_in_the_one_legal_order_and_end_once() -> None:
    seen: list[Event] = []
    ended = threading.Semaphore(0)

    def deliver(events: list[Event]) -> None:
        seen.extend(events)
        for event in events:
            if isinstance(event, (Finished, Failed)):
                ended.release()

    engine = Engine(loader.Loader, deliver)
    model = engine.load(ModelOptions("null:", **SETTINGS)).number  # type: ignore[arg-type]
    choose = random.Random(3)
    tickets = [engine.next_ticket() for _ in range(30)]
    for ticket in tickets:
        size = choose.choice([5, 50, 300])
        engine.submit(ticket, model, Request((65,) * size, max_tokens=choose.randint(1, 30)))
        if choose.random() < 0.3:
            engine.cancel(choose.choice(tickets))
    for _ in tickets:
        assert ended.acquire(timeout=30)
    engine.close()
    for ticket in tickets:
        kinds = [type(event) for event in seen if event.ticket == ticket]
        assert kinds[-1] in (Finished, Failed)
        if kinds[-1] is Finished:
            assert kinds[0] is Accepted
            assert kinds[1:-1] == [] or kinds[1] is Started
            assert set(kinds[2:-1]) <= {Progress}
        else:
            assert len(kinds) == 1, "too long for the context: refused at once"


def test_a_stop_text_ends_the_answer_and_is_not_shown() -> None:
    whole = alone("abc", 60)
    stop = whole[20:23]
    with arenite.Runtime() as runtime:
        model = runtime.load("null:", **SETTINGS)
        ticket = model.submit("abc", max_tokens=60, stop=stop)
        assert "".join(ticket) == whole[: whole.index(stop)]
        assert ticket.result().reason == "stop"
        assert model.submit("abc", max_tokens=60, stop=["\0never", stop]).result().text == whole[: whole.index(stop)]


def test_the_context_ends_an_answer_without_a_limit() -> None:
    with arenite.Runtime() as runtime:
        model = runtime.load("null:", **SETTINGS)
        completion = model.generate("x" * 200)
        assert (completion.reason, completion.usage.answer_tokens) == ("length", 56)


@pytest.mark.usefixtures("slow")
def test_cancel_frees_the_slot_before_it_is_reported() -> None:
    with arenite.Runtime() as runtime:
        model = runtime.load("null:", context=100_000, streams=1, batch=32)
        first = model.submit("a", max_tokens=99_000)
        second = model.submit("b", max_tokens=5)
        pieces = iter(first)
        shown = next(pieces)
        first.cancel()
        rest = "".join(pieces)
        assert first.result().reason == "cancelled"
        assert first.result().text == shown + rest
        assert second.result(timeout=10).text == alone("b", 5)
        first.cancel()  # a second time, and after the end: nothing happens


@pytest.mark.usefixtures("slow")
def test_leaving_the_with_block_of_a_ticket_cancels_it() -> None:
    with arenite.Runtime() as runtime:
        model = runtime.load("null:", context=100_000, streams=1)
        with model.stream("a", max_tokens=90_000) as ticket:
            next(iter(ticket))
        assert ticket.result(timeout=10).reason == "cancelled"


@pytest.mark.usefixtures("slow")
def test_too_many_unfinished_requests_are_answered_busy_and_nothing_is_lost() -> None:
    with arenite.Runtime(limit=3) as runtime:
        model = runtime.load("null:", context=100_000, streams=1)
        tickets = [model.submit("a", max_tokens=20_000) for _ in range(3)]
        with pytest.raises(arenite.Busy, match="try again in") as caught:
            model.submit("b", max_tokens=1)
        assert caught.value.retry_ms > 0
        for ticket in tickets:
            ticket.cancel()
        assert [ticket.result().reason for ticket in tickets] == ["cancelled"] * 3
        assert model.generate("b", max_tokens=1).usage.answer_tokens == 1


@pytest.mark.usefixtures("slow")
def test_closing_ends_what_runs_with_a_typed_error() -> None:
    runtime = arenite.Runtime()
    model = runtime.load("null:", context=100_000, streams=1)
    tickets = [model.submit("a", max_tokens=90_000) for _ in range(3)]
    runtime.close()
    runtime.close()
    for ticket in tickets:
        with pytest.raises(arenite.EngineClosed):
            ticket.result(timeout=10)
    with pytest.raises(arenite.EngineClosed):
        model.generate("b")
    with pytest.raises(arenite.EngineClosed):
        runtime.status()


@pytest.mark.usefixtures("slow")
def test_unloading_one_model_leaves_the_other_alone() -> None:
    with arenite.Runtime() as runtime:
        one, two = (runtime.load("null:", name=name, context=50_000, streams=2) for name in ("one", "two"))
        running = one.submit("a", max_tokens=40_000)
        other = two.submit("b", max_tokens=300)
        next(iter(running))  # it is in the middle of its answer
        one.close()
        with pytest.raises(arenite.EngineClosed, match="unloaded"):
            running.result(timeout=10)
        assert other.result(timeout=30).usage.answer_tokens == 300
        with pytest.raises(arenite.EngineClosed, match="not loaded any more"):
            one.generate("a", max_tokens=1)
        with pytest.raises(arenite.ConfigError, match="loaded already"):
            runtime.load("null:", name="two")


@pytest.mark.usefixtures("slow")
def test_a_failed_step_ends_its_requests_and_the_engine_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    decode, due = NullBackend.decode, threading.Event()

    def failing(self: NullBackend, n: int) -> object:
        if not due.is_set():
            return decode(self, n)
        due.clear()
        raise EngineFailed("the computation failed: as the test wants")

    monkeypatch.setattr(NullBackend, "decode", failing)
    with arenite.Runtime() as runtime:
        model = runtime.load("null:", **SETTINGS)
        tickets = [model.submit("abc", max_tokens=120) for _ in range(2)]
        for ticket in tickets:
            next(iter(ticket))
        due.set()
        for ticket in tickets:
            with pytest.raises(arenite.EngineFailed, match="as the test wants"):
                ticket.result(timeout=10)
        assert model.generate("abc", max_tokens=5).text == alone("abc", 5)
        assert runtime.status().models[0].counters.failed >= 1


def test_a_bug_in_the_engine_ends_requests_instead_of_stranding_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with arenite.Runtime() as runtime:
        model = runtime.load("null:", **SETTINGS)
        monkeypatch.setattr(NullBackend, "decode", lambda *_: 1 / 0)
        with pytest.raises(arenite.EngineFailed, match="ZeroDivisionError"):
            model.submit("abc", max_tokens=5).result(timeout=10)
        for _ in range(2):
            with pytest.raises(arenite.EngineFailed, match="ZeroDivisionError"):
                model.generate("abc", max_tokens=5)


def test_bad_requests_hurt_nobody_else() -> None:
    with arenite.Runtime() as runtime:
        model = runtime.load("null:", **SETTINGS)
        neighbour = model.submit("abc", max_tokens=100)
        for settings in ({"stop": [b"y"]}, {"stop": [5]}, {"stop": [""]}, {"max_tokens": 10**400}, {"seed": 10**400}):
            with pytest.raises(arenite.InvalidRequest):
                model.submit("x", **settings)
        assert model.submit("x", max_tokens=2, stop=None).result(timeout=10).usage.answer_tokens == 2
        for token in (1 << 40, -1, 257):
            with pytest.raises(arenite.InvalidRequest):
                runtime.submit(model._number, arenite.Request((token,))).result(timeout=10)
        assert neighbour.result(timeout=10).text == alone("abc", 100)


def test_values_that_are_no_numbers_end_only_their_own_request(monkeypatch: pytest.MonkeyPatch) -> None:
    guess = NullBackend._guess

    def broken(self: NullBackend, history: list[int]) -> object:
        logits = guess(self, history)
        if history[0] == ord("!"):
            logits[:] = float("nan")
        return logits

    monkeypatch.setattr(NullBackend, "_guess", broken)
    with arenite.Runtime() as runtime:
        model = runtime.load("null:", **SETTINGS)
        tickets = [model.submit(text, max_tokens=20, temperature=t) for t in (0, 1.0) for text in ("abc", "!bc")]
        for good, bad in (tickets[:2], tickets[2:]):
            assert good.result(timeout=10).usage.answer_tokens == 20
            with pytest.raises(arenite.EngineFailed, match="not finite"):
                bad.result(timeout=10)


@pytest.mark.usefixtures("slow")
def test_a_bug_in_the_end_itself_strands_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def drop(_self: NullBackend, _sequence: int) -> None:
        raise ZeroDivisionError

    runtime = arenite.Runtime()
    model = runtime.load("null:", context=4096, streams=2)
    tickets = [model.submit("a", max_tokens=1000) for _ in range(4)]
    next(iter(tickets[0]))
    monkeypatch.setattr(NullBackend, "drop", drop)
    monkeypatch.setattr(NullBackend, "close", drop)
    tickets[0].cancel()
    assert tickets[0].result(timeout=10).reason == "cancelled"
    for ticket in tickets[1:]:
        with pytest.raises(arenite.EngineFailed, match="ZeroDivisionError"):
            ticket.result(timeout=10)
    runtime.close()


def test_messages_behind_a_failing_one_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is posted while the engine is held; the first message then breaks it."""
    with arenite.Runtime() as runtime, ThreadPoolExecutor(2) as pool:
        model = runtime.load("null:", **SETTINGS)
        held, go = threading.Event(), threading.Event()

        def hold() -> bool:
            held.set()
            return go.wait(10)

        blocker = pool.submit(runtime._engine._call, hold)
        assert held.wait(10)
        monkeypatch.setattr("arenite.runtime.lane.Lane.cancel", lambda *_: 1 / 0)
        runtime._engine.cancel(1)
        tickets = [model.submit("abc", max_tokens=5) for _ in range(3)]
        status = pool.submit(runtime.status)
        while len(runtime._engine._mailbox._messages) < 5:
            threading.Event().wait(0.001)
        go.set()
        blocker.result(timeout=10)
        for ticket in tickets:
            with pytest.raises(arenite.EngineFailed):
                ticket.result(timeout=10)
        with pytest.raises(arenite.EngineFailed):
            status.result(timeout=10)


def test_a_request_that_trips_over_a_bug_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with arenite.Runtime() as runtime:
        model = runtime.load("null:", **SETTINGS)
        neighbour = model.submit("abc", max_tokens=100)
        next(iter(neighbour))
        with monkeypatch.context() as broken:
            broken.setattr("arenite.runtime.lane.Lane.submit", lambda *_: 1 / 0)
            with pytest.raises(arenite.EngineFailed, match="ZeroDivisionError"):
                model.submit("abc", max_tokens=5).result(timeout=10)
        assert neighbour.result(timeout=10).usage.answer_tokens == 100


def test_an_old_handle_never_reaches_a_newer_model() -> None:
    with arenite.Runtime() as runtime:
        old = runtime.load("null:", name="x")
        old.close()
        old.close()
        new = runtime.load("null:", name="x")
        with pytest.raises(arenite.EngineClosed, match="not loaded any more"):
            old.generate([97], max_tokens=1)
        assert new.generate([97], max_tokens=1).usage.answer_tokens == 1


def test_a_runtime_that_nobody_holds_ends() -> None:
    runtime = arenite.Runtime()
    thread = runtime._engine._thread
    runtime.load("null:").generate("a", max_tokens=1)
    del runtime
    gc.collect()
    thread.join(timeout=10)
    assert not thread.is_alive()


@pytest.mark.parametrize("error", [
    arenite.ContextOverflow(5, 6, 7), arenite.Busy("full", 20), arenite.BadModel("file", "reason"),
    arenite.ArenaTooSmall(10, 5, {"kv": 10}), arenite.BadAnswer("no JSON", "text"), arenite.EngineFailed("x"),
])
def test_errors_cross_process_borders_whole(error: arenite.Error) -> None:
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_threads_share_a_model() -> None:
    with arenite.Runtime() as runtime, ThreadPoolExecutor(8) as pool:
        model = runtime.load("null:", **SETTINGS)
        prompts = [f"prompt {i}" for i in range(32)]
        answers = pool.map(lambda prompt: model.generate(prompt, max_tokens=12).text, prompts)
        assert list(answers) == [alone(prompt, 12) for prompt in prompts]


@pytest.mark.usefixtures("slow")
def test_asyncio_twins_stream_await_and_cancel() -> None:
    async def talk(model: arenite.Model) -> None:
        streamed = [piece async for piece in model.stream("hello", max_tokens=20)]
        assert "".join(streamed) == alone("hello", 20)
        several = await asyncio.gather(*(model.agenerate(f"p{i}", max_tokens=9) for i in range(10)))
        assert [one.text for one in several] == [alone(f"p{i}", 9) for i in range(10)]
        ticket = model.submit("long", max_tokens=200)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(_await(ticket), 0.01)
        assert ticket.result(timeout=10).reason == "cancelled"

    async def _await(ticket: arenite.Ticket) -> object:
        return await ticket

    with arenite.Runtime() as runtime:
        asyncio.run(talk(runtime.load("null:", **SETTINGS)))


@pytest.mark.parametrize(("settings", "says"), [
    ({"contxt": 5}, "unknown setting 'contxt': known are"), ({"context": 0}, "context is 0"),
    ({"streams": 257}, "streams"), ({"streams": 64, "batch": 32}, "batch 32 is smaller"),
    ({"kv_type": "q9"}, "kv_type"), ({"kv_type": "q8_0", "flash_attention": False}, "needs flash_attention"),
    ({"weights": "disk"}, "weights"), ({"threads": -1}, "threads"), ({"context": "many"}, "context"),
])
def test_settings_are_checked_before_anything_happens(settings: dict[str, object], says: str) -> None:
    with arenite.Runtime() as runtime, pytest.raises(arenite.ConfigError, match=says):
        runtime.load("null:", **settings)


@pytest.mark.parametrize(("settings", "says"), [
    ({"max_token": 5}, "unknown setting 'max_token'"), ({"max_tokens": 0}, "max_tokens"), ({"stop": [""]}, "stop"),
    ({"stop": ["x"] * 17}, "stop"), ({"temperature": -1}, "temperature"),
])
def test_requests_are_checked_before_they_are_sent(settings: dict[str, object], says: str) -> None:
    with arenite.Runtime() as runtime:
        model = runtime.load("null:", **SETTINGS)
        with pytest.raises(arenite.InvalidRequest, match=says):
            model.submit("x", **settings)


def test_prompts_are_checked() -> None:
    with arenite.Runtime() as runtime:
        model = runtime.load("null:", **SETTINGS)
        with pytest.raises(arenite.ContextOverflow, match="300 tokens"):
            model.generate("x" * 300)
        with pytest.raises(arenite.InvalidRequest, match="empty"):
            model.generate("")
        with pytest.raises(arenite.InvalidRequest, match="no chat template"):
            model.chat([{"role": "user", "content": "x"}])
        with pytest.raises(arenite.InvalidRequest, match="token 257 is not in the vocabulary"):
            model.generate([1, 257])
        assert model.generate([97, 98], max_tokens=3).text == alone("ab", 3)
        assert model.detokenize([104, 105]) == "hi"


def test_status_is_a_frozen_picture() -> None:
    with arenite.Runtime() as runtime:
        runtime.load("null:", **SETTINGS).generate("abc", max_tokens=5)
        status = runtime.status()
        assert (status.state, status.allocations_after_seal) == ("ready", 0)
        counters = status.models[0].counters
        assert (counters.requests, counters.prompt_tokens, counters.answer_tokens, counters.steps) == (1, 3, 5, 5)
        assert (status.models[0].running, status.models[0].waiting, status.models[0].free_cells) == (0, 0, 256)
