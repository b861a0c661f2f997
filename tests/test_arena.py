from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from arenite.runtime.arena import OVERLAY, RESIDENT, Arena, Need, Plan, SealBroken, Span, aligned
from arenite.runtime.errors import ArenaTooSmall, ConfigError, MemoryPlanError

TENANTS = st.sampled_from(["a", "b", "c"])


class ArenaMachine(RuleBasedStateMachine):
    """Any sequence of operations, against a plain model: the set of leased spans."""

    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena(64 * 16, alignment=16, overlay=16 * 16)
        self.held: list[Span] = []
        self.open: set[str] = set()
        self.refused = 0

    @rule(tenant=TENANTS)
    def open_tenant(self, tenant: str) -> None:
        self.arena.open(tenant)
        self.open.add(tenant)

    @rule(tenant=TENANTS)
    def seal_tenant(self, tenant: str) -> None:
        self.arena.seal(tenant)
        self.open.discard(tenant)

    @rule(tenant=TENANTS, size=st.integers(1, 700), region=st.sampled_from([RESIDENT, OVERLAY]))
    def lease(self, tenant: str, size: int, region: str) -> None:
        bounds = self.arena.regions[region]
        try:
            span = self.arena.lease(tenant, "kv", size, region)
        except SealBroken:
            assert tenant not in self.open
            self.refused += 1
        except ArenaTooSmall:
            assert tenant in self.open
            assert self.largest_gap(bounds.offset, bounds.offset + bounds.size) < aligned(size, 16)
        else:
            assert tenant in self.open
            assert span.size == aligned(size, 16)
            assert bounds.offset <= span.offset
            assert span.end <= bounds.offset + bounds.size
            assert all(span.end <= other.offset or other.end <= span.offset for other in self.held)
            self.held.append(span)

    def largest_gap(self, low: int, high: int) -> int:
        inside = sorted(span for span in self.held if low <= span.offset < high)
        edges = [low, *(edge for span in inside for edge in (span.offset, span.end)), high]
        return max(edges[i + 1] - edges[i] for i in range(0, len(edges), 2))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        span = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.arena.release(span)
        with pytest.raises(MemoryPlanError):
            self.arena.release(span)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def rename(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.held) - 1))
        self.held[index] = self.arena.rename(self.held[index], "scratch")

    @invariant()
    def accounts_agree(self) -> None:
        snapshot = self.arena.audit()
        assert sorted(snapshot.spans) == sorted(self.held)
        assert snapshot.leased == sum(span.size for span in self.held)
        assert snapshot.free + snapshot.leased == snapshot.size
        assert snapshot.allocations_after_seal == self.refused
        assert snapshot.open == self.open

    def teardown(self) -> None:
        for span in self.held:
            self.arena.release(span)
        self.arena.open("last")
        whole = self.arena.regions[RESIDENT].size
        assert self.arena.lease("last", "kv", whole).offset == 0, "what was freed is one gap again"


TestArenaMachine = ArenaMachine.TestCase


@given(st.lists(st.integers(1, 300), max_size=8), st.integers(0, 2000))
def test_a_plan_fits_exactly_when_its_leases_succeed(sizes: list[int], capacity: int) -> None:
    plan = Plan(tuple(Need("a", "kv", size) for size in sizes), 16)
    arena = Arena(capacity, alignment=16)
    fits = arena.fits(plan)
    assert fits == (plan.size <= arena.size)
    arena.open("a")
    if fits:
        for need in plan.needs:
            arena.lease(need.tenant, need.kind, need.size)
        assert arena.free == arena.size - plan.size
    else:
        with pytest.raises(ArenaTooSmall):
            plan.check(arena.size)
    assert arena.audit().leased == (plan.size if fits else 0)


def test_too_small_says_how_many_for_what_and_how_many_there_are() -> None:
    plan = Plan((Need("m", "weights", 4096), Need("m", "kv", 100)), 4096)
    with pytest.raises(ArenaTooSmall, match=r"8,192 bytes \(weights 4,096, kv 4,096\).*5,000 free") as caught:
        plan.check(5000)
    assert (caught.value.needed, caught.value.available) == (8192, 5000)
    assert caught.value.items == {"weights": 4096, "kv": 4096}


def test_a_sealed_tenant_is_refused_and_another_is_not() -> None:
    arena = Arena(1 << 16)
    arena.open("a")
    arena.open("b")
    arena.seal("a")
    with pytest.raises(SealBroken):
        arena.lease("a", "kv", 1)
    arena.lease("b", "kv", 1)
    assert arena.audit().allocations_after_seal == 1


@pytest.mark.parametrize("bad", [{"alignment": 0}, {"alignment": 48}, {"overlay": 1 << 20}])
def test_impossible_layouts_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        Arena(4096, **bad)


@pytest.mark.parametrize("size", [0, -1])
def test_a_span_has_at_least_one_byte(size: int) -> None:
    arena = Arena(4096)
    arena.open("a")
    with pytest.raises(MemoryPlanError):
        arena.lease("a", "kv", size)
