"""Statistics of activations against loops, sets and exhaustive search."""

from __future__ import annotations

from collections import OrderedDict
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from hotset.planner import statistics


def random_activity(seed: int, tokens: int, neurons: int, share: float = 0.3) -> NDArray[np.bool_]:
    rng = np.random.default_rng(seed)
    return rng.random((tokens, neurons)) < share * 2 * rng.random(neurons)


def sets(active: NDArray[np.bool_]) -> list[set[int]]:
    return [set(np.flatnonzero(row).tolist()) for row in active]


@pytest.mark.parametrize("window", [1, 3, 7])
def test_reuse_is_the_share_found_in_the_sets_before(window: int) -> None:
    tokens = sets(active := random_activity(window, 40, 30))
    later = range(window, len(tokens))
    found = sum(len(tokens[t] & set().union(*tokens[t - window : t])) for t in later)
    assert statistics.reuse(active, window) == pytest.approx(found / sum(len(tokens[t]) for t in later))


def test_reuse_of_texts_that_are_too_short_or_silent_is_zero() -> None:
    assert statistics.reuse(random_activity(0, 5, 8), 5) == 0
    assert statistics.reuse(np.zeros((9, 4), bool), 2) == 0


def test_concentration_is_the_smallest_sufficient_part() -> None:
    counts = np.array([40, 0, 5, 30, 20, 5])  # 40 + 30 = 70 %, and 20 more make 90 %
    assert statistics.concentration(counts, 0.8) == 3 / 6
    assert statistics.concentration(counts, 0.7) == 2 / 6
    assert statistics.concentration(counts, 1.0) == 5 / 6
    assert statistics.concentration(np.zeros(4, np.int64)) == 0
    np.testing.assert_allclose(statistics.concentration_curve(counts), [0, 0.4, 0.7, 0.9, 0.95, 1, 1])


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_union_counts_are_steps_with_any_of_the_tokens(batch: int) -> None:
    tokens = sets(active := random_activity(batch, 25, 12))
    steps = [set().union(*tokens[i : i + batch]) for i in range(0, 25 - batch + 1, batch)]
    assert statistics.union_counts(active, batch).tolist() == [sum(k in s for s in steps) for k in range(12)]


def lru(tokens: list[set[int]], slots: int) -> list[int]:
    """Of each token, neurons that are there; then all of its neurons are used, the highest index first."""
    held: OrderedDict[int, None] = OrderedDict()
    misses = []
    for wanted in tokens:
        misses.append(len(wanted - held.keys()))
        for k in sorted(wanted, reverse=True):
            held[k] = None
            held.move_to_end(k)
        while len(held) > slots:
            held.popitem(last=False)
    return misses


@pytest.mark.parametrize("slots", [0, 1, 5, 12, 40])
def test_lru_misses_as_an_ordered_dict_does(slots: int) -> None:
    active = random_activity(slots, 60, 40)
    assert statistics.lru_misses(active, slots).tolist() == lru(sets(active), slots)


def fewest_misses(tokens: list[set[int]], slots: int, held: frozenset[int] = frozenset()) -> int:
    """By trying every choice of what stays."""
    if not tokens:
        return 0
    there = sorted(held | tokens[0])
    stays = combinations(there, min(slots, len(there)))
    return len(tokens[0] - held) + min(fewest_misses(tokens[1:], slots, frozenset(kept)) for kept in stays)


@pytest.mark.parametrize("seed", range(8))
def test_belady_misses_as_few_as_any_policy_can(seed: int) -> None:
    active = random_activity(seed, 5, 6)
    for slots in (0, 1, 2, 4):
        assert statistics.belady_misses(active, slots).sum() == fewest_misses(sets(active), slots)


def test_belady_is_never_worse_than_lru_and_counts_first_uses() -> None:
    active = random_activity(3, 80, 50)
    best, recent = (f(active, 20) for f in (statistics.belady_misses, statistics.lru_misses))
    assert active.any(axis=0).sum() <= best.sum() <= recent.sum()
    assert best[0] == recent[0] == active[0].sum()
    assert statistics.miss_rate(recent, active, warm_up=10) == recent[10:].sum() / active[10:].sum()


def test_energy_of_the_stronger_half() -> None:
    values = np.array([[0, 3, 0, 1, 2, 4], [5, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]], np.float32)
    assert statistics.energy_kept(values) == pytest.approx((25 / 30 + 25 / 26) / 2)
    assert statistics.energy_kept(values, 1.0) == pytest.approx(1)
    assert statistics.energy_kept(np.zeros((3, 4))) == 0


def test_autocorrelation_of_a_known_process() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 300))
    for t in range(1, len(x)):
        x[t] = 0.7 * x[t - 1] + np.sqrt(1 - 0.49) * x[t]
    np.testing.assert_allclose(statistics.autocorrelation(x + 5, [1, 2, 4]), [0.7, 0.49, 0.24], atol=0.02)


def test_zeros_is_the_share_of_what_is_not_active() -> None:
    assert statistics.zeros(np.array([[True, False, False, False], [True, True, False, False]])) == 5 / 8
