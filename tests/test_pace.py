"""Chunk sizes against machines whose costs are known: what a step takes is computed here, never measured."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arenite.runtime.pace import SLACK, SLACK_ALONE, Pace

ROOM, TARGET_S = 512, 0.050
Cost = Callable[[int, int, int], float]  # decoding rows, prompt rows, depth -> seconds


def linear(base: float, row: float, token: float, deeper: float = 0.0) -> Cost:
    """Return steps whose tokens cost the same whatever the width, and more the deeper they lie."""
    return lambda rows, prompt, depth: base + row * rows + prompt * (token + deeper * depth)


def tiled(rows: int, prompt: int, depth: int) -> float:
    """Flash attention on a CPU, as in the table of `runtime.pace`."""
    wide = rows + prompt >= 64
    return 0.022 + 0.006 * rows + prompt * (0.003 + depth * (1.4e-6 if wide else 14e-6))


def prefill(pace: Pace, cost: Cost, rows: int, tokens: int) -> list[tuple[int, float]]:
    """Compute a prompt beside ``rows`` decoding sequences; returns (chunk, seconds) of each step."""
    steps, depth = [], 0
    while depth < tokens:
        size = pace.chunk(rows, ROOM - rows, tokens - depth, depth)
        assert 0 <= size <= tokens - depth
        seconds = cost(rows, size, depth)
        pace.note(rows, size, depth, seconds)
        steps.append((size, seconds))
        depth += size
        assert len(steps) < 20 * tokens
    return steps


def decode(pace: Pace, cost: Cost, rows: int) -> None:
    for _ in range(20):
        pace.note(rows, 0, 0, cost(rows, 0, 0))


@given(
    base=st.floats(0.001, 0.2), row=st.floats(0.0, 0.01), token=st.floats(1e-5, 0.05), deeper=st.floats(0, 5e-6),
    rows=st.integers(0, 16), tile=st.sampled_from([0, 64]), target=st.floats(0.005, 0.5),
)
def test_every_prompt_gets_on_and_steps_settle_near_what_they_may_take(
    base: float, row: float, token: float, deeper: float, rows: int, tile: int, target: float
) -> None:
    pace, cost = Pace(target, tile), linear(base, row, token, deeper)
    prefill(pace, cost, 0, 100)
    decode(pace, cost, max(1, rows))
    steps = prefill(pace, cost, rows, 1500)
    alone = base + row * max(1, rows)  # with nobody decoding, what one takes is all that is known
    dearest = token + deeper * 1500
    may = alone + max(target - alone, (SLACK if rows else SLACK_ALONE) * alone)
    width = 128 * dearest if tile and not rows else 0.0  # where nobody waits a wide step may be tried
    assert all(seconds <= 1.4 * may + dearest + width for _, seconds in steps[8:])


def test_prompts_beside_streams_are_neither_starved_nor_starving() -> None:
    pace, cost = Pace(TARGET_S), linear(0.022, 0.006, 0.0037, 1.6e-6)
    decode(pace, cost, 4)
    steps = prefill(pace, cost, 4, 2000)
    assert max(seconds for _, seconds in steps) < 2 * cost(4, 0, 0)
    assert sum(seconds for _, seconds in steps) < 4 * sum(cost(0, 1, depth) - 0.022 for depth in range(2000))


def test_a_base_that_grows_meanwhile_is_not_laid_to_the_tokens() -> None:
    pace = Pace(TARGET_S)
    decode(pace, linear(0.022, 0.006, 0.0037), 4)
    sizes, depth = [], 0
    while depth < 2000:  # the streams grow, too: without steps that decode alone each token would look dearer
        growing = linear(0.022 + depth * 15e-6, 0.006, 0.0037)
        size = pace.chunk(4, ROOM, 2000 - depth, depth)
        pace.note(4, size, depth, growing(4, size, depth))
        sizes.append(size)
        depth += size
    assert min(size for size in sizes[5:-1] if size) >= 4
    assert sizes.count(0) >= len(sizes) // 12, "now and then a step shows what decoding alone takes"


def test_deep_prompts_alone_are_computed_in_wide_steps() -> None:
    pace = Pace(TARGET_S, 64)
    prefill(pace, tiled, 0, 3000)
    steps = prefill(pace, tiled, 0, 3000)
    deep = steps[len(steps) // 2:]
    assert sum(size for size, _ in deep if size >= 64) > 0.95 * sum(size for size, _ in deep)
    assert steps[0][1] < 2 * TARGET_S, "where it makes no difference the target counts"
    narrow = sum(tiled(0, 8, depth) for depth in range(0, 3000, 8))
    assert sum(seconds for _, seconds in steps) < narrow / 3


def test_streams_never_wait_for_a_wide_step_they_can_not_afford() -> None:
    pace = Pace(TARGET_S, 64)
    decode(pace, tiled, 4)
    prefill(pace, tiled, 0, 3000)
    steps = prefill(pace, tiled, 4, 1000)
    assert max(seconds for _, seconds in steps) < 2 * tiled(4, 0, 0)


def test_who_is_in_a_hurry_is_computed_in_few_steps() -> None:
    pace, cost = Pace(TARGET_S), linear(0.022, 0.006, 0.0037)
    prefill(pace, cost, 0, 500)
    assert pace.chunk(0, ROOM, 32, 0, hurry=True) == 32
    assert pace.chunk(0, ROOM, 100, 0) < 20
    assert cost(0, pace.chunk(0, ROOM, 2000, 0, hurry=True), 0) < 6 * TARGET_S


@pytest.mark.parametrize("rows", [0, 4])
def test_estimates_come_from_what_steps_have_cost(rows: int) -> None:
    pace, cost = Pace(TARGET_S), linear(0.010, 0.002, 0.001)
    assert pace.prompt_s(1000) == 0.0, "nothing is known yet"
    decode(pace, cost, 4)
    steps = prefill(pace, cost, rows, 1000)
    assert pace.prompt_s(1000, rows) == pytest.approx(sum(seconds for _, seconds in steps), rel=0.3)
