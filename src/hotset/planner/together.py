"""Whether neurons that lie near each other in a store are used by the same tokens. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DISTANCES = 5  # in neurons; those further apart are taken to be as the last of these
# A neuron comes when it is active and was in none of so many tokens before: one that a cache is likely to miss. Those
# come together more often than they are active together, as those that do are held together, too.
_ABSENT = 8
_LEAST_TOKENS = 64
_PRIOR = 3.0  # pairs that chance would give, added to those that were seen and to those expected: groups may be small
_ONES = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """counts: [1 + DISTANCES, layers, ffn], in how many of the tokens a neuron of the store and the one so many places
    after it both come; row 0: it alone."""

    counts: NDArray[np.uint16]
    tokens: int

    def lifts(self, groups: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.float64]:
        """[DISTANCES, groups]: how often they do, to how often independent ones would; neurons of a group together.

        groups: flat indices of all neurons, group after group; starts: where each group begins in it.
        """
        alone = self.counts[0].astype(np.float64)
        found = np.empty((DISTANCES, len(starts)))
        for distance in range(1, DISTANCES + 1):
            chance = np.zeros_like(alone)
            chance[:, :-distance] = alone[:, :-distance] * alone[:, distance:] / self.tokens
            both = self.counts[distance].astype(np.float64)
            seen, expected = (np.add.reduceat(x.ravel()[groups], starts) for x in (both, chance))
            found[distance - 1] = (seen + _PRIOR) / (expected + _PRIOR)
        return found


def pairs(trace: NDArray[np.uint8], orders: Sequence[NDArray[np.int32]], apart: int = 0) -> Pairs | None:
    """Counts them; None of a trace too short to tell anything.

    trace: [tokens, layers, ceil(ffn / 8)], of consecutive tokens, bit i % 8 of byte i / 8 is the model's neuron i.
    orders: [layers][ffn], the model's own index of the k-th neuron stored.
    apart: neighbours were found from every so manieth token, which thus tells nothing of others; 0: from none.
    """
    if len(trace) < _LEAST_TOKENS:
        return None
    others = np.ones(len(trace) - _ABSENT, np.bool_)
    if apart:
        others[-_ABSENT % apart :: apart] = False
    counts = np.zeros((1 + DISTANCES, len(orders), len(orders[0])), np.uint16)
    for layer, order in enumerate(orders):
        coming = np.unpackbits(_coming(trace[:, layer])[others], axis=1, count=order.size, bitorder="little")
        bits = np.packbits(coming, axis=0)[:, order]  # [tokens / 8, ffn]
        for distance in range(1 + DISTANCES):
            both = bits[:, : order.size - distance] & bits[:, distance:]
            counts[distance, layer, : both.shape[1]] = _ONES[both].sum(axis=0, dtype=np.uint16)
    return Pairs(counts, int(others.sum()))


def _coming(active: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bits [tokens, bytes] -> [tokens - _ABSENT, bytes]: active, and in none of the tokens before."""
    tokens = len(active) - _ABSENT
    before = np.bitwise_or.reduce([active[back : back + tokens] for back in range(_ABSENT)])
    coming: NDArray[np.uint8] = active[_ABSENT:] & ~before
    return coming
