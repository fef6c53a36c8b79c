"""Requests of the drive by the order of neurons: what a plan expects, against a replay of the trace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hotset.formats.profile import Profile, read_profile
from hotset.planner.together import DISTANCES, pairs
from hotset.planner.use import NeuronUse, Reach, neuron_use
from hotset.tools.pack_order import chained
from hotset.tools.resolve import packaged
from tests.clustered import activity, profile_of_activity, replayed

REACH = Reach(18, 4)  # of a 7B
KINDS = ("none", "frequency", "coactivation")
Orders = list[NDArray[np.int32]]


def orders_of(profile: Profile, kind: str) -> Orders:
    if kind == "none":
        return [np.arange(profile.ffn, dtype=np.int32)] * profile.layers
    frequent = [np.argsort(-counts, kind="stable").astype(np.int32) for counts in profile.counts[0]]
    if kind == "frequency":
        return frequent
    return [chained(order, near) for order, near in zip(frequent, profile.neighbours, strict=True)]


def use_of(profile: Profile, orders: Orders, *, independent: bool = False) -> NeuronUse:
    shares = np.array([profile.rates(b) for b in range(1, 9)], np.float32)
    for layer, order in enumerate(orders):
        shares[:, layer] = shares[:, layer, order]
    return neuron_use(shares, None, None if independent else pairs(profile.trace, orders, profile.sampled_every))


def stored(profile: Profile, orders: Orders) -> NDArray[np.bool_]:
    active = profile.active()
    return np.stack([active[:, layer, order] for layer, order in enumerate(orders)], axis=1)


def test_pairs_are_those_of_the_trace() -> None:
    active = activity(512, 2, 60, 0.5)
    profile = profile_of_activity(None, active)
    orders = orders_of(profile, "frequency")
    found = pairs(profile.trace, orders, apart=3)
    assert found is not None and found.tokens == 504 - 168
    for layer, order in enumerate(orders):
        coming = [active[t, layer] & ~active[t - 8 : t, layer].any(axis=0) for t in range(8, 512) if t % 3]
        for k, distance in np.ndindex(60, 1 + DISTANCES):
            other = order[k + distance] if k + distance < 60 else None
            both = sum(int(token[order[k]] and token[other]) for token in coming) if other is not None else 0
            assert found.counts[distance, layer, k] == both
    assert pairs(profile.trace[:50], orders) is None


@pytest.mark.parametrize("together", [0.0, 0.7])
def test_a_plan_expects_as_many_requests_as_a_replay_counts(together: float) -> None:
    profile = profile_of_activity(None, activity(4500, 2, 800, together))
    requests = {}
    for kind in KINDS:
        orders = orders_of(profile, kind)
        use, alone = use_of(profile, orders), use_of(profile, orders, independent=True)
        border, slots = use.border(300), 400
        missed, counted, read = replayed(stored(profile, orders), use.hot[border].tolist(), slots, 18, 4)
        found, chance = use.cold(border, slots, REACH), alone.cold(border, slots, REACH)
        assert found.missed == chance.missed == pytest.approx(missed, rel=0.12), kind
        # Requests and reads for each missed neuron: how many miss is the business of other tests.
        assert found.requests / found.missed == pytest.approx(counted / missed, rel=0.12), kind
        assert found.read / found.missed == pytest.approx(read / missed, rel=0.1), kind
        requests[kind] = (found.requests / found.missed, counted / missed, chance.requests / chance.missed)
    expected, counted, independent = (np.array(x) for x in zip(*requests.values(), strict=True))
    gain = 1 - counted[2] / counted[1]
    assert (gain > 0.1) if together else (abs(gain) < 0.03)
    # The replay has a quarter of tokens that the order was made from; what is expected has not.
    assert 1 - expected[2] / expected[1] == pytest.approx(gain, abs=0.07)
    assert independent[2] == pytest.approx(independent[1], rel=0.03), "chance knows no order"


@pytest.mark.parametrize(("hot", "slots"), [(0, 1500), (2000, 1000), (2500, 800)])
def test_requests_of_a_trained_model(hot: int, slots: int) -> None:
    path = packaged("stories-13m") / "profile.safetensors"
    profile = read_profile(Path(path))
    ratios = []
    for kind in ("frequency", "coactivation"):
        orders = orders_of(profile, kind)
        use, alone = use_of(profile, orders), use_of(profile, orders, independent=True)
        border = use.border(hot)
        missed, counted, _ = replayed(stored(profile, orders), use.hot[border].tolist(), slots, 18, 4)
        found, chance = use.cold(border, slots, REACH), alone.cold(border, slots, REACH)
        off, off_by_chance = (x.requests / x.missed / (counted / missed) - 1 for x in (found, chance))
        assert abs(off) < 0.06 and abs(off) < off_by_chance - 0.02
        ratios.append((found.requests / found.missed, counted / missed))
    expected, counted_ratio = (b / a for a, b in zip(*ratios, strict=True))
    assert expected <= 1 and counted_ratio <= 1, "neighbours are read together"
