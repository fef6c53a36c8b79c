"""How often neurons are used, from a profile: which are hottest, and how often a cache of the others misses.

Pure functions. Neurons are in the order of the store, whose first ones are the only ones that can be hot.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_BLOCK = 64  # neurons whose mean stands for them where the order is not strictly by frequency
_GROUPS = 256  # of neurons of like frequency: borders between hot and cold are tried where they meet
_LONGEST = 1 << 16  # tokens; no cache holds what so many use unless it holds everything


@dataclass(frozen=True, slots=True)
class NeuronUse:
    """What a plan needs to know of a model's activations."""

    hot: NDArray[np.int64]  # [borders, layers]: the hottest neurons of each layer, border by border more
    windows: Floats  # [n] tokens, ascending from 1
    unions: Floats  # [n, borders]: neurons beyond a border that any of so many consecutive tokens uses, mean

    @property
    def active(self) -> float:
        """Active neurons of a token, all layers together."""
        return float(self.unions[0, 0])

    def cold_misses(self, border: int, slots: int) -> float:
        """Missed neurons per token under LRU with `slots` for all neurons beyond a border.

        LRU that holds what the last w tokens used misses what one more token adds to it: the slope of the mean size of
        a working set is its miss rate (Denning and Schwartz, CACM 15(3), 1972). Slots that one token alone fills are
        overwritten before they are used again, so then every use is a miss.
        """
        union = self.unions[:, border]
        if slots < union[0] or union[0] == 0:
            return float(union[0])
        if slots >= union[-1]:
            return 0.0
        window = float(np.interp(slots, union, self.windows))
        more = float(np.interp(window + 1, self.windows, union))
        return min(max(more - slots, 0.0), float(union[0]))

    def hot_hits(self, border: int) -> float:
        """Active neurons of a token that are among the hot ones."""
        return self.active - float(self.unions[0, border])


def neuron_use(shares: NDArray[np.float32]) -> NeuronUse:
    """Digests a profile.

    shares: [n, layers, ffn]; shares[i]: in which share of the runs of i + 1 consecutive tokens a neuron is active at
        least once, n >= 2.
    """
    _, layers, ffn = shares.shape
    order = _hottest_first(shares[0])
    edges = np.unique(np.linspace(0, order.size, _GROUPS + 1).astype(np.int64))
    layer_of = order // ffn
    hot = np.zeros((len(edges), layers), np.int64)
    for i in range(1, len(edges)):
        hot[i] = hot[i - 1] + np.bincount(layer_of[edges[i - 1] : edges[i]], minlength=layers)
    sums = np.array([np.add.reduceat(s.ravel()[order], edges[:-1], dtype=np.float64) for s in shares])
    windows, grown = _longer(sums, np.diff(edges))
    beyond = np.concatenate([np.cumsum(grown[:, ::-1], axis=1)[:, ::-1], np.zeros((len(windows), 1))], axis=1)
    return NeuronUse(hot, windows, beyond)


def _hottest_first(share: NDArray[np.float32]) -> NDArray[np.int64]:
    """Flat indices of all neurons so that any beginning of them is a beginning of each layer, hottest first.

    share: [layers, ffn]. In a store that is not in order of frequency the beginning of a layer may not be its hottest.
    """
    layers, ffn = share.shape
    padded = np.pad(share, ((0, 0), (0, -ffn % _BLOCK)), mode="edge")
    means = padded.reshape(layers, -1, _BLOCK).mean(axis=2)
    falling = np.minimum.accumulate(means, axis=1).repeat(_BLOCK, axis=1)[:, :ffn]
    sorted_already = (np.diff(share, axis=1) <= 0).all(axis=1)
    falling[sorted_already] = share[sorted_already]
    return np.argsort(-falling, axis=None, kind="stable")


def _longer(sums: Floats, sizes: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Unions of more tokens than were counted: (windows [m], neurons used in each group [m, groups]).

    sums: [n, groups] neurons used by 1 to n tokens; sizes: neurons of each group. What is idle after n tokens stays
    idle for another one as often as it did for the last: correlation between tokens has faded by then, and neurons
    that differ in frequency are in different groups.
    """
    n = len(sums)
    idle = np.maximum(1 - sums / sizes, 0.0)
    stays = np.divide(idle[-1], idle[-2], out=np.zeros_like(idle[-1]), where=idle[-2] > 0).clip(0, 1)
    further = np.unique(np.geomspace(n + 1, _LONGEST, 64).astype(np.int64))
    tail = sizes * (1 - idle[-1] * stays ** (further[:, None] - n))
    return np.concatenate([np.arange(1.0, n + 1), further]), np.concatenate([sums, tail])
