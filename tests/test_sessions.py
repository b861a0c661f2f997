"""Tickets and sessions on the fake backend: states, partial answers, fallbacks, memory with a time and a bound."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

import arenite
from arenite.runtime.backends.null import NullBackend
from arenite.runtime.session import Session, Sessions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arenite.runtime.config import ModelOptions

CHATML = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}<assistant>"
)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[arenite.Model]:
    """Give the fake, slowed to a millisecond per step, with a chat template."""
    build = NullBackend.__init__

    def slowed(self: NullBackend, options: ModelOptions) -> None:
        build(self, options, step_s=0.001)
        object.__setattr__(self.info, "chat_template", CHATML)

    monkeypatch.setattr(NullBackend, "__init__", slowed)
    with arenite.Runtime() as runtime:
        yield runtime.load("null:", context=4096, streams=2, batch=64)


def test_the_states_of_a_ticket_are_those_of_ros_actions(model: arenite.Model) -> None:
    running = [model.submit("a", max_tokens=2000) for _ in range(2)]
    waiting = model.submit("b", max_tokens=3, priority="background")
    next(iter(running[0]))
    assert (running[0].state, waiting.state) == ("executing", "accepted")
    assert running[0].partial()
    running[0].cancel(wait=True)
    assert running[0].result().reason == "cancelled"
    assert waiting.result(10).reason == "length"
    assert waiting.state == "succeeded"
    late = model.submit("c", max_tokens=2000, deadline=0.05)
    assert late.result(5).reason == "deadline"
    assert late.state == "aborted"
    assert late.completion().text == late.partial()
    with pytest.raises(arenite.ContextOverflow):
        model.submit("d" * 5000)
    running[1].cancel()
    assert running[1].state in {"canceling", "canceled"}


def test_a_cancelled_ticket_has_freed_its_place_when_cancel_returns(model: arenite.Model) -> None:
    holding = [model.submit("a", max_tokens=3000) for _ in range(2)]
    for ticket in holding:
        next(iter(ticket))
    holding[0].cancel(wait=5)
    begin = time.perf_counter()
    next(iter(model.submit("b", max_tokens=5)))
    assert time.perf_counter() - begin < 1.0
    holding[1].cancel()


def test_a_fallback_is_what_comes_at_the_deadline_and_it_says_so(model: arenite.Model) -> None:
    slow = model.submit("a", max_tokens=3000, deadline=0.05, fallback="stop")
    assert (slow.result(), slow.fell_back) == ("stop", True)
    quick = model.submit("a", max_tokens=3, deadline=5.0, fallback="stop")
    assert quick.result().usage.answer_tokens == 3
    assert not quick.fell_back
    model.generate("x" * 1000, max_tokens=1)  # now the cost of a prompt is known
    hopeless = model.submit("y" * 4000, deadline=0.001, fallback="stop")
    assert (hopeless.result(), hopeless.fell_back) == ("stop", True)
    with pytest.raises(arenite.DeadlineMissed):
        model.submit("y" * 4000, deadline=0.001).result(5)

    async def wait() -> Any:
        return await model.submit("a", max_tokens=3000, deadline=0.05, fallback="stop")

    assert asyncio.run(wait()) == "stop"


def test_a_fallback_comes_even_if_the_engine_hangs(model: arenite.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    decode = NullBackend.decode

    def hanging(self: NullBackend, n: int) -> Any:
        release.wait(10)
        return decode(self, n)

    monkeypatch.setattr(NullBackend, "decode", hanging)
    begin = time.monotonic()
    ticket = model.submit("a", max_tokens=5, deadline=0.05, fallback="stop")
    assert ticket.result() == "stop"
    assert time.monotonic() - begin < 2
    release.set()
    ticket.cancel(wait=5)


def test_the_end_is_told_to_who_asked_for_it(model: arenite.Model) -> None:
    told: list[str] = []
    ticket = model.submit("a", max_tokens=3)
    ticket.on_done(lambda ended: told.append(ended.state))
    ticket.result(5)
    ticket.on_done(lambda ended: told.append(ended.state))
    assert told == ["succeeded", "succeeded"]


def test_a_failing_function_of_a_caller_is_logged_and_ends_nobody(
    model: arenite.Model, caplog: pytest.LogCaptureFixture
) -> None:
    ticket = model.submit("a", max_tokens=30)

    def failing(_ended: arenite.Ticket) -> None:
        raise ValueError

    ticket.on_done(failing)
    assert ticket.result(5).reason == "length"
    assert model.generate("b", max_tokens=2).usage.answer_tokens == 2
    assert "on_done failed" in caplog.text


def test_newest_wins(model: arenite.Model) -> None:
    first = model.submit("a", max_tokens=3000, key="nav")
    next(iter(first))
    second = model.submit("b", max_tokens=3, key="nav", policy="latest")
    assert second.result(5).reason == "length"
    assert first.result(5).reason == "superseded"
    assert first.state == "canceled"


@pytest.mark.parametrize(("settings", "message"), [
    ({"priority": "urgent"}, "priority"), ({"deadline": -1.0}, "deadline"), ({"deadline": 0}, "deadline"),
    ({"deadline": float("nan")}, "deadline"), ({"key": ""}, "key"), ({"key": 5}, "key"),
    ({"policy": "newest"}, "policy"),
    ({"stop": ["x"] * 100}, "stop"), ({"logprobs": 50}, "logprobs"), ({"logit_bias": {999: 1.0}}, "logit_bias"),
    ({"temperature": float("nan")}, "temperature"), ({"top_k": -1}, "top_k"),
])
def test_bad_values_are_refused_at_once_and_others_go_on(
    model: arenite.Model, settings: dict[str, Any], message: str
) -> None:
    other = model.submit("a", max_tokens=50)
    with pytest.raises(arenite.InvalidRequest, match=message):
        model.submit("b", **settings)
    assert other.result(5).usage.answer_tokens == 50


def test_a_session_remembers_forks_and_forgets(model: arenite.Model) -> None:
    session = model.session("hall", system="be brief", max_turns=2)
    assert model.session("hall") is session
    first = session.generate("one", max_tokens=5)
    assert [m["content"] for m in session.messages] == ["be brief", "one", first.text]
    second = model.submit("two", session="hall", max_tokens=5).result(5)
    assert second.usage.cached_tokens >= len("<system>be brief\n<user>one\n<assistant>")
    twin = session.fork()
    session.generate("three", max_tokens=5)
    assert [m["content"] for m in session.messages][1::2] == ["two", "three"], "older turns make room"
    assert [m["content"] for m in twin.messages][1::2] == ["one", "two"]
    running = session.submit("four", max_tokens=3000)
    next(iter(running))
    with pytest.raises(arenite.Busy):
        session.submit("five")
    running.cancel(wait=True)
    assert [m["content"] for m in session.messages][1::2] == ["two", "three"], "a broken-off turn is none"
    session.forget()
    with pytest.raises(arenite.UnknownSession):
        session.submit("six")
    assert model.session("hall").messages == [], "opened again it is a new one"
    assert twin.generate("seven", max_tokens=5).usage.answer_tokens == 5
    with pytest.raises(arenite.InvalidRequest):
        twin.submit(["a list"])  # type: ignore[arg-type]


def test_what_is_forgotten_is_out_of_the_cache_too(model: arenite.Model) -> None:
    session = model.session()
    session.generate("a long and secret remark", max_tokens=20)
    probe = model.tokenize([*session.messages, {"role": "user", "content": "more"}])
    assert model.generate(probe, max_tokens=1).usage.cached_tokens > 20
    session.forget()
    with pytest.raises(arenite.InvalidRequest, match="whole numbers"):
        model.forget("all of it")  # type: ignore[arg-type]
    model.forget(probe)  # which the test itself has asked for
    assert model.generate([*probe, 2], max_tokens=1).usage.cached_tokens == 0


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def test_sessions_end_after_their_time(model: arenite.Model) -> None:
    clock = Clock()
    sessions = Sessions(model, clock)
    sessions.open("a", ttl=10.0).generate("hello", max_tokens=2)
    sessions.open("b", ttl=100.0)
    clock.now = 9.0
    sessions.get("a").generate("again", max_tokens=2)
    clock.now = 18.0
    assert sessions.get("a").messages
    clock.now = 30.0
    with pytest.raises(arenite.UnknownSession, match="no session 'a'"):
        sessions.get("a")
    assert len(sessions) == 1
    with pytest.raises(arenite.UnknownSession):
        sessions.forget("a")


@pytest.mark.parametrize("settings", [{"ttl": 0}, {"ttl": "x"}, {"max_turns": 0}, {"max_turns": 1.5}])
def test_settings_of_a_session_are_checked(model: arenite.Model, settings: dict[str, Any]) -> None:
    with pytest.raises(arenite.ConfigError):
        Session(model, "x", **settings)


def test_a_full_queue_says_when_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    build = NullBackend.__init__
    monkeypatch.setattr(NullBackend, "__init__", lambda self, options: build(self, options, step_s=0.002))
    with arenite.Runtime(limit=3) as runtime:
        model = runtime.load("null:", context=1024, streams=1, batch=64)
        model.generate("a", max_tokens=100)
        tickets = [model.submit("a", max_tokens=100) for _ in range(3)]
        next(iter(tickets[0]))
        with pytest.raises(arenite.Busy) as caught:
            model.submit("b")
        assert 50 <= caught.value.retry_ms <= 10_000
        for ticket in tickets:
            ticket.cancel(wait=True)
        assert model.generate("b", max_tokens=2).usage.answer_tokens == 2
