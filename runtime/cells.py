"""Who holds which KV cells: arithmetic over shared prefixes.  No memory is touched here.

Tokens that several sequences have in common are computed once and their cells counted once.  A chain of segments
stands for each sequence; a chain branches where sequences part, so the chains of all sequences form a tree::

    root <- [system prompt: 40] <- [question a: 12]     holder: slot 0
                                <- [question b: 9] <- [answer: 30]     holder: slot 3

``refs`` of a segment counts the holders that end on it and the segments that hang below it.  A segment nobody refers
to any more is free, and then perhaps the one above it.

::

    total = used (cells of live segments) + reserved (promised to sequences, not yet used) + free
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from .errors import EngineFailed


@dataclass(slots=True, eq=False)
class Segment:
    """``length`` cells below ``above``; see the module docstring for ``refs``."""

    above: Segment | None
    length: int
    refs: int = 1


class Cells:
    """The account of ``total`` KV cells."""

    def __init__(self, total: int) -> None:
        self.total, self.used, self.reserved = total, 0, 0

    @property
    def free(self) -> int:
        """Cells that are neither used nor promised."""
        return self.total - self.used - self.reserved

    def reserve(self, n: int) -> None:
        """Promise ``n`` cells; the caller has seen that they are free."""
        if n > self.free:
            raise EngineFailed(f"{n} cells promised, {self.free} are free")
        self.reserved += n

    def unreserve(self, n: int) -> None:
        """Take a promise back."""
        self.reserved -= n

    def extend(self, tail: Segment | None, n: int) -> Segment:
        """Turn ``n`` promised cells into used ones at the end of a chain; returns the chain's new tail."""
        self.reserved -= n
        self.used += n
        if tail is not None and tail.refs == 1:
            tail.length += n
            return tail
        return Segment(tail, n)  # the holder's own reference to `tail` is now that of the new segment

    def shorten(self, tail: Segment, length: int) -> None:
        """Cut a segment that nobody shares down to its first ``length`` cells."""
        self.used -= tail.length - length
        tail.length = length

    def share(self, tail: Segment, length: int) -> Segment:
        """Refer to the first ``length`` cells of a chain; returns the tail of the new chain."""
        chain = self.chain(tail)
        at = 0
        for segment in chain:
            if at + segment.length >= length:
                break
            at += segment.length
        keep = length - at
        if keep < segment.length:  # cut it in two; who held it holds the lower part, which holds the upper
            segment.above = Segment(segment.above, keep)
            segment.length -= keep
            segment = segment.above
        segment.refs += 1
        return segment

    def release(self, tail: Segment | None) -> int:
        """Give up a chain; returns how many cells became free."""
        freed = 0
        while tail is not None:
            tail.refs -= 1
            if tail.refs:
                break
            freed += tail.length
            tail = tail.above
        self.used -= freed
        return freed

    def release_own(self, tail: Segment) -> tuple[Segment | None, int]:
        """Give up what no other chain shares; returns the tail of the shared rest (or None) and the cells freed."""
        rest: Segment | None = tail
        freed = 0
        while rest is not None and rest.refs == 1:
            freed += rest.length
            rest = rest.above
        self.used -= freed
        return rest, freed  # the reference of the lowest freed segment to `rest` is the holder's own now

    @classmethod
    def own(cls, tail: Segment) -> int:
        """Return how many cells at its end a chain shares with no other."""
        return sum(part.length for part in itertools.takewhile(lambda part: part.refs == 1, reversed(cls.chain(tail))))

    @staticmethod
    def chain(tail: Segment | None) -> list[Segment]:
        """Return a chain's segments, first cells first."""
        found = []
        while tail is not None:
            found.append(tail)
            tail = tail.above
        return found[::-1]

    @classmethod
    def length(cls, tail: Segment | None) -> int:
        """Return how many cells a chain has."""
        return sum(segment.length for segment in cls.chain(tail))

    @classmethod
    def held(cls, tails: list[Segment | None]) -> int:
        """Return how many cells these chains hold together, shared ones counted once."""
        return sum(segment.length for segment in {segment for tail in tails for segment in cls.chain(tail)})

    def audit(self, tails: list[Segment | None]) -> None:
        """Raise EngineFailed unless these chains, all there are, hold exactly what is counted as used."""
        held = self.held(tails)
        if held != self.used or self.free < 0 or self.reserved < 0:
            raise EngineFailed(
                f"cells: {held} are held, {self.used} counted, {self.reserved} promised, {self.total} there"
            )

    def audit_promises(self, leases: int) -> None:
        """Raise EngineFailed unless the promises that sequences hold are those that were counted."""
        if leases != self.reserved:
            raise EngineFailed(f"cells: {leases} are promised to sequences, {self.reserved} counted")
