from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arenite.runtime.backends.null import NullBackend
from arenite.runtime.config import ModelOptions
from arenite.runtime.errors import ContextOverflow, EngineFailed
from arenite.runtime.request import Request
from arenite.runtime.scheduler import Scheduler, cells_for
from arenite.runtime.sequence import MOVES, Sequence, State

OPTIONS = ModelOptions("null:", context=64, streams=3, batch=8)


def sequence(ticket: int, prompt: int, answer: int | None) -> Sequence:
    return Sequence.begin(ticket, Request(tuple(range(1, prompt + 1)), max_tokens=answer))


@given(st.lists(st.tuples(st.integers(1, 40), st.one_of(st.none(), st.integers(1, 30))), min_size=1, max_size=12))
def test_every_step_obeys_the_contract_and_everybody_is_served(requests: list[tuple[int, int | None]]) -> None:
    backend = NullBackend(OPTIONS)
    scheduler, batch, done = Scheduler(backend.info), backend.batch, 0
    expected = 0
    for ticket, (prompt, answer) in enumerate(requests):
        try:
            scheduler.add(sequence(ticket, prompt, answer))
            expected += 1
        except ContextOverflow:
            assert prompt + (answer or 1) > OPTIONS.context
    steps = 0
    while scheduler.busy:
        scheduler.admit()
        assert scheduler.running, "an idle pool admits whoever is first"
        assert sum(cells_for(scheduler.info, s.request) for s in scheduler.running) + scheduler.free_cells == 64
        assert len({s.slot for s in scheduler.running}) == len(scheduler.running) <= OPTIONS.streams
        decoding = [s for s in scheduler.running if s.state is State.DECODE]
        n, wanted = scheduler.plan(batch)
        assert 1 <= n <= OPTIONS.batch
        assert wanted[: len(decoding)] == decoding, "decode first"
        assert int(np.count_nonzero(batch.outputs[:n])) == len(wanted)
        assert backend.decode(n).shape == (len(wanted), 257), "the fake checks positions and slots"
        for s in wanted:
            if s.state is State.PREFILL:
                s.move(State.DECODE)
            s.append(7)
            if s.answer_length == s.request.max_tokens or len(s.tokens) == OPTIONS.context:
                slot = scheduler.retire(s)
                assert slot is not None
                backend.drop(slot)
                done += 1
        steps += 1
        assert steps < 5000
    assert done == expected
    assert scheduler.free_cells == OPTIONS.context


def test_first_come_first_served() -> None:
    scheduler = Scheduler(NullBackend(OPTIONS).info)
    for ticket in range(5):
        scheduler.add(sequence(ticket, 4, 4))
    scheduler.admit()
    assert [s.ticket for s in scheduler.running] == [0, 1, 2]


def test_a_request_that_can_never_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(ContextOverflow, match=r"60 tokens and 5 .* holds 64") as caught:
        Scheduler(NullBackend(OPTIONS).info).add(sequence(1, 60, 5))
    assert (caught.value.prompt_tokens, caught.value.max_tokens, caught.value.context) == (60, 5, 64)


def test_only_the_moves_of_the_table_are_legal() -> None:
    for state in State:
        for target in State:
            one = sequence(1, 1, 1)
            one.state = state
            if target in MOVES[state]:
                one.move(target)
                assert one.state is target
            else:
                with pytest.raises(EngineFailed):
                    one.move(target)


def test_a_waiting_sequence_can_be_taken_out() -> None:
    scheduler = Scheduler(NullBackend(OPTIONS).info)
    one = sequence(1, 4, 4)
    scheduler.add(one)
    assert scheduler.retire(one) is None
    assert not scheduler.busy
