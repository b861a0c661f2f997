from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from arenite.runtime.errors import InvalidRequest
from arenite.runtime.request import Sampling
from arenite.runtime.sampling import Sampler, candidates

Logits = NDArray[np.float32]


def random_logits(seed: int, size: int = 400) -> Logits:
    return np.random.default_rng(seed).normal(0, 4, size).astype(np.float32)


def plain_filters(logits: Logits, rule: Sampling) -> dict[int, float]:
    """Do what the filters say in the slowest way: sort everything, cut, weigh.  The yardstick."""
    order = sorted(range(len(logits)), key=lambda token: (-float(logits[token]), token))
    if rule.top_k:
        order = order[: rule.top_k]
    weights = np.exp(logits[order].astype(np.float64) - float(logits[order[0]]))
    share = weights / weights.sum()
    kept = order
    if rule.top_p < 1:
        kept = order[: int(np.searchsorted(np.cumsum(share), rule.top_p)) + 1]
    kept = [token for i, token in enumerate(kept) if i == 0 or weights[i] >= rule.min_p]
    top = float(logits[kept[0]])
    return {token: float(np.exp((float(logits[token]) - top) / rule.temperature)) for token in kept}


@given(st.integers(0, 1 << 30), st.sampled_from([0, 1, 5, 40, 1000]), st.sampled_from([0.3, 0.9, 1.0]),
       st.sampled_from([0.0, 0.05, 0.5]), st.sampled_from([0.2, 1.0, 3.0]))
def test_the_fast_filters_keep_what_the_slow_ones_keep(
    seed: int, top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    rule = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = random_logits(seed)
    tokens, weights = candidates(logits, rule)
    expected = plain_filters(logits, rule)
    assert tokens.tolist() == list(expected)
    assert weights == pytest.approx(list(expected.values()))


def test_greedy_takes_the_largest_and_draws_nothing() -> None:
    sampler = Sampler(Sampling())
    logits = random_logits(1)
    assert sampler.choose(logits.copy(), []) == int(logits.argmax())
    assert sampler.draws == 0


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=3))
    counts = np.bincount([sampler.choose(logits.copy(), []) for _ in range(20_000)], minlength=4) / 20_000
    assert counts == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.015)


@given(st.integers(0, (1 << 64) - 1), st.integers(0, 20))
def test_a_sampler_rebuilt_from_seed_and_draws_goes_on_as_the_first_would(seed: int, before: int) -> None:
    rule = Sampling(temperature=1.0, seed=seed)
    first = Sampler(rule)
    for i in range(before):
        first.choose(random_logits(i), [])
    second = Sampler(rule, draws=first.draws)
    following = [random_logits(1000 + i) for i in range(5)]
    assert [first.choose(x.copy(), []) for x in following] == [second.choose(x.copy(), []) for x in following]


def test_an_unset_seed_is_drawn_and_reported() -> None:
    one, two = Sampler(Sampling(temperature=1.0)), Sampler(Sampling(temperature=1.0))
    assert one.seed != two.seed


def test_penalties_lower_recent_tokens_only() -> None:
    logits = np.array([2.0, 1.9, -1.0], np.float32)
    assert Sampler(Sampling(repeat_penalty=1.5)).choose(logits.copy(), [0]) == 1
    assert Sampler(Sampling(presence_penalty=0.5)).choose(logits.copy(), [0]) == 1
    assert Sampler(Sampling(frequency_penalty=0.06)).choose(logits.copy(), [0]) == 0
    assert Sampler(Sampling(frequency_penalty=0.06)).choose(logits.copy(), [0, 0]) == 1
    assert Sampler(Sampling(repeat_penalty=1.5, penalty_window=1)).choose(logits.copy(), [0, 2]) == 0
    negative = np.array([-1.0, -1.2], np.float32)
    assert Sampler(Sampling(repeat_penalty=1.5)).choose(negative, [0]) == 1


@pytest.mark.parametrize("bad", [
    {"temperature": -0.1}, {"temperature": float("nan")}, {"temperature": 101}, {"top_k": -1}, {"top_k": 1.5},
    {"top_p": 0}, {"top_p": 1.1}, {"min_p": -0.1}, {"min_p": 2}, {"repeat_penalty": 0}, {"frequency_penalty": 3},
    {"presence_penalty": -3}, {"penalty_window": -1}, {"seed": -1}, {"seed": 1 << 64}, {"top_k": True},
    {"temperature": "hot"},
])
def test_values_out_of_range_are_refused_by_name(bad: dict[str, float]) -> None:
    name = next(iter(bad))
    with pytest.raises(InvalidRequest, match=name):
        Sampling(**bad)  # type: ignore[arg-type]
