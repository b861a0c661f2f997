from __future__ import annotations

import dataclasses
import math
import secrets
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from arenite.runtime import sampling
from arenite.runtime.errors import EngineFailed, InvalidRequest
from arenite.runtime.request import Sampling
from arenite.runtime.sampling import Sampler, candidates, draw, logprobs_of, real_seed, seed_of_copy

Logits = NDArray[np.float32]
DRAWS = 10_000
VOCABULARIES = (512, 32_000, 151_936)
NO_FILTER = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


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


def test_a_point_on_a_border_belongs_to_the_next_token() -> None:
    assert [draw(np.zeros(4, np.float32), Sampling(temperature=1.0, seed=1), i / 8) for i in range(8)] == [
        0, 0, 1, 1, 2, 2, 3, 3
    ]


@cache
def model_rows(size: int) -> tuple[Logits, ...]:
    """Rows as models make them: a power law over the ranks with noise, some with many ties, one with a broad top."""
    random = np.random.default_rng(size)
    falls = 22.0 - 1.6 * np.log(np.arange(1, size + 1))
    rows = [random.permutation(falls + random.normal(0, 1, size)).astype(np.float32) for _ in range(23)]
    rows[:4] = [(np.round(row * 4) / 4).astype(np.float32) for row in rows[:4]]
    return *rows, random.normal(0, 2, size).astype(np.float32)


@cache
def in_order(size: int, row: int) -> NDArray[np.int64]:
    logits = model_rows(size)[row]
    return np.lexsort((np.arange(size), -logits.astype(np.float64)))


def plain_chain(size: int, row: int, rule: Sampling) -> tuple[NDArray[np.int64], NDArray[np.float64], float]:
    """Return what the chain draws from when nothing is narrowed: tokens, the mass reached with each, the whole."""
    logits, order = model_rows(size)[row], in_order(size, row)
    best = float(logits.max())
    if rule.top_k:
        order = order[: rule.top_k]
    gaps = logits[order].astype(np.float64) - best
    if rule.top_p < 1:
        reached = np.cumsum(np.exp(gaps))
        keep = int(np.searchsorted(reached, rule.top_p * (reached[-1] if rule.top_k else sampling._mass(logits, best))))
        order, gaps = order[: keep + 1], gaps[: keep + 1]
    if rule.min_p:
        order, gaps = order[gaps >= math.log(rule.min_p)], gaps[gaps >= math.log(rule.min_p)]
    reached = np.cumsum(np.exp(gaps / rule.temperature))
    return order, reached, float(reached[-1]) if rule.filtered else sampling._mass(logits, best, rule.temperature)


@pytest.mark.parametrize("size", VOCABULARIES)
@pytest.mark.parametrize("rule", [
    Sampling(temperature=0.8, seed=11),
    Sampling(temperature=1.5, seed=12, top_k=300, top_p=1.0, min_p=0.0),
    Sampling(temperature=1.2, seed=13, top_k=0, min_p=0.0),
    Sampling(temperature=0.7, seed=14, top_k=0, top_p=1.0, min_p=0.02),
    Sampling(temperature=1.0, seed=15, top_k=0, top_p=0.8, min_p=0.01),
    Sampling(temperature=0.9, seed=16, **NO_FILTER),  # type: ignore[arg-type]
], ids=["default", "top_k", "top_p", "min_p", "top_p and min_p", "no filter"])
def test_narrowed_candidates_give_the_tokens_of_the_plain_chain(size: int, rule: Sampling) -> None:
    rows, sampler = model_rows(size), Sampler(rule)
    chosen = np.array([sampler.choose(rows[i % len(rows)], []) for i in range(DRAWS)])
    uniform = np.random.Generator(np.random.Philox(rule.seed)).random(DRAWS)
    expected = np.empty(DRAWS, np.int64)
    for row in range(len(rows)):
        tokens, reached, whole = plain_chain(size, row, rule)
        expected[row :: len(rows)] = tokens[reached.searchsorted(uniform[row :: len(rows)] * whole, "right")]
    assert len(set(chosen.tolist())) > 100, "the draws shall differ for the comparison to mean something"
    assert np.array_equal(chosen, expected)


@pytest.mark.parametrize("size", VOCABULARIES[1:])
def test_narrowing_leaves_few(size: int) -> None:
    for logits in model_rows(size):
        assert 40 <= len(sampling._largest(logits, 40, sampling.NARROW_FROM)) < 200
    assert len(sampling._largest(np.zeros(size, np.float32), 40, sampling.NARROW_FROM)) == size, "ties with the last"


@pytest.mark.parametrize("size", VOCABULARIES)
def test_without_a_filter_no_tail_is_dropped(size: int) -> None:
    rule = Sampling(temperature=1.0, **NO_FILTER)  # type: ignore[arg-type]
    for row in (0, 10, 23):
        tokens, reached, whole = plain_chain(size, row, rule)
        for uniform in (0.0, 0.99, 0.9999, 1 - 1e-5):
            expected = tokens[reached.searchsorted(uniform * whole, "right")]
            assert draw(model_rows(size)[row], rule, uniform) == expected
        rank = tokens.tolist().index(draw(model_rows(size)[row], rule, 1 - 2.0**-53))
        assert 1 - reached[rank] / reached[-1] <= 2 * sampling.MASS_ERROR, "the last number reaches the end"


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("size", VOCABULARIES)
def test_the_mass_is_as_exact_as_it_says(size: int, temperature: float) -> None:
    for logits in model_rows(size):
        best = float(logits.max())
        exact = math.fsum(np.exp((logits.astype(np.float64) - best) / temperature).tolist())
        assert sampling._mass(logits, best, temperature) == pytest.approx(exact, rel=sampling.MASS_ERROR)


@pytest.mark.parametrize("rule", [{"top_k": 5, "top_p": 1.0, "min_p": 0.0}, {"top_k": 0}, NO_FILTER, {}])
def test_ties_go_to_the_lower_token(rule: dict[str, float]) -> None:
    logits = np.full(20_000, -4.0, np.float32)
    logits[[19_999, 7, 12_345, 64]] = 3.0
    logits[[500, 100]] = 0.0, -0.0
    tokens, _ = candidates(logits, Sampling(temperature=1.0, **rule))  # type: ignore[arg-type]
    assert tokens.tolist()[:4] == [7, 64, 12_345, 19_999]
    assert len(tokens) == 4 or tokens.tolist()[4] == 100


@pytest.mark.parametrize("temperature", [1e-310, 1e-9, 1e-5])
@pytest.mark.parametrize("rule", [NO_FILTER, {}])
def test_a_very_cold_draw_takes_the_best(temperature: float, rule: dict[str, float]) -> None:
    logits = model_rows(32_000)[10]
    assert Sampler(Sampling(temperature=temperature, **rule)).choose(logits, []) == logits.argmax()  # type: ignore[arg-type]


@given(st.integers(0, (1 << 64) - 1).filter(lambda seed: seed != 0xFFFFFFFF), st.integers(0, 20))
def test_a_sampler_rebuilt_from_seed_and_draws_goes_on_as_the_first_would(seed: int, before: int) -> None:
    rule = Sampling(temperature=1.0, seed=seed)
    first = Sampler(rule)
    for i in range(before):
        first.choose(random_logits(i), [])
    second = Sampler(rule, draws=first.draws)
    following = [random_logits(1000 + i) for i in range(5)]
    assert [first.choose(x.copy(), []) for x in following] == [second.choose(x.copy(), []) for x in following]


@pytest.mark.parametrize("draws", [0, 1, 2, 3, 4, 5, 7, 8, 1001])
def test_skipping_draws_gives_the_numbers_that_would_have_come(draws: int) -> None:
    every = np.random.Generator(np.random.Philox(99)).random(draws + 6)
    assert Sampler(Sampling(seed=99), draws)._uniform.random(6).tolist() == every[draws:].tolist()


def test_skipping_many_draws_takes_no_time() -> None:
    assert Sampler(Sampling(seed=99), 10**15).draws == 10**15  # drawing them would take years


@pytest.mark.parametrize("seed", [None, -1, 0xFFFFFFFF])
def test_a_seed_that_means_random_is_replaced_by_a_real_one_and_reported(
    seed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = {Sampler(Sampling(temperature=1.0, seed=seed)).seed for _ in range(20)}
    assert len(seeds) > 15
    assert all(0 <= real < 0xFFFFFFFF for real in seeds)
    monkeypatch.setattr(secrets, "randbelow", lambda below: below - 1)
    assert real_seed(seed) == 0xFFFFFFFE, "the largest one that can be drawn is a real seed, too"


def test_a_real_seed_stays() -> None:
    assert [Sampler(Sampling(seed=seed)).seed for seed in (0, 7, (1 << 64) - 1)] == [0, 7, (1 << 64) - 1]


def test_copies_of_a_request_have_seeds_of_their_own() -> None:
    assert seed_of_copy(5, 0) == 5
    assert seed_of_copy(0, 1) == 0xE220A8397B1DCDAF >> 11 | 1 << 52, "SplitMix64 as published"
    seeds = [seed_of_copy(seed, copy) for seed in range(50) for copy in range(1, 17)]
    assert len(set(seeds)) == len(seeds)
    assert all(1 << 52 <= seed < 1 << 53 for seed in seeds)
    assert len({Sampler(Sampling(seed=seed))._uniform.random() for seed in seeds}) == len(seeds)


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
    {"presence_penalty": -3}, {"penalty_window": -1}, {"seed": -2}, {"seed": 1 << 64}, {"top_k": True},
    {"temperature": "hot"}, {"repeat_penalty": 1e-30}, {"logprobs": -1}, {"logprobs": 21}, {"logprobs": True},
    {"logprobs": 2.0}, {"logit_bias": {-1: 1}}, {"logit_bias": {1.5: 1}}, {"logit_bias": {"5": 1}},
    {"logit_bias": {True: 1}}, {"logit_bias": {1 << 31: 1}}, {"logit_bias": {5: 101}}, {"logit_bias": {5: -100.5}},
    {"logit_bias": {5: float("nan")}}, {"logit_bias": {5: float("-inf")}}, {"logit_bias": {5: "much"}},
    {"logit_bias": {5: False}}, {"logit_bias": dict.fromkeys(range(301), 1)}, {"logit_bias": [5, 1]},
    {"logit_bias": ((5, 1), (5, 2))}, {"logit_bias": ((5, 1, 2),)}, {"logit_bias": None}, {"logit_bias": "5"},
])
def test_values_out_of_range_are_refused_by_name(bad: dict[str, object]) -> None:
    name = next(iter(bad))
    with pytest.raises(InvalidRequest, match=name):
        Sampling(**bad)  # type: ignore[arg-type]


def test_a_bias_is_added_to_the_logit() -> None:
    logits = random_logits(3)
    best, worst = int(logits.argmax()), int(logits.argmin())
    second = int(np.argsort(logits)[-2])
    assert Sampler(Sampling(logit_bias={worst: 100})).choose(logits.copy(), []) == worst
    assert Sampler(Sampling(logit_bias={best: -100})).choose(logits.copy(), []) == second
    gap = float(logits[best] - logits[second])
    assert Sampler(Sampling(logit_bias={second: gap * 0.99})).choose(logits.copy(), []) == best
    assert Sampler(Sampling(logit_bias={second: gap * 1.01})).choose(logits.copy(), []) == second


def test_a_bias_comes_before_the_penalties() -> None:
    logits = np.array([-1.0, 2.5], np.float32)  # (-1 + 5) / 2 = 2 loses; -1 * 2 + 5 = 3 would win
    assert Sampler(Sampling(logit_bias={0: 5.0}, repeat_penalty=2.0)).choose(logits, [0]) == 1


def test_biases_are_frozen_and_compare_whatever_their_order() -> None:
    one, two = Sampling(logit_bias={7: 1, 3: -2.5}), Sampling(logit_bias=((3, -2.5), (7, 1.0)))
    assert one == two
    assert hash(one) == hash(two)
    assert one.logit_bias == one.biases == ((3, -2.5), (7, 1.0))
    assert dataclasses.replace(one, seed=4).biases == one.biases
    one.check_vocabulary(8)
    with pytest.raises(InvalidRequest, match=r"token 7.*ends at 6"):
        one.check_vocabulary(7)


def only(*tokens: int) -> sampling.Mask:
    def mask(logits: Logits) -> None:
        kept = logits[list(tokens)]
        logits[:] = -np.inf
        logits[list(tokens)] = kept
    return mask


@pytest.mark.parametrize("size", VOCABULARIES)
@pytest.mark.parametrize("rule", [
    {}, NO_FILTER, {"top_k": 0}, {"top_k": 0, "min_p": 0.0}, {"top_p": 1.0, "min_p": 0.0}, {"temperature": 0.0},
])
def test_a_masked_token_is_never_chosen(size: int, rule: dict[str, float]) -> None:
    allowed = (3, size // 2, size - 1)
    logits = model_rows(size)[10].copy()
    logits[list(allowed)] = -5.0, -5.5, -6.0
    sampler = Sampler(Sampling(**{"temperature": 2.0, "seed": 1, **rule}))  # type: ignore[arg-type]
    chosen = {sampler.choose(logits.copy(), [], only(*allowed)) for _ in range(50)}
    assert chosen == (set(allowed) if sampler.draws else {3})
    masked = logits.copy()
    only(*allowed)(masked)
    warm = dataclasses.replace(sampler.sampling, temperature=1.0)
    assert candidates(masked, warm)[0].tolist() == list(allowed)
    assert [token for token, _ in logprobs_of(masked, 3, 20).top] == list(allowed)
    assert [draw(masked, warm, uniform) for uniform in (0.0, 1 - 2.0**-53)] == [3, size - 1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("size", VOCABULARIES)
def test_logits_that_are_no_numbers_fail(size: int, temperature: float) -> None:
    sampler = Sampler(Sampling(temperature=temperature))
    for at in (0, 7, size // 2, size - 1):
        for bad in (np.nan, np.inf):
            logits = model_rows(size)[10].copy()
            logits[at] = bad
            with pytest.raises(EngineFailed, match="not finite"):
                sampler.choose(logits.copy(), [])
            with pytest.raises(EngineFailed, match="not finite"):
                sampler.pick(logits, [], only(1, 2))
            with pytest.raises(EngineFailed, match="not finite"):
                logprobs_of(logits, 1, 2)
    with pytest.raises(EngineFailed, match="not finite"):
        sampler.choose(np.full(size, -np.inf, np.float32), [])
    with pytest.raises(EngineFailed, match="forbids all"):
        sampler.choose(model_rows(size)[10].copy(), [], lambda row: row.fill(-np.inf))
    assert sampler.draws == 0


@pytest.mark.parametrize("size", VOCABULARIES)
def test_logprobs_are_the_logarithm_of_the_softmax(size: int) -> None:
    for logits in model_rows(size)[::6]:
        exact = logits.astype(np.float64)
        exact -= exact.max() + math.log(math.fsum(np.exp(exact - exact.max()).tolist()))
        said = logprobs_of(logits, 17, 20)
        order = np.lexsort((np.arange(size), -exact))[:20]
        assert said.token == 17
        assert said.logprob == pytest.approx(exact[17], abs=2 * sampling.MASS_ERROR)
        assert [token for token, _ in said.top] == order.tolist()
        assert [value for _, value in said.top] == pytest.approx(exact[order].tolist(), abs=2 * sampling.MASS_ERROR)


def test_logprobs_of_a_small_vocabulary_and_of_forbidden_tokens() -> None:
    logits = np.array([math.log(0.5), math.log(0.25), math.log(0.25), -np.inf], np.float32)
    said = logprobs_of(logits, 0, 20)
    assert [token for token, _ in said.top] == [0, 1, 2]
    assert said.logprob == pytest.approx(math.log(0.5))
    assert logprobs_of(logits, 1, 0).top == ()
    with pytest.raises(EngineFailed):
        logprobs_of(logits, 3, 0)


def test_logprobs_are_the_models_own_whatever_the_request_does_to_the_logits() -> None:
    logits = model_rows(512)[10]
    rule = Sampling(
        temperature=0.5, seed=2, logprobs=3, logit_bias={5: 30, 6: 29}, repeat_penalty=1.3, presence_penalty=0.5,
    )
    choice = Sampler(rule).pick(logits.copy(), [5, 6], only(5, 6))
    assert choice.token in {5, 6}
    assert choice.logprob == logprobs_of(logits, choice.token, 3)
    assert choice.token == Sampler(rule).choose(logits.copy(), [5, 6], only(5, 6)), "reporting changes no token"
    assert Sampler(Sampling()).pick(logits, []).logprob is None
    greedy = Sampler(Sampling(logprobs=0)).pick(logits, [])
    assert greedy.logprob == logprobs_of(logits, int(logits.argmax()), 0)


def test_what_needs_no_more_than_an_argmax_says_so() -> None:
    assert Sampling(penalty_window=0, repeat_penalty=2.0).argmax_only
    for more in ({"temperature": 0.1}, {"logprobs": 0}, {"logit_bias": {1: 1}}, {"presence_penalty": 1.0}):
        assert not Sampling(**more).argmax_only
