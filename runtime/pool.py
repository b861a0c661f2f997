"""The KV cache as sequences see it: slots, cells, shared heads, what is kept of finished ones, what went to the host.

::

                      place                       finish
    waiting sequence -------> live (slot, cells) -------> kept (slot, cells; least recently used goes first)
           ^                    |                            |
           |      suspend       v                            v  if the host store has room
           +-------------- suspended                      spilled (a copy in host memory)
                  (own cells saved on the host, the shared head stays)

Nothing here fails for want of room: a method says no and leaves the caller to wait or to suspend somebody.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .cells import Cells, Segment
from .prefix import RadixTree, common
from .sequence import NO_SLOT, Sequence
from .stats import CacheStatus

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .backends.base import Backend, Saved

LEAST_SHARED = 8  # tokens; sharing less is not worth a call
LEAST_SPILLED = 64  # tokens; less is computed again sooner than it is copied
GROWTH = 64  # cells by which a lease grows


@dataclass(slots=True, eq=False)
class _Kept:
    """What a finished sequence left in the arena."""

    tokens: list[int]
    tail: Segment


def _akin(known: list[int], tokens: NDArray[np.int32]) -> bool:
    """Tell whether one of two sequences is a head of the other."""
    return common(np.array(known[: len(tokens)], np.int32), tokens) == min(len(known), len(tokens))


class HostStore:
    """Copies of sequences in host memory, at most ``limit`` bytes; spilled ones give way to suspended ones."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self.spilled: RadixTree[int] = RadixTree()
        self._copies: OrderedDict[int, tuple[list[int], Saved]] = OrderedDict()  # oldest first
        self._number = 0

    def room(self, size: int) -> bool:
        """Drop spilled copies, least recently used first, until ``size`` bytes fit; tells whether they do."""
        while self.used + size > self.limit and self._copies:
            self.take(next(iter(self._copies)))
        return self.used + size <= self.limit

    def spill(self, tokens: list[int], copy: Saved) -> None:
        """Keep a copy if there is room."""
        if self.room(copy.nbytes):
            self._number += 1
            self._copies[self._number] = tokens, copy
            self.spilled.insert(self._number, tokens)
            self.used += copy.nbytes

    def take(self, number: int) -> tuple[list[int], Saved]:
        """Return a spilled copy, which is not kept any longer."""
        tokens, copy = self._copies.pop(number)
        self.spilled.remove(number)
        self.used -= copy.nbytes
        return tokens, copy

    def forget(self, tokens: NDArray[np.int32]) -> None:
        """Forget spilled copies that begin with these tokens, or are a head of them."""
        for number in [n for n, (known, _) in self._copies.items() if _akin(known, tokens)]:
            self.take(number)

    def clear(self) -> None:
        """Forget all spilled copies."""
        while self._copies:
            self.take(next(iter(self._copies)))


class Pool:
    """Slots and cells of one model.  Calls the backend's sequence operations, never its decoding.

    ``reuse``: share computed heads.  ``host_bytes``: how much may be copied to host memory.
    """

    def __init__(self, backend: Backend, *, reuse: bool = True, host_bytes: int = 0, margin: int = 0) -> None:
        info = backend.info
        self.backend, self.whole = backend, info.reuse == "whole"
        self.remember = info.slots - info.streams if reuse else 0
        self.cells = Cells(info.cells - margin)
        self.host = HostStore(host_bytes)
        self.live: dict[int, Sequence] = {}  # by ticket, suspended ones included
        self.kept: OrderedDict[int, _Kept] = OrderedDict()  # by slot, least recently used first
        self._tree: RadixTree[int] = RadixTree()  # by slot
        self._slots = list(range(info.slots))[::-1]

    # ---- coming ----

    def fits(self, sequence: Sequence, extra: int) -> bool:
        """Tell whether `place` has a chance, without changing anything."""
        length, holder = self._match(sequence)
        shared = 0 if holder is None else length
        held = self.cells.held(
            [other.tail for other in self.live.values() if other.saved is None or other is sequence]
        )
        return self._need(sequence, shared) + extra <= self.cells.total - self.cells.reserved - held

    @property
    def available(self) -> int:
        """Cells that a newcomer could have: free ones, and those that only kept sequences hold."""
        held = self.cells.held([sequence.tail for sequence in self.live.values()])
        return self.cells.total - self.cells.reserved - held

    def head(self, sequence: Sequence) -> int:
        """Return how many of a waiting sequence's tokens need not be computed, as things stand."""
        return max(self._match(sequence)[0], self._spilled(sequence)[0])

    def place(self, sequence: Sequence, extra: int) -> bool:
        """Give a sequence its slot, what is known of its tokens, and cells for the rest and ``extra`` more.

        False: there is no room, nothing has changed (but kept ones may have been dropped).
        """
        if not self.fits(sequence, extra):
            return False
        if sequence.saved is not None:
            return self._resume(sequence, extra)
        slot = self._slot()
        if slot is None:
            return False
        self.live[sequence.ticket] = sequence
        sequence.slot = slot
        self._unspill(sequence)
        length, holder = self._match(sequence)
        if holder is not None and sequence.computed < length:
            self.backend.share(holder, slot, length)
            sequence.tail = self.cells.share(self._tail_of(holder), length)
            sequence.computed = length
            if holder in self.kept:
                self.kept.move_to_end(holder)
        need = len(sequence.tokens) - sequence.computed + extra
        if not self._make_room(need):
            self._drop(sequence)
            return False
        self.cells.reserve(need)
        sequence.lease = need
        if not sequence.started:
            sequence.cached = min(sequence.computed, sequence.prompt_length)
        return True

    def _need(self, sequence: Sequence, shared: int) -> int:
        if sequence.saved is not None:
            return len(sequence.tokens) - Cells.length(sequence.tail)
        return len(sequence.tokens) - shared

    def _match(self, sequence: Sequence) -> tuple[int, int | None]:
        """Return the slot that shares the longest head, all but the last token at most, and that length."""
        if not self.remember:
            return 0, None
        length, holder = self._tree.match(sequence.tokens[:-1], whole=self.whole)
        return (length, holder) if length >= LEAST_SHARED else (0, None)

    def _spilled(self, sequence: Sequence) -> tuple[int, int | None]:
        return self.host.spilled.match(sequence.tokens[:-1], whole=self.whole) if self.remember else (0, None)

    def _unspill(self, sequence: Sequence) -> None:
        """Bring back a copy from the host if it knows much more of the sequence than the arena does."""
        length, number = self._spilled(sequence)
        if number is None or length < self._match(sequence)[0] + LEAST_SPILLED:
            return
        tokens, copy = self.host.take(number)
        size = len(tokens)
        if not self._make_room(size):
            self.host.spill(tokens, copy)
            return
        self.cells.reserve(size)
        if not self.backend.restore(sequence.slot, 0, copy):
            self.cells.unreserve(size)
            self.backend.drop(sequence.slot)
            return
        sequence.tail = self.cells.extend(None, size)
        if length < size:
            self.backend.trim(sequence.slot, length)
            self.cells.shorten(sequence.tail, length)
        sequence.computed = length

    def _tail_of(self, slot: int) -> Segment:
        tail = self.kept[slot].tail if slot in self.kept else None
        if tail is None:
            tail = next(other.tail for other in self.live.values() if other.slot == slot)
        assert tail is not None  # noqa: S101 - a holder in the tree has cells
        return tail

    # ---- staying ----

    def ensure(self, sequence: Sequence, n: int, most: int) -> bool:
        """See to it that a sequence has ``n`` promised cells; a lease grows by `GROWTH`, up to ``most`` in all."""
        short = n - sequence.lease
        if short <= 0:
            return True
        for more in (max(short, min(GROWTH, most - sequence.lease)), short):
            if self._make_room(more):
                self.cells.reserve(more)
                sequence.lease += more
                return True
        return False

    def advance(self, sequence: Sequence, n: int) -> None:
        """Count ``n`` more tokens of a sequence as computed; it has the cells."""
        sequence.tail = self.cells.extend(sequence.tail, n)
        sequence.lease -= n
        sequence.computed += n

    def publish(self, sequence: Sequence) -> None:
        """Let others share what a live sequence has computed.  Not where only whole sequences can be shared."""
        if self.remember and not self.whole and sequence.computed >= LEAST_SHARED:
            self._tree.insert(sequence.slot, sequence.tokens[: sequence.computed])

    # ---- going ----

    def finish(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Take a sequence out.  What it computed is kept for others if that is of use, else forgotten."""
        if self.live.pop(sequence.ticket, None) is None:
            return
        self._unpromise(sequence)
        if sequence.saved is not None:
            self.host.used -= sequence.saved.nbytes
            sequence.saved, keep = None, False
        if sequence.slot == NO_SLOT:
            return
        tokens = sequence.tokens[: sequence.computed]
        self._tree.remove(sequence.slot)
        if not keep or not self.remember or len(tokens) < LEAST_SHARED or self._known(tokens):
            self._drop(sequence)
            return
        if not self.whole:
            for slot in self._tree.heads(tokens):  # they say nothing that this one does not
                if slot in self.kept:
                    self._forget(slot)
        assert sequence.tail is not None  # noqa: S101 - it has computed tokens
        self.kept[sequence.slot] = _Kept(tokens, sequence.tail)
        self._tree.insert(sequence.slot, tokens)
        sequence.slot, sequence.tail = NO_SLOT, None
        while len(self.kept) > self.remember:
            self._evict()

    def _known(self, tokens: list[int]) -> bool:
        """Tell whether a kept sequence says all of this already."""
        length, holder = self._tree.match(tokens, whole=self.whole)
        return length == len(tokens) and holder in self.kept

    def suspend(self, sequence: Sequence) -> None:
        """Free what a live sequence holds for itself; its state goes to the host, or is computed again later."""
        self._unpromise(sequence)
        self._tree.remove(sequence.slot)
        first = 0
        if not self.whole and sequence.tail is not None:
            first = self.cells.length(sequence.tail) - self.cells.own(sequence.tail)
        if sequence.computed - first >= LEAST_SPILLED and self.host.limit:
            saved = self.backend.save(sequence.slot, first)
            if self.host.room(saved.nbytes):
                self.host.used += saved.nbytes
                sequence.saved = saved
        if sequence.saved is None:
            self._drop(sequence)
            return
        if first:
            self.backend.trim(sequence.slot, first)
            assert sequence.tail is not None  # noqa: S101 - first > 0
            sequence.tail, _ = self.cells.release_own(sequence.tail)
        else:
            computed = sequence.computed
            self._clear(sequence)
            sequence.computed = computed

    def _resume(self, sequence: Sequence, extra: int) -> bool:
        first = self.cells.length(sequence.tail)
        need = len(sequence.tokens) - first + extra
        if sequence.slot == NO_SLOT:
            slot = self._slot()
            if slot is None:
                return False
            sequence.slot = slot
        if not self._make_room(need, but=sequence):
            if not first:
                self._slots.append(sequence.slot)
                sequence.slot = NO_SLOT
            return False
        saved, sequence.saved = sequence.saved, None
        assert saved is not None  # noqa: S101 - the caller has looked
        self.host.used -= saved.nbytes
        self.cells.reserve(need)
        if not self.backend.restore(sequence.slot, first, saved):
            self.cells.unreserve(need)
            self._drop(sequence)
            return self.place(sequence, extra)  # it is computed again
        sequence.tail = self.cells.extend(sequence.tail, sequence.computed - first)
        sequence.lease = need - (sequence.computed - first)
        return True

    def forget(self, tokens: list[int]) -> None:
        """Forget what is kept or spilled of sequences that begin with these tokens, or are a head of them."""
        wanted = np.array(tokens, np.int32)
        for slot in [s for s, kept in self.kept.items() if _akin(kept.tokens, wanted)]:
            self._forget(slot)
        self.host.forget(wanted)

    def clear(self) -> None:
        """Forget everything that is kept or spilled; live sequences must be gone."""
        while self.kept:
            self._forget(next(iter(self.kept)))
        self.host.clear()

    # ---- room ----

    def _slot(self) -> int | None:
        if not self._slots and not self._evict():
            self._strip()
        return self._slots.pop() if self._slots else None

    def _make_room(self, n: int, but: Sequence | None = None) -> bool:
        while self.cells.free < n:
            if not self._evict() and not self._strip(but):
                return False
        return True

    def _evict(self) -> bool:
        """Drop the kept sequence that was not used for longest, with a copy to the host if that has room."""
        if not self.kept:
            return False
        slot, kept = next(iter(self.kept.items()))
        if len(kept.tokens) >= LEAST_SPILLED and self.host.limit:
            self.host.spill(kept.tokens, self.backend.save(slot, 0))
        self._forget(slot)
        return True

    def _strip(self, but: Sequence | None = None) -> bool:
        """Take its shared head from a suspended sequence; it will be computed again."""
        for sequence in self.live.values():
            if sequence.saved is not None and sequence.tail is not None and sequence is not but:
                self.host.used -= sequence.saved.nbytes
                sequence.saved = None
                self._drop(sequence)
                return True
        return False

    def _forget(self, slot: int) -> None:
        self._tree.remove(slot)
        self.cells.release(self.kept.pop(slot).tail)
        self.backend.drop(slot)
        self._slots.append(slot)

    def _drop(self, sequence: Sequence) -> None:
        """Take a sequence out of the cache and of the live ones."""
        self._clear(sequence)
        self.live.pop(sequence.ticket, None)

    def _clear(self, sequence: Sequence) -> None:
        """Forget what a sequence has in the cache."""
        self.cells.release(sequence.tail)
        self.backend.drop(sequence.slot)
        self._slots.append(sequence.slot)
        sequence.slot, sequence.tail, sequence.computed = NO_SLOT, None, 0

    def _unpromise(self, sequence: Sequence) -> None:
        self.cells.unreserve(sequence.lease)
        sequence.lease = 0

    def status(self) -> CacheStatus:
        """Return a frozen picture."""
        cells, host = self.cells, self.host
        return CacheStatus(cells.used, cells.reserved, len(self.kept), len(host.spilled), host.used, host.limit)

    def audit(self) -> None:
        """Raise EngineFailed unless used, promised and free cells add up, each from an account of its own."""
        self.cells.audit([*(s.tail for s in self.live.values()), *(kept.tail for kept in self.kept.values())])
        self.cells.audit_promises(sum(sequence.lease for sequence in self.live.values()))
