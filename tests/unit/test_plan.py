"""The planner against replays, brute force and arithmetic by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from plan_models import ACTIVE, ALL_BYTES, HOST, NEURONS, RATES, SIZES, TOKENS, latents, shares_of, trace

from hotset.errors import MemoryBudgetError
from hotset.planner.model_cost import Demand, forecast, reads_in_order_win
from hotset.planner.placement import Placement, Profiled
from hotset.planner.plan import judged, place, remarks
from hotset.planner.sizes import Predictor, spill_places
from hotset.planner.statistics import lru_misses
from hotset.planner.use import Finds, NeuronUse, Reach, neuron_use


@pytest.fixture(scope="module")
def traces() -> list[NDArray[np.bool_]]:
    return [trace(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def profiled(traces: list[NDArray[np.bool_]]) -> Profiled:
    return Profiled(shares_of(traces), {"low-rank": Finds(0.2, 0.2)})


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
        found = use.cold(border, slots)
        assert found.missed / active.sum(axis=1).mean() == pytest.approx(replayed, abs=0.03)
        assert found.skipped == pytest.approx(0, abs=1e-6), "all that is computed is also read"


@pytest.mark.parametrize(("computed", "wanted"), [(0.2, 0.2), (0.2, 0.1), (0.3, 0.13), (0.15, 0.05)])
def test_misses_of_a_predictor_with_two_thresholds_are_those_of_a_replay(computed: float, wanted: float) -> None:
    """Latents above one threshold are computed if they are in memory, above a higher one they are read, too."""
    values = latents(7)
    use = neuron_use(shares_of([values > np.quantile(values, 1 - ACTIVE)]), Finds(computed, wanted))
    keep, fetch = (values > np.quantile(values, 1 - share) for share in (computed, wanted))
    for slots in (300, 500, 700):
        missed, skipped = lru_of_two(keep, fetch, slots)
        found = use.cold(0, slots)
        assert found.missed / NEURONS == pytest.approx(missed / NEURONS, abs=0.012), slots
        assert found.skipped / NEURONS == pytest.approx(skipped / NEURONS, abs=0.02), slots
    everything = use.cold(use.borders - 1, 0)
    assert (everything.missed, everything.skipped) == (0, 0)
    nothing = use.cold(0, 0)
    assert nothing.missed == pytest.approx(wanted * NEURONS, rel=0.01)
    assert nothing.skipped == pytest.approx((computed - wanted) * NEURONS, rel=0.02, abs=0.5)


def lru_of_two(keep: NDArray[np.bool_], fetch: NDArray[np.bool_], slots: int) -> tuple[float, float]:
    """(missed, skipped) neurons of a token, by brute force."""
    recent: list[int] = []
    counts = []
    for kept, wanted in zip(keep, fetch, strict=True):
        held = set(recent)
        missed = [n for n in np.flatnonzero(wanted) if n not in held]
        used = [n for n in recent if kept[n]]
        counts.append((len(missed), int(kept.sum()) - len(used) - len(missed)))
        unused = [n for n in recent if not kept[n]]
        recent = [*missed, *used, *unused][:slots]
    return tuple(np.mean(counts[500:], axis=0))  # type: ignore[return-value]


@pytest.mark.parametrize("reach", [Reach(), Reach(2, 0), Reach(9, 0), Reach(9, 3), Reach(18, 4)])
def test_near_neurons_are_one_request(reach: Reach) -> None:
    """Chance by brute force: neurons are missed independently, each with its frequency."""
    rng = np.random.default_rng(0)
    often = np.sort(rng.beta(0.5, 1.5, NEURONS))[::-1]
    active = rng.random((TOKENS, NEURONS)) < often
    requests = read = 0
    for token in active:
        first = last = -NEURONS
        for neuron in np.flatnonzero(token):
            joins = neuron - last - 1 <= reach.gap and neuron - first < reach.together
            requests, read = (requests, read + neuron - last) if joins else (requests + 1, read + 1)
            first, last = first if joins else neuron, neuron
    found = neuron_use(shares_of([active])).cold(0, 0, reach)
    assert found.missed == pytest.approx(active.sum() / TOKENS, rel=0.01)
    assert found.requests == pytest.approx(requests / TOKENS, rel=0.06)
    assert found.read == pytest.approx(read / TOKENS, rel=0.06)


def test_slots_for_all_miss_nothing_and_too_few_miss_all(use: NeuronUse, profiled: Profiled) -> None:
    assert use.cold(0, 4 * NEURONS).missed == 0
    assert use.cold(0, 0).missed == pytest.approx(profiled.active)
    assert use.cold(0, int(profiled.active) - 1).missed == pytest.approx(profiled.active), "the cliff of LRU"
    assert use.cold(use.borders - 1, 0).missed == 0, "nothing is cold"


def test_hottest_sets_are_those_of_a_sort(use: NeuronUse, profiled: Profiled) -> None:
    frequency = profiled.shares[0]
    for border in (1, 60, 200):
        hot = use.hot[border]
        chosen = sum(float(frequency[layer, :n].sum()) for layer, n in enumerate(hot))
        best = float(np.sort(frequency, axis=None)[::-1][: int(hot.sum())].sum())
        assert chosen == pytest.approx(best, rel=1e-6)
        assert use.wanted(border) == pytest.approx(profiled.active - chosen, rel=1e-4)
        assert use.border(int(hot.sum())) == border


def test_order_without_frequency_offers_no_hot_set_worth_having() -> None:
    active = trace(3)[:, np.random.default_rng(0).permutation(NEURONS)]
    use = neuron_use(shares_of([active]))
    half = int(np.searchsorted(use.hot[:, 0], NEURONS // 2))
    assert use.wanted(half) / use.wanted(0) == pytest.approx(0.5, abs=0.1)


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


def test_bound_by_hand() -> None:
    """1,000 candidates, 900 with a gate, 800 active, 100 missed in 80 requests, gates in memory."""
    demand = Demand(candidates=1000, tried=900, active=800, missed=100, requests=80, read_bytes=90 * 8192)
    gates = SIZES.predictor_bytes("gate")
    found = forecast(SIZES, "gate", demand, 50_000_000, RATES, threads=2)
    moved = 50_000_000 + gates + (900 + 800) * 2304
    assert found.drive_s == pytest.approx(90 / 40_000), "beyond the largest block, bytes/s stay"
    assert found.memory_s == pytest.approx((moved - (1 << 20)) / 20e9)
    assert found.compute_s == pytest.approx(moved * 4096 / 2304 / 200e9)
    assert (found.bound, found.reads, found.drive_bytes, found.memory_bytes) == ("memory", 80, 90 * 8192, moved)
    assert found.hit_rate == pytest.approx(0.9)


@pytest.mark.parametrize("ahead", [False, True])
def test_forecast_by_hand(ahead: bool) -> None:
    """Reads hide behind gate and up of a layer, and where a predictor looks ahead behind everything."""
    sizes = replace(SIZES, low_rank_bytes=1 << 20, low_rank_ahead=ahead)
    demand = Demand(candidates=1000, tried=900, active=800, missed=100, requests=100, read_bytes=716_800)
    rates = replace(RATES, cache_bytes=1)
    found = forecast(sizes, "low-rank", demand, 50_000_000, rates, threads=2)
    first = (50_000_000 + sizes.predictor_bytes("low-rank")) / 16e9 + 3e-9 * sizes.neurons
    inside = 1900 * 2304 / 8e9 + 716_800 / 10e9 + 100 * 4e-6 / 2
    after = 800 * 2304 / 8e9
    drive = 100 / RATES.reads_per_s(7168)
    if ahead:
        total = (drive**2 + (first + inside + after) ** 2) ** 0.5
    else:
        total = first + (drive**2 + inside**2) ** 0.5 + after
    assert found.tokens_per_s == pytest.approx(1 / total, rel=1e-6)


def test_a_sketch_takes_all_of_its_memory_but_is_read_in_part() -> None:
    whole = replace(SIZES, sketch_bytes=40 << 20, sketch_read=40 << 20)
    part = replace(whole, sketch_read=27 << 20)
    demand = Demand(candidates=1000, tried=900, active=800, missed=100, requests=100, read_bytes=716_800)
    found = [forecast(sizes, "sketch", demand, 50_000_000, RATES, threads=2) for sizes in (whole, part)]
    assert found[0].memory_bytes - found[1].memory_bytes == 13 << 20
    assert found[1].tokens_per_s > found[0].tokens_per_s
    assert whole.predictor_bytes("sketch") == part.predictor_bytes("sketch") > 40 << 20


@settings(max_examples=200, deadline=None)
@given(
    share=st.floats(0, 1),
    missed=st.floats(0, 1),
    predictor=st.sampled_from(["all", "gate", "low-rank"]),
    faster=st.floats(0.1, 100),
)
def test_no_forecast_beats_its_bound(share: float, missed: float, predictor: Predictor, faster: float) -> None:
    candidates = share * SIZES.neurons
    count = missed * candidates
    demand = Demand(candidates, 0.8 * candidates, 0.5 * candidates, count, count, count * SIZES.stride)
    quick = replace(RATES, weight_bytes_per_s={2: faster * 20e9}, neuron_bytes_per_s={2: faster * 20e9})
    found = forecast(replace(SIZES, low_rank_bytes=1 << 20), predictor, demand, 50_000_000, quick, threads=2)
    assert found.tokens_per_s <= found.bound_tokens_per_s * (1 + 1e-12)


def test_a_model_in_the_cache_is_not_bound_by_memory() -> None:
    rates = replace(RATES, cache_bytes=1 << 30)
    demand = Demand(1000, 900, 800, 0, 0, 0)
    found = forecast(SIZES, "gate", demand, 50_000_000, rates, threads=2)
    assert (found.memory_s, found.bound) == (0, "compute")
    assert found.tokens_per_s == pytest.approx(1 / (found.compute_s + 3e-9 * SIZES.neurons))


def test_whole_layers_win_beyond_the_break_even() -> None:
    cold = 4000.0
    even = cold * SIZES.stride / RATES.seq_bytes_per_s * RATES.reads_per_s(SIZES.stride)
    for missed, wins in ((even * 0.99, False), (even * 1.01, True)):
        demand = Demand(missed, missed, missed, missed, missed, missed * SIZES.stride)
        assert reads_in_order_win(SIZES, RATES, demand, cold) is wins
    merged = Demand(cold, cold, cold, even * 1.01, even / 4, even * 1.01 * SIZES.stride)
    fast = replace(RATES, random_reads_per_s={4096: 50_000, 65536: 30_000})
    assert not reads_in_order_win(SIZES, fast, merged, cold), "neighbours in one request"


def test_remarks_say_what_is_missing(profiled: Profiled) -> None:
    cold = Placement("gate", (0,) * 4, 2000)
    assert "no profile" in " ".join(remarks(cold, SIZES, None, HOST))
    assert "was not probed" in " ".join(remarks(cold, SIZES, profiled, replace(HOST, rates=None)))
    everything = judged(Placement("all", (0,) * 4, 0), SIZES, profiled, HOST)
    text = " ".join(remarks(everything, SIZES, profiled, HOST))
    assert "nothing tells" in text and "in order would be faster" in text
    assert not list(remarks(Placement("gate", (SIZES.ffn,) * 4, 0), SIZES, None, HOST))
