"""How far apart missing neurons may lie to be one request of the drive, by what was probed. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hotset.planner.rates import Rates
from hotset.planner.sizes import GAP_BYTES, MERGED_BYTES, READ_BLOCK, NeuronSizes
from hotset.planner.use import Reach

# Of the best rate of random reads, what the largest requests must reach: 128 KiB, which gave 82 % of it, were measured
# to be as fast as 256 KiB with 90 % (docs/decisions/log.md), and what is wanted first comes sooner.
_NEAR_BEST = 0.8
_LEAST_MERGED, _MOST_MERGED = 16 << 10, 1 << 20
_SHARES = np.array([0.005, 0.02, 0.1, 0.3, 0.6])  # of neurons missed, by which two choices are compared
_ABOUT_EQUAL = 0.97


@dataclass(frozen=True, slots=True)
class ReadSizes:
    """merged: most bytes of one request; gap: most between two neurons that are read with it."""

    merged: int = MERGED_BYTES
    gap: int = GAP_BYTES

    def of(self, sizes: NeuronSizes) -> NeuronSizes:
        return replace(sizes, merged_bytes=self.merged, gap_bytes=self.gap)

    def reach(self, stride: int) -> Reach:
        """In neurons that lie so many bytes apart."""
        return Reach(max(1, self.merged // stride), min(self.gap, self.merged) // stride)


def read_sizes(rates: Rates | None, stride: int) -> ReadSizes:
    """For neurons of `stride` bytes. The usual sizes if these are about as fast, or if nothing else is known."""
    usual = ReadSizes()
    if rates is None or max(rates.random_reads_per_s) < usual.merged or min(rates.random_reads_per_s) > usual.merged:
        return usual
    merged = _merged(rates, stride)
    found = ReadSizes(merged, _gap(rates, stride, merged))
    times = [seconds_each(rates, sizes.reach(stride), stride, _SHARES) for sizes in (found, usual)]
    return found if float((times[0] / times[1]).mean()) < _ABOUT_EQUAL else usual


def seconds_each(rates: Rates, reach: Reach, stride: int, missed: np.ndarray) -> np.ndarray:
    """Of the drive for each missed neuron, where so large shares of all are missed, independently."""
    requests, span = reach.requests(missed)
    return np.array([rates.drive_seconds(n, read * stride) for n, read in zip(requests, span, strict=True)])


def _merged(rates: Rates, stride: int) -> int:
    """The least power of two at which the drive is near its best rate, with room for two neurons."""
    size = _LEAST_MERGED
    best = max(n * rate for n, rate in rates.random_reads_per_s.items())
    while size < _MOST_MERGED and (size * rates.reads_per_s(size) < _NEAR_BEST * best or size < 2 * stride):
        size *= 2
    return size


def _gap(rates: Rates, stride: int, merged: int) -> int:
    """What lies between two neurons is read if that takes less than another request, amid one of half the most."""
    before, another = merged // 2, rates.read_seconds(stride)
    gap = 0
    while (longer := before + gap + READ_BLOCK + stride) <= _MOST_MERGED:
        if rates.read_seconds(longer) - rates.read_seconds(before) > another:
            break
        gap += READ_BLOCK
    return min(gap, merged)
