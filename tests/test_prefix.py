"""The arithmetic beneath shared prompts, against models that are too simple to be wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from arenite.runtime.cells import Cells
from arenite.runtime.errors import EngineFailed
from arenite.runtime.prefix import RadixTree

if TYPE_CHECKING:
    from arenite.runtime.cells import Segment

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=12)


def shared(left: list[int], right: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


@given(st.lists(st.tuples(st.integers(0, 5), st.one_of(st.none(), TOKENS)), max_size=25), TOKENS)
def test_the_tree_finds_the_longest_head_that_anybody_has(
    changes: list[tuple[int, list[int] | None]], wanted: list[int]
) -> None:
    tree: RadixTree[int] = RadixTree()
    known: dict[int, list[int]] = {}
    for holder, tokens in changes:
        if tokens is None:
            tree.remove(holder)
            known.pop(holder, None)
        else:
            tree.insert(holder, tokens)
            known[holder] = tokens
        assert len(tree) == len(known)
    length, best = tree.match(wanted)
    assert length == max((shared(tokens, wanted) for tokens in known.values()), default=0)
    assert (best is None) == (length == 0)
    assert best is None or shared(known[best], wanted) == length
    whole = {h: tokens for h, tokens in known.items() if wanted[: len(tokens)] == tokens}
    length, best = tree.match(wanted, whole=True)
    assert length == max(map(len, whole.values()), default=0)
    assert best is None or len(whole[best]) == length
    assert set(tree.heads(wanted)) == set(whole)


class SharedCells(RuleBasedStateMachine):
    """Chains of segments against sets of numbered cells."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = Cells(60)
        self.chains: list[tuple[Segment, list[int]]] = []
        self.number = 0

    def new(self, n: int) -> list[int]:
        self.number += n
        return list(range(self.number - n, self.number))

    @rule(n=st.integers(1, 15))
    def begin(self, n: int) -> None:
        if n > self.cells.free:
            with pytest.raises(EngineFailed):
                self.cells.reserve(n)
            return
        self.cells.reserve(n)
        self.chains.append((self.cells.extend(None, n), self.new(n)))

    @precondition(lambda self: self.chains)
    @rule(which=st.integers(0, 99), n=st.integers(1, 9))
    def extend(self, which: int, n: int) -> None:
        at = which % len(self.chains)
        tail, held = self.chains[at]
        if n <= self.cells.free:
            self.cells.reserve(n)
            self.chains[at] = self.cells.extend(tail, n), held + self.new(n)

    @precondition(lambda self: self.chains)
    @rule(which=st.integers(0, 99), part=st.integers(0, 99))
    def share(self, which: int, part: int) -> None:
        tail, held = self.chains[which % len(self.chains)]
        length = 1 + part % len(held)
        self.chains.append((self.cells.share(tail, length), held[:length]))

    @precondition(lambda self: self.chains)
    @rule(which=st.integers(0, 99))
    def release(self, which: int) -> None:
        tail, held = self.chains.pop(which % len(self.chains))
        others = {cell for _, other in self.chains for cell in other}
        assert self.cells.release(tail) == len(set(held) - others)

    @precondition(lambda self: self.chains)
    @rule(which=st.integers(0, 99))
    def release_own(self, which: int) -> None:
        at = which % len(self.chains)
        tail, held = self.chains[at]
        others = {cell for i, (_, other) in enumerate(self.chains) if i != at for cell in other}
        rest, freed = self.cells.release_own(tail)
        kept = [cell for cell in held if cell in others]
        assert freed == len(held) - len(kept)
        assert Cells.length(rest) == len(kept)
        if rest is None:
            self.chains.pop(at)
        else:
            self.chains[at] = rest, kept

    @invariant()
    def accounts_agree(self) -> None:
        assert self.cells.used == len({cell for _, held in self.chains for cell in held})
        assert self.cells.used + self.cells.reserved + self.cells.free == self.cells.total
        assert [Cells.length(tail) for tail, _ in self.chains] == [len(held) for _, held in self.chains]
        self.cells.audit([tail for tail, _ in self.chains])


TestSharedCells = SharedCells.TestCase


def test_an_account_that_is_off_is_found() -> None:
    cells = Cells(10)
    cells.reserve(4)
    tail = cells.extend(None, 4)
    cells.used = 3
    with pytest.raises(EngineFailed, match="4 are held, 3 counted"):
        cells.audit([tail])
    cells.used = 4
    cells.reserved = 2
    with pytest.raises(EngineFailed, match="1 are promised to sequences, 2 counted"):
        cells.audit_promises(1)
