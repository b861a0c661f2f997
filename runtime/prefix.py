"""A radix tree over token sequences: which holder shares the longest head with a prompt.

Edges carry runs of tokens; a node knows every holder whose sequence passes through it::

    root --[1 5 7 9]--> {a, b} --[2 2]--> {a}
                               --[3]----> {b}
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray


class _Hashable(Protocol):
    def __hash__(self) -> int: ...


H = TypeVar("H", bound=_Hashable)


def common(left: NDArray[np.int32], right: NDArray[np.int32]) -> int:
    """Return how many first tokens two sequences share."""
    n = min(len(left), len(right))
    differs = left[:n] != right[:n]
    at = int(differs.argmax()) if n else 0
    return at if n and differs[at] else n


@dataclass(slots=True, eq=False)
class _Node(Generic[H]):
    tokens: NDArray[np.int32]  # on the edge that leads here
    holders: dict[H, None] = field(default_factory=dict)  # in order of insertion, so that a choice is repeatable
    below: dict[int, _Node[H]] = field(default_factory=dict)  # by the first token of the edge


class RadixTree(Generic[H]):
    """Holders by their tokens.  A holder is in it once; inserting it again replaces its tokens."""

    def __init__(self) -> None:
        self._root: _Node[H] = _Node(np.zeros(0, np.int32))
        self._tokens: dict[H, NDArray[np.int32]] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    def __contains__(self, holder: H) -> bool:
        return holder in self._tokens

    def length(self, holder: H) -> int:
        """Return how many tokens a holder is known to have."""
        return len(self._tokens[holder])

    def insert(self, holder: H, tokens: Sequence[int]) -> None:
        """Add a holder."""
        if holder in self._tokens:
            self.remove(holder)
        rest = self._tokens[holder] = np.array(tokens, np.int32)
        node = self._root
        while len(rest):
            child = node.below.get(int(rest[0]))
            if child is None:
                child = node.below[int(rest[0])] = _Node(rest)
            n = common(child.tokens, rest)
            if n < len(child.tokens):  # the ways part inside the edge
                upper = _Node(child.tokens[:n], dict(child.holders), {int(child.tokens[n]): child})
                node.below[int(rest[0])] = upper
                child.tokens = child.tokens[n:]
                child = upper
            child.holders[holder] = None
            node, rest = child, rest[n:]

    def remove(self, holder: H) -> None:
        """Take a holder out; an unknown one is ignored."""
        rest = self._tokens.pop(holder, None)
        if rest is None:
            return
        node = self._root
        while len(rest):
            child = node.below[int(rest[0])]
            rest = rest[len(child.tokens):]
            del child.holders[holder]
            if not child.holders:
                del node.below[int(child.tokens[0])]
                return
            node = child

    def match(self, tokens: Sequence[int], *, whole: bool = False) -> tuple[int, H | None]:
        """Return the length of the longest head of ``tokens`` that a holder has, and such a holder.

        ``whole``: only holders all of whose tokens are a head of ``tokens`` count.
        """
        best: tuple[int, H | None] = (0, None)
        for length, node in self._path(np.array(tokens, np.int32)):
            if not whole:
                best = length, next(iter(node.holders))
                continue
            ended = next((h for h in node.holders if len(self._tokens[h]) == length), None)
            if ended is not None:
                best = length, ended
        return best

    def heads(self, tokens: Sequence[int]) -> list[H]:
        """Return the holders all of whose tokens are a head of ``tokens``."""
        return [
            holder
            for length, node in self._path(np.array(tokens, np.int32))
            for holder in node.holders
            if len(self._tokens[holder]) == length
        ]

    def _path(self, rest: NDArray[np.int32]) -> Iterator[tuple[int, _Node[H]]]:
        """Yield the nodes on the way of ``rest``, each with how many tokens match up to there."""
        node, length = self._root, 0
        while len(rest):
            child = node.below.get(int(rest[0]))
            if child is None:
                return
            n = common(child.tokens, rest)
            length += n
            yield length, child
            if n < len(child.tokens):
                return
            node, rest = child, rest[n:]
