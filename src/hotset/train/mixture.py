"""Which tokens come in which step: a pure function of seed, weights and how many windows were drawn before.

A run is resumed from the counts alone, so no random state and no reader's place has to be saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hotset.errors import InputError

Windows = NDArray[np.int64]  # [windows, length + 1]: the model reads all but the last and predicts all but the first


@dataclass(slots=True)
class Source:
    """Windows of one text. The last ones are held out; the others come once an epoch, in an order of their own."""

    name: str
    ids: NDArray[np.uint32]  # [tokens]
    length: int  # tokens of a window
    held_out: int  # windows
    seed: tuple[int, ...]
    _epoch: int = -1
    _order: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def windows(self) -> int:
        """That are trained on."""
        return max(len(self.ids) - 1, 0) // self.length - self.held_out

    def window(self, number: int) -> NDArray[np.int64]:
        """The number-th window drawn from this text, [length + 1]."""
        epoch, place = divmod(number, self.windows)
        if epoch != self._epoch:
            self._order = np.random.default_rng([*self.seed, epoch]).permutation(self.windows)
            self._epoch = epoch
        return self._cut(int(self._order[place]))

    def measured(self, most: int) -> Windows:
        """Held-out windows, evenly taken, at most so many."""
        chosen = np.unique(np.linspace(0, self.held_out - 1, min(most, self.held_out)).astype(int))
        return np.stack([self._cut(self.windows + int(i)) for i in chosen])

    def _cut(self, index: int) -> NDArray[np.int64]:
        return self.ids[index * self.length : (index + 1) * self.length + 1].astype(np.int64)


def make_source(name: str, ids: NDArray[np.uint32], length: int, share: float, seed: tuple[int, ...]) -> Source:
    """A source of which `share` is held out, one window at least. Raises InputError if nothing is left to train on."""
    count = max(len(ids) - 1, 0) // length
    source = Source(name, ids, length, max(1, round(count * share)), seed)
    if source.windows < 1:
        raise InputError(
            f"{name} has {len(ids)} tokens; wanted at least {2 * length + 1}, one sequence of {length} to train on "
            "and one to measure. Give more text or a shorter --sequence"
        )
    return source


class Mixture:
    """Draws windows from sources in proportion to their weights, as evenly as whole windows allow."""

    def __init__(self, sources: Sequence[Source], weights: Sequence[float | None]) -> None:
        """weights: None stands for the number of windows, relative to the others without weight.

        If only some have weights, those are shares of the whole, and the rest is left to the others.
        """
        self.sources = list(sources)
        self.shares = _shares([source.windows for source in sources], weights)
        self.drawn = np.zeros(len(sources), np.int64)

    def next(self) -> NDArray[np.int64]:
        """The next window, [length + 1]."""
        source = self.advance()
        return self.sources[source].window(int(self.drawn[source]) - 1)

    def advance(self) -> int:
        """Counts the next window without reading it; returns its source, the one furthest behind its share."""
        source = int(np.argmax(self.shares * (self.drawn.sum() + 1) - self.drawn))
        self.drawn[source] += 1
        return source

    def batch(self, size: int, rank: int = 0, ranks: int = 1) -> Windows:
        """Of the next `size` windows those of one process, [size / ranks, length + 1]. ranks must divide size."""
        each = size // ranks
        rows = []
        for i in range(size):
            source = self.advance()
            if rank * each <= i < (rank + 1) * each:
                rows.append(self.sources[source].window(int(self.drawn[source]) - 1))
        return np.stack(rows)

    @property
    def epochs(self) -> list[float]:
        """How often each source was read so far."""
        return [float(n) / s.windows for n, s in zip(self.drawn, self.sources, strict=True)]


def _shares(windows: Sequence[int], weights: Sequence[float | None]) -> NDArray[np.float64]:
    given = sum(w for w in weights if w is not None)
    free = sum(n for n, w in zip(windows, weights, strict=True) if w is None)
    if free and given >= 1:
        raise InputError(
            f"the weights of --data sum to {given:g}, which leaves nothing for the texts without a weight; "
            "give all of them one, or let the sum stay below 1"
        )
    left = (1 - given) / free if free else 0.0
    shares = np.array([n * left if w is None else w for n, w in zip(windows, weights, strict=True)], np.float64)
    return shares / shares.sum()
