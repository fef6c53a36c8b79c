"""Sizes of merged reads, against every way there is to join neurons, drawn one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from hotset.planner.rates import Rates
from hotset.planner.read_sizes import ReadSizes, read_sizes, seconds_each
from tests.probed_hosts import RATES

STRIDE = 7168
# Measured on a virtual NVMe drive (bench/results/sparse-amd-epyc-2026-11-30.json).
VIRTUAL = {4096: 83425.0, 8192: 68823.0, 16384: 53735.0, 65536: 35427.0, 1 << 20: 3060.0}


def drive(request_us: float, gigabytes_per_s: float) -> Rates:
    """One whose reads take so long each and so much more for each byte."""
    times = {4096 << i: request_us * 1e-6 + (4096 << i) / gigabytes_per_s / 1e9 for i in range(9)}
    return replace(RATES, random_reads_per_s={size: 1 / seconds for size, seconds in times.items()})


def joined(missed: NDArray[np.intp], sizes: ReadSizes, rates: Rates) -> float:
    """Seconds for a layer's missed neurons, joined as native/io/backend.cc does."""
    seconds, first = 0.0, 0
    for i in range(1, len(missed) + 1):
        whole = i < len(missed) and (missed[i] - missed[first] + 1) * STRIDE <= sizes.merged
        if not (whole and (missed[i] - missed[i - 1] - 1) * STRIDE <= sizes.gap):
            seconds += rates.read_seconds(int(missed[i - 1] - missed[first] + 1) * STRIDE)
            first = i
    return seconds


def fastest(missed: NDArray[np.intp], most: int, rates: Rates) -> float:
    """The same for the best of all ways to cut them into requests of at most so many bytes."""
    best = [0.0]
    for i in range(len(missed)):
        found = []
        for first in range(i, -1, -1):
            if (span := int(missed[i] - missed[first] + 1) * STRIDE) > most:
                break
            found.append(best[first] + rates.read_seconds(span))
        best.append(min(found))
    return best[-1]


@pytest.mark.parametrize(
    "rates",
    [
        pytest.param(replace(RATES, random_reads_per_s=VIRTUAL), id="virtual"),
        pytest.param(drive(2, 6), id="fast"),
        pytest.param(drive(10, 3), id="middling"),
        pytest.param(drive(60, 0.5), id="card"),
        pytest.param(drive(100, 3), id="far away"),
    ],
)
def test_no_other_way_to_join_reads_is_much_faster(rates: Rates) -> None:
    sizes = read_sizes(rates, STRIDE)
    rng = np.random.default_rng(1)
    ratios = []
    for share in (0.005, 0.02, 0.1, 0.3, 0.6):
        missed = np.flatnonzero(rng.random(14336) < share)
        mine, best = joined(missed, sizes, rates), fastest(missed, sizes.merged, rates)
        expected = len(missed) * seconds_each(rates, sizes.reach(STRIDE), STRIDE, np.array([share]))[0]
        assert expected == pytest.approx(mine, rel=0.15), share  # requests of the mean size, as forecasts have it
        assert best <= mine < 1.12 * best, share
        ratios.append(mine / best)
    assert np.mean(ratios) < 1.05


def test_the_usual_sizes_stay_where_they_are_as_good() -> None:
    assert read_sizes(replace(RATES, random_reads_per_s=VIRTUAL), STRIDE) == ReadSizes(128 << 10, 32 << 10)
    assert read_sizes(None, STRIDE) == read_sizes(RATES, STRIDE) == ReadSizes()  # small reads alone: nothing is known


def test_a_drive_far_away_reads_more_for_each_request_and_a_near_one_less() -> None:
    far, near = (read_sizes(drive(us, 3), STRIDE) for us in (100, 1))
    assert far.merged > 128 << 10 and far.gap > 100 << 10
    assert near.gap < 8 << 10
