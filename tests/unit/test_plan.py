"""The planner against replays, brute force and arithmetic by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hotset.errors import MemoryBudgetError
from hotset.planner.model_cost import Demand, forecast, reads_in_order_win
from hotset.planner.plan import Host, Placement, Profiled, judged, place, remarks
from hotset.planner.rates import Rates
from hotset.planner.sizes import NeuronSizes, spill_places
from hotset.planner.statistics import lru_misses, union_counts
from hotset.planner.use import NeuronUse, neuron_use

TOKENS, NEURONS, ACTIVE = 2000, 1024, 0.1
RATES = Rates(
    threads=2,
    seq_bytes_per_s=4e9,
    random_reads_per_s={4096: 50_000, 8192: 40_000},
    best_depth={4096: 64, 8192: 32},
    cpu_us_per_read=4.0,
    memory_bytes_per_s={1: 12e9, 2: 20e9},
    int8_gmac_per_s={1: 100.0, 2: 200.0},
)
SIZES = NeuronSizes(
    layers=4, ffn=1024, hidden=4096, gated=True, vector_bytes=2304, stride=7168, gate_bytes=4 * 1024 * 2304
)
ALL_BYTES = SIZES.neurons * SIZES.stride
HOST = Host(threads=2, resident_bytes=50_000_000, rates=RATES)


def trace(seed: int, correlation: float = 0.7, spread: float = 1.0) -> NDArray[np.bool_]:
    """Activations [tokens, neurons] of latent Gaussians that follow themselves in time; most frequent neurons first."""
    rng = np.random.default_rng(seed)
    often = spread * rng.standard_normal(NEURONS)
    state = rng.standard_normal(NEURONS)
    values = np.empty((TOKENS, NEURONS))
    for token in range(TOKENS):
        state = correlation * state + np.sqrt(1 - correlation**2) * rng.standard_normal(NEURONS)
        values[token] = state + often
    active = values > np.quantile(values, 1 - ACTIVE)
    return active[:, np.argsort(-active.mean(axis=0), kind="stable")]


def shares_of(layers: list[NDArray[np.bool_]]) -> NDArray[np.float32]:
    runs = range(1, 9)
    return np.array([[union_counts(a, n) / (len(a) // n) for a in layers] for n in runs], np.float32)


@pytest.fixture(scope="module")
def traces() -> list[NDArray[np.bool_]]:
    return [trace(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def profiled(traces: list[NDArray[np.bool_]]) -> Profiled:
    return Profiled(shares_of(traces), {"gate": 1.0, "low-rank": 2.0}, {"gate": 1.0, "low-rank": 2.0})


@pytest.fixture(scope="module")
def use(profiled: Profiled) -> NeuronUse:
    return neuron_use(profiled.shares)


@pytest.mark.parametrize(("correlation", "spread"), [(0.0, 1.0), (0.5, 1.0), (0.8, 1.0), (0.7, 0.3)])
@pytest.mark.parametrize("hot", [0, 128])
def test_misses_are_those_of_a_replay(correlation: float, spread: float, hot: int) -> None:
    active = trace(7, correlation, spread)
    use = neuron_use(shares_of([active]))
    border = int(np.searchsorted(use.hot[:, 0], hot))
    cold = active[:, hot:]
    for slots in (200, 300, 500, 800):
        replayed = lru_misses(cold, slots)[500:].mean() / active.sum(axis=1).mean()
        assert use.cold_misses(border, slots) / use.active == pytest.approx(replayed, abs=0.03)


def test_slots_for_all_miss_nothing_and_too_few_miss_all(use: NeuronUse) -> None:
    assert use.cold_misses(0, 4 * NEURONS) == 0
    assert use.cold_misses(0, 0) == pytest.approx(use.active)
    assert use.cold_misses(0, int(use.active) - 1) == pytest.approx(use.active), "the cliff of LRU"
    assert use.cold_misses(len(use.hot) - 1, 0) == 0, "nothing is cold"


def test_hottest_sets_are_those_of_a_sort(use: NeuronUse, profiled: Profiled) -> None:
    frequency = profiled.shares[0]
    for hot in use.hot[[1, 60, 200]]:
        chosen = sum(float(frequency[layer, :n].sum()) for layer, n in enumerate(hot))
        best = float(np.sort(frequency, axis=None)[::-1][: int(hot.sum())].sum())
        assert chosen == pytest.approx(best, rel=1e-6)
    assert use.unions[0] == pytest.approx([profiled.active - use.hot_hits(b) for b in range(len(use.hot))])


def test_order_without_frequency_offers_no_hot_set_worth_having() -> None:
    active = trace(3)[:, np.random.default_rng(0).permutation(NEURONS)]
    use = neuron_use(shares_of([active]))
    half = int(np.searchsorted(use.hot[:, 0], NEURONS // 2))
    assert use.hot_hits(half) / use.active == pytest.approx(0.5, abs=0.1)


@settings(max_examples=200, deadline=None)
@given(
    room=st.integers(0, 2 * ALL_BYTES),
    predictors=st.sampled_from([["all"], ["gate", "all"], ["low-rank", "gate", "all"]]),
    known=st.booleans(),
    probed=st.booleans(),
)
def test_a_placement_fits(profiled: Profiled, room: int, predictors: list, known: bool, probed: bool) -> None:
    sizes = replace(SIZES, low_rank_bytes=1 << 20 if "low-rank" in predictors else 0)
    host = HOST if probed else replace(HOST, rates=None)
    # One layer's neurons pass through memory, or as many as a predictor's misses may be.
    least = sizes.ffn * sizes.stride
    if "low-rank" in predictors:
        least = min(least, sizes.predictor_bytes("low-rank") + spill_places("low-rank", sizes.ffn) * sizes.stride)
    if room < least:
        with pytest.raises(MemoryBudgetError, match="raise the budget"):
            place(sizes, room, predictors, None, host)
        return
    placed = place(sizes, room, predictors, profiled if known else None, host)
    assert sum(placed.bytes(sizes).values()) <= room
    assert placed.predictor in predictors
    assert all(0 <= n <= sizes.ffn for n in placed.hot) and 0 <= placed.cold_slots <= sizes.neurons
    if room >= ALL_BYTES + sizes.predictor_bytes("gate"):
        assert sum(placed.hot) == sizes.neurons
    assert (placed.forecast is not None) == (probed and (known or placed.predictor == "all"))


def test_more_memory_is_never_slower(profiled: Profiled) -> None:
    rooms = np.linspace(SIZES.ffn * SIZES.stride, ALL_BYTES * 1.5, 40).astype(int)
    placed = [place(SIZES, int(room), ["gate", "all"], profiled, HOST) for room in rooms]
    speeds = [p.forecast.tokens_per_s for p in placed if p.forecast]
    assert len(speeds) == len(rooms)
    assert all(b >= a * 0.98 for a, b in pairwise(speeds))
    assert speeds[-1] > 5 * speeds[0]


def test_the_cliff_is_seen(profiled: Profiled) -> None:
    """Room for 60 % of what a token needs: as a cache it would never hit."""
    deep = replace(SIZES, layers=64, gate_bytes=16 * SIZES.gate_bytes)
    many = replace(profiled, shares=np.tile(profiled.shares, (1, 16, 1)))
    slots = int(0.6 * many.active)
    placed = place(deep, slots * deep.slot_bytes + deep.predictor_bytes("gate"), ["gate"], many, HOST)
    assert sum(placed.hot) > 0.6 * slots
    assert placed.demand is not None and placed.demand.missed < 0.8 * many.active
    cache = judged(replace(placed, hot=(0,) * 64, cold_slots=slots), deep, many, HOST)
    assert cache.demand is not None and cache.demand.missed == pytest.approx(many.active, rel=1e-5)


def test_half_in_memory_misses_about_a_twentieth(profiled: Profiled) -> None:
    """The published workload: 90 % zeros, a latent Gaussian of spread 1; PowerInfer-2 hits 95 % with half in memory."""
    placed = place(SIZES, ALL_BYTES // 2 + SIZES.predictor_bytes("gate"), ["gate"], profiled, HOST)
    assert placed.demand is not None
    assert 0.02 < placed.demand.missed / placed.demand.candidates < 0.07


def test_forecast_by_hand() -> None:
    """1,000 candidates, 800 active, 100 missed, gates in memory, drive-bound."""
    demand = Demand(candidates=1000, active=800, missed=100)
    gates = SIZES.predictor_bytes("gate")
    found = forecast(SIZES, "gate", demand, 50_000_000, RATES, threads=2)
    neurons = (1000 + 800) * 2304
    reads_per_s = 1 / ((1 - 0.75) / 50_000 + 0.75 / 40_000)  # 7168 is three quarters of the way from 4096 to 8192
    assert found.drive_s == pytest.approx(100 / reads_per_s)
    assert found.memory_s == pytest.approx((50_000_000 + gates + neurons) / 20e9)
    macs = (50_000_000 + gates + neurons) * 4096 / 2304
    assert found.compute_s == pytest.approx(macs / 200e9 + 100 * 4e-6 / 2)
    before, inside = (50_000_000 + gates) / 20e9, neurons / 20e9
    total = before + max(found.drive_s, 100 * 4e-6 + 0.9 * inside) + 0.1 * inside
    assert found.tokens_per_s == pytest.approx(1 / total, rel=1e-3)
    assert (found.bound, found.reads, found.drive_bytes) == ("memory", 100, 716_800)
    assert found.hit_rate == pytest.approx(0.9)
    assert found.tokens_per_s <= found.bound_tokens_per_s


def test_whole_layers_win_beyond_the_break_even() -> None:
    share = RATES.reads_per_s(SIZES.stride) * SIZES.stride / RATES.seq_bytes_per_s
    assert not reads_in_order_win(SIZES, RATES, share * 0.99)
    assert reads_in_order_win(SIZES, RATES, share * 1.01)


def test_remarks_say_what_is_missing(profiled: Profiled) -> None:
    cold = Placement("gate", (0,) * 4, 2000)
    assert "no profile" in " ".join(remarks(cold, SIZES, None, HOST))
    assert "was not probed" in " ".join(remarks(cold, SIZES, profiled, replace(HOST, rates=None)))
    everything = judged(Placement("all", (0,) * 4, 0), SIZES, profiled, HOST)
    text = " ".join(remarks(everything, SIZES, profiled, HOST))
    assert "nothing tells" in text and "in order would be faster" in text
    assert not list(remarks(Placement("gate", (SIZES.ffn,) * 4, 0), SIZES, None, HOST))
