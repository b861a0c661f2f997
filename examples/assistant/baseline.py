"""The baseline to beat: answer as the most similar training sentence was answered.

Sentences are bags of character trigrams, weighted by how rare a trigram is (tf-idf), compared by cosine. It shows how
much of the held-out set could be solved by recall alone.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from .corpus import training
from .home import compact
from .sentences import sentence

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from .corpus import Example

SAMPLE = 20_000


def said(example: Example) -> str:
    """Return what the comparison sees of an example: the messages in small letters."""
    return " | ".join(m["content"] for m in example.messages if m["role"] != "system").lower().rstrip(".!? ")


def trigrams(text: str) -> Counter[str]:
    """Return the trigrams of a text, spaces at both ends included."""
    padded = f"  {text}  "
    return Counter(padded[i : i + 3] for i in range(len(padded) - 2))


class Nearest:
    """Training sentences by trigram: an inverted index with a unit vector for each sentence."""

    def __init__(self, made: Iterable[Example]) -> None:
        known = {said(example): example for example in made}
        self.actions = [example.action for example in known.values()]
        bags = [trigrams(text) for text in known]
        seen = Counter(gram for bag in bags for gram in bag)
        self.rarity = {gram: math.log(len(bags) / count) for gram, count in seen.items()}
        lists: dict[str, tuple[list[int], list[float]]] = {gram: ([], []) for gram in seen}
        for i, bag in enumerate(bags):
            for gram, weight in self._unit(bag).items():
                lists[gram][0].append(i)
                lists[gram][1].append(weight)
        self.index: dict[str, tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]] = {
            gram: (np.array(rows, np.int32), np.array(weights, np.float32)) for gram, (rows, weights) in lists.items()
        }

    def _unit(self, bag: Counter[str]) -> dict[str, float]:
        """Return a bag's known trigrams weighted and scaled to length 1."""
        weights = {gram: n * self.rarity[gram] for gram, n in bag.items() if gram in self.rarity}
        length = math.sqrt(sum(w * w for w in weights.values())) or 1.0
        return {gram: weight / length for gram, weight in weights.items()}

    def nearest(self, example: Example) -> int:
        """Return the number of the training sentence most similar to the example."""
        scores = np.zeros(len(self.actions), np.float32)
        for gram, weight in self._unit(trigrams(said(example))).items():
            rows, weights = self.index[gram]
            scores[rows] += weight * weights
        return int(scores.argmax())

    def score(self, made: Sequence[Example]) -> tuple[float, float]:
        """Return the shares of examples whose action and whose sentence the nearest sentence has."""
        found = [self.actions[self.nearest(example)] for example in made]
        right = sum(compact(a) == compact(e.action) for a, e in zip(found, made, strict=True))
        alike = sum(sentence(a) == sentence(e.action) for a, e in zip(found, made, strict=True))
        return right / len(made), alike / len(made)


def baseline(seed: int = 7, sample: int = SAMPLE) -> Nearest:
    """Return the baseline over a sample of training examples."""
    return Nearest(itertools.islice(training(seed), sample))
