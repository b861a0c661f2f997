"""Scheduler, pool and lane on the fake backend and a fake clock: ends, order, cells, classes, deadlines, keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arenite.runtime import pool
from arenite.runtime.backends.null import NullBackend
from arenite.runtime.config import ModelOptions
from arenite.runtime.errors import ContextOverflow, DeadlineMissed, EngineFailed, KeyTaken
from arenite.runtime.events import Failed, Finished, Progress, Started
from arenite.runtime.lane import Lane, turn
from arenite.runtime.request import PRIORITIES, Request
from arenite.runtime.sequence import MOVES, Sequence, State

if TYPE_CHECKING:
    from numpy.typing import NDArray

STEP_S, ROW_S = 0.01, 0.001


class Clock:
    """Time that passes only when something takes it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Timed(NullBackend):
    """The fake with a price: a step costs `STEP_S` and `ROW_S` per row."""

    clock: Clock

    def decode(self, n: int) -> NDArray[Any]:
        self.clock.now += STEP_S + ROW_S * n
        return super().decode(n)


@dataclass
class World:
    """One or more models under one clock, stepped as the engine does."""

    lanes: list[Lane]
    clock: Clock
    asked: dict[int, Request] = field(default_factory=dict)
    said: dict[int, list[int]] = field(default_factory=dict)
    ended: dict[int, Finished | Failed] = field(default_factory=dict)
    started: list[int] = field(default_factory=list)
    started_at: dict[int, float] = field(default_factory=dict)
    prompt_rows: list[int] = field(default_factory=list)

    def submit(self, ticket: int, request: Request, lane: int = 0) -> None:
        self.asked[ticket] = request
        self.lanes[lane].submit(ticket, request, self.clock.now)
        self.collect()

    def step(self) -> bool:
        """Do what a pass of the engine does, and check the accounts; False if nothing was left to do."""
        for each in self.lanes:
            each.expire()
        lane = turn(self.lanes, self.clock.now)
        if lane is not None:
            before = lane.counters.prompt_tokens
            lane.step()
            lane.stepped = self.clock.now
            self.prompt_rows.append(lane.counters.prompt_tokens - before)
        self.collect()
        for each in self.lanes:
            scheduler, cells = each.scheduler, each.scheduler.pool.cells
            scheduler.pool.audit()
            assert cells.used + cells.reserved + cells.free == cells.total
            assert isinstance(each.backend, NullBackend)
            assert cells.used == each.backend.used, "the fake counts cells by itself"
            assert len(scheduler.running) <= each.backend.info.streams
        return lane is not None

    def collect(self) -> None:
        for lane in self.lanes:
            for event in lane.events:
                assert event.ticket not in self.ended, "nothing comes behind the end"
                match event:
                    case Progress():
                        self.said.setdefault(event.ticket, []).extend(event.tokens)
                    case Started():
                        assert event.ticket not in self.started
                        self.started.append(event.ticket)
                        self.started_at[event.ticket] = self.clock.now
                    case Finished() | Failed():
                        self.ended[event.ticket] = event
                    case _:
                        pass
            lane.events = []

    def run(self, most: int = 20_000) -> None:
        for _ in range(most):
            if not self.step():
                return
        pytest.fail("it does not come to an end")


def world(models: int = 1, **options: Any) -> World:
    clock, lanes = Clock(), []
    for _ in range(models):
        chosen = ModelOptions("null:", **{"context": 256, "streams": 3, "batch": 32, **options})
        backend = Timed(chosen)
        backend.clock = clock
        lanes.append(Lane(backend, chosen, clock))
    return World(lanes, clock)


def prompt(n: int, letter: int = 97) -> tuple[int, ...]:
    return tuple(letter + i % 20 for i in range(n))


HEADS = [prompt(60, letter) for letter in (97, 98, 99)]
OPTIONS = st.fixed_dictionaries({
    "context": st.sampled_from([64, 128, 256]), "streams": st.integers(1, 4), "batch": st.sampled_from([8, 32]),
    "remember": st.sampled_from([0, 2, 5]), "host_cache": st.sampled_from(["0", "1KiB", "1MiB"]),
    "admission": st.sampled_from(["optimistic", "reserve"]), "aging_s": st.sampled_from([0.2, 5.0]),
    "deterministic": st.sampled_from([False, False, False, True]),
})
REQUESTS = st.builds(
    lambda head, cut, tail, **rest: Request((*HEADS[head][:cut], *tail), **rest),
    st.integers(0, 2), st.integers(1, 60), st.lists(st.integers(97, 122), max_size=12),
    max_tokens=st.sampled_from([None, 1, 5, 30, 60]), priority=st.sampled_from(PRIORITIES),
    deadline=st.sampled_from([None, None, None, 0.2, 3.0]), key=st.sampled_from([None, None, "a", "b"]),
    policy=st.sampled_from(["latest", "queue", "reject"]),
)
ARRIVALS = st.lists(st.tuples(REQUESTS, st.integers(0, 6), st.integers(0, 1), st.integers(0, 9)), max_size=16)


@pytest.mark.parametrize("least_spilled", [8, 64])
@settings(max_examples=120)
@given(options=OPTIONS, arrivals=ARRIVALS)
def test_whatever_comes_each_request_ends_once_with_its_own_answer(
    least_spilled: int, options: dict[str, Any], arrivals: list[tuple[Request, int, int, int]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "LEAST_SPILLED", least_spilled)
        here = world(models=2, **options)
        for ticket, (request, steps, lane, cancelled) in enumerate(arrivals, 1):
            here.submit(ticket, request, lane)
            for _ in range(steps):
                here.step()
            if cancelled == 0:
                here.lanes[lane].cancel(ticket)
        here.run()
        assert set(here.ended) == set(here.asked)
        for ticket, end in here.ended.items():
            if isinstance(end, Failed):
                assert isinstance(end.error, (ContextOverflow, KeyTaken, DeadlineMissed))
                continue
            request, said = here.asked[ticket], here.said.get(ticket, [])
            assert said == alone(request.tokens, len(said)), "neighbours, sharing and suspension change no token"
            if end.reason == "length":
                longest = here.lanes[0].scheduler.context - len(request.tokens)
                assert len(said) == min(request.max_tokens or longest, longest)
        for each in here.lanes:
            each.scheduler.pool.clear()
            assert each.scheduler.pool.cells.free == each.scheduler.pool.cells.total


def alone(tokens: tuple[int, ...], n: int) -> list[int]:
    """Return the fake's greedy answer, computed by itself."""
    backend = NullBackend(ModelOptions("null:", context=512, streams=1, batch=512))
    answer: list[int] = []
    for i in range(n):
        new = list(tokens) if i == 0 else answer[-1:]
        at = 0 if i == 0 else len(tokens) + i - 1
        batch = backend.batch
        batch.tokens[: len(new)], batch.positions[: len(new)] = new, range(at, at + len(new))
        batch.outputs[: len(new)] = [0] * (len(new) - 1) + [1]
        answer.append(int(backend.decode(len(new))[0].argmax()))
    return answer


@given(
    st.lists(st.tuples(st.sampled_from(PRIORITIES), st.integers(0, 3)), min_size=2, max_size=30), st.integers(1, 3)
)
def test_inside_a_class_the_order_is_that_of_arrival(arrivals: list[tuple[Any, int]], streams: int) -> None:
    here = world(streams=streams, remember=0)
    for ticket, (priority, steps) in enumerate(arrivals):
        here.submit(ticket, Request(prompt(10), max_tokens=10, priority=priority))
        for _ in range(steps):
            here.step()
    here.run()
    for wanted in PRIORITIES:
        order = [ticket for ticket in here.started if arrivals[ticket][0] == wanted]
        assert order == sorted(order)


@pytest.mark.parametrize(("crowd", "patience"), [("interactive", 1), ("control", 3)])
def test_nobody_starves_beyond_the_aging_bound(crowd: str, patience: int) -> None:
    aging = 1.0
    here = world(streams=2, aging_s=aging)
    lonely = "background" if crowd == "interactive" else "interactive"
    ticket, lane = 1, here.lanes[0]
    here.submit(0, Request(prompt(10, 98), max_tokens=10, priority=lonely))  # type: ignore[arg-type]
    longest = 20 * (STEP_S + 32 * ROW_S)
    while 0 not in here.ended:
        while len(lane.scheduler.waiting) + len(lane.scheduler.running) < 6:
            here.submit(ticket, Request(prompt(10), max_tokens=10, priority=crowd))  # type: ignore[arg-type]
            ticket += 1
        here.step()
        assert here.clock.now < 2 * patience * aging + 10 * longest, "it should have had its turn"


def test_a_large_request_lets_small_ones_pass_but_not_for_ever() -> None:
    here = world(streams=4, context=128, remember=0, aging_s=1.0, admission="reserve")
    here.submit(0, Request(prompt(20), max_tokens=60))
    here.step()
    here.submit(1, Request(prompt(60), max_tokens=60))  # does not fit beside the first
    here.submit(2, Request(prompt(10), max_tokens=10))
    here.step()
    assert here.started == [0, 2], "what does not fit blocks nobody behind it"
    ticket = 3
    while 1 not in here.started:
        if len(here.lanes[0].scheduler.waiting) < 2:
            here.submit(ticket, Request(prompt(10), max_tokens=40))
            ticket += 1
        here.step()
        assert here.clock.now < 4.0
    here.run()


def test_a_control_request_takes_the_place_of_background_work_which_goes_on_later() -> None:
    here = world(streams=2, context=256)
    for ticket in (0, 1):
        here.submit(ticket, Request(prompt(30, 98 + ticket), max_tokens=60, priority="background"))
    for _ in range(10):
        here.step()
    here.submit(2, Request(prompt(10), max_tokens=5, priority="control"))
    here.step()
    here.step()
    assert here.said.get(2), "it does not wait for anybody"
    assert here.lanes[0].scheduler.preempted == 1
    here.run()
    for ticket in (0, 1):
        assert here.said[ticket] == alone(here.asked[ticket].tokens, 60)


def test_the_nearest_deadline_goes_first_and_strikes_with_what_there_is() -> None:
    here = world(streams=1, remember=0)
    here.submit(0, Request(prompt(10), max_tokens=5))
    here.step()
    here.submit(1, Request(prompt(10), max_tokens=3, deadline=4.0))
    here.submit(2, Request(prompt(10), max_tokens=3, deadline=2.0))
    here.run()
    assert here.started == [0, 2, 1]
    here.submit(3, Request(prompt(10), max_tokens=200, deadline=0.5))
    here.run()
    end = here.ended[3]
    assert isinstance(end, Finished)
    assert end.reason == "deadline"
    assert 0.5 <= end.usage.total_s < 0.5 + 2 * (STEP_S + 32 * ROW_S), "within one step"
    assert here.said[3] == alone(here.asked[3].tokens, len(here.said[3]))


def test_a_deadline_that_can_not_be_met_is_refused_at_once_with_the_estimate() -> None:
    here = world(step_ms=50)
    here.submit(0, Request(prompt(200), max_tokens=2))
    here.run()
    here.submit(1, Request(prompt(200, 101), max_tokens=2, deadline=0.05))
    end = here.ended[1]
    assert isinstance(end, Failed)
    assert isinstance(end.error, DeadlineMissed)
    assert end.error.estimate_s > 0.1
    assert "50 ms" in str(end.error)


def test_keys_latest_queue_and_reject() -> None:
    here = world()
    here.submit(0, Request(prompt(10), max_tokens=50, key="nav"))
    here.step()
    here.submit(1, Request(prompt(10), max_tokens=50, key="nav", policy="reject"))
    assert isinstance(here.ended[1], Failed)
    assert isinstance(here.ended[1].error, KeyTaken)
    here.submit(2, Request(prompt(10), max_tokens=5, key="nav", policy="queue"))
    here.step()
    assert here.started == [0], "it waits for the one before it"
    here.submit(3, Request(prompt(500), max_tokens=5, key="nav", policy="latest"))
    assert set(here.ended) == {1, 3}, "what can never run ends nobody"
    here.submit(4, Request(prompt(10), max_tokens=5, key="nav", policy="latest"))
    assert [getattr(here.ended[t], "reason", "") for t in (0, 2)] == ["superseded"] * 2
    here.submit(5, Request(prompt(10), max_tokens=5, key="nav"))
    here.submit(6, Request(prompt(10), max_tokens=5, key="other"))
    here.run()
    assert here.started.index(6) < here.started.index(5)
    assert all(isinstance(here.ended[t], Finished) for t in (4, 5, 6))


def test_prompt_chunks_keep_a_step_near_its_target() -> None:
    here = world(context=2048, batch=512, streams=4, step_ms=50)
    for ticket in range(3):
        here.submit(ticket, Request(prompt(10, 97 + ticket), max_tokens=150))
    for _ in range(10):
        here.step()
    here.submit(9, Request(prompt(1000, 110), max_tokens=5))
    durations = []
    while 9 not in here.said:
        before = here.clock.now
        here.step()
        durations.append(here.clock.now - before)
    assert max(durations[3:]) < 0.075
    assert sum(durations) < 1.0 * 1000 * ROW_S * 2, "and do not crawl"
    quiet = world(context=2048, batch=512, streams=4, step_ms=50)
    quiet.submit(0, Request(prompt(1000), max_tokens=5))
    quiet.run()
    assert max(quiet.prompt_rows) <= 64, "also when nothing decodes: somebody may come"


def test_a_control_prompt_holds_less_urgent_streams_for_a_moment() -> None:
    here = world(context=8192, batch=512, streams=4, step_ms=50, aging_s=1.0)
    for ticket in range(2):
        here.submit(ticket, Request(prompt(10, 97 + ticket), max_tokens=600, priority="background"))
    for _ in range(20):
        here.step()
    here.submit(8, Request(prompt(10, 120), max_tokens=600, priority="control"))
    while 8 not in here.said:
        here.step()
    here.submit(9, Request(prompt(100, 110), max_tokens=5, priority="control"))
    said = {ticket: len(here.said[ticket]) for ticket in (0, 8)}
    while 9 not in here.said:
        here.step()
    assert len(here.said[0]) <= said[0] + 1, "it waits"
    assert len(here.said[8]) > said[8] + 1, "another control request does not"
    here.submit(10, Request(prompt(1900, 105), max_tokens=5, priority="control"))
    held = 0.0
    while 10 not in here.said:
        before, length = here.clock.now, len(here.said[0])
        here.step()
        held = held + here.clock.now - before if len(here.said[0]) == length else 0.0
        assert held < 1.2, "nobody is held for longer than the aging"


def test_the_second_request_with_a_long_head_waits_for_the_first_and_shares_it() -> None:
    here = world(context=1024)
    head = prompt(300)
    for ticket in range(3):
        here.submit(ticket, Request((*head, 120 + ticket), max_tokens=5))
    here.run()
    cached = sorted(end.usage.cached_tokens for end in here.ended.values() if isinstance(end, Finished))
    assert cached == [0, 300, 300]
    assert here.lanes[0].counters.prompt_tokens == 301 + 1 + 1


def test_what_the_cache_has_no_room_for_comes_back_from_the_host() -> None:
    here = world(context=256, streams=1, remember=4)
    first, second = prompt(150), prompt(150, 105)
    for ticket, tokens in enumerate((first, second, (*first, 99))):
        here.submit(ticket, Request(tokens, max_tokens=4))
        here.run()
    end = here.ended[2]
    assert isinstance(end, Finished)
    assert end.usage.cached_tokens == 150
    assert here.lanes[0].status().cache.spilled >= 1


def test_models_take_turns_by_class_then_in_a_circle() -> None:
    here = world(models=3, aging_s=1.0)
    for lane in range(3):
        here.submit(lane, Request(prompt(10), max_tokens=100), lane)
    for _ in range(60):
        here.step()
    steps = [lane.counters.steps for lane in here.lanes]
    assert max(steps) - min(steps) <= 1
    here.submit(9, Request(prompt(10), max_tokens=5, priority="control"), 1)
    before = [lane.counters.steps for lane in here.lanes]
    for _ in range(5):
        here.step()
    assert [lane.counters.steps - n for lane, n in zip(here.lanes, before, strict=True)] == [0, 5, 0]
    here.run()


def test_a_failed_step_ends_those_in_it_and_the_next_request_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    here = world()
    here.submit(0, Request(prompt(10), max_tokens=5))
    with monkeypatch.context() as patch:
        def broken(*_: object) -> None:
            raise EngineFailed("provoked")
        patch.setattr(NullBackend, "decode", broken)
        here.lanes[0].step()
        here.collect()
    assert isinstance(here.ended[0], Failed)
    here.submit(1, Request(prompt(10), max_tokens=5))
    here.run()
    assert here.said[1] == alone(prompt(10), 5)


def test_a_request_without_a_place_though_nothing_runs_ends_instead_of_spinning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = world()
    monkeypatch.setattr(pool.Pool, "place", lambda *_: False)
    here.submit(0, Request(prompt(10), max_tokens=5))
    for _ in range(3):
        here.step()
    end = here.ended[0]
    assert isinstance(end, Failed)
    assert "no place was found" in str(end.error)


@pytest.mark.parametrize("deterministic", [False, True])
def test_only_tokens_of_prompts_are_counted_as_such(deterministic: bool) -> None:
    here = world(deterministic=deterministic)
    for ticket in range(3):
        here.submit(ticket, Request(prompt(10, 97 + ticket), max_tokens=20))
    here.run()
    assert here.lanes[0].counters.prompt_tokens == 30


def test_a_request_that_can_never_fit_is_refused_with_the_numbers() -> None:
    here = world(context=64)
    here.submit(1, Request(prompt(60), max_tokens=5))
    end = here.ended[1]
    assert isinstance(end, Failed)
    with pytest.raises(ContextOverflow, match=r"60 tokens and 5 .* holds 64") as caught:
        raise end.error
    assert (caught.value.prompt_tokens, caught.value.max_tokens, caught.value.context) == (60, 5, 64)


def test_only_the_moves_of_the_table_are_legal() -> None:
    for state in State:
        for target in State:
            one = Sequence.begin(1, Request((1,)))
            one.state = state
            if target in MOVES[state]:
                one.move(target)
                assert one.state is target
            else:
                with pytest.raises(EngineFailed):
                    one.move(target)
