"""What a store's profile says of its neurons, as a plan needs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hotset.formats.predictors import Predictors
from hotset.formats.profile import PROFILE_FILE, Profile, load_profile
from hotset.formats.sketch import Sketch
from hotset.formats.store import Store
from hotset.formats.thresholds import fetch_energy
from hotset.models import Model
from hotset.models.gate import ZERO_BELOW
from hotset.planner.placement import Profiled
from hotset.planner.sizes import Predictor
from hotset.planner.together import pairs
from hotset.planner.use import Finds

# Misses of sets that scores choose, to those that such sets with the reuse of active neurons would have. Scores see
# only the part of a neuron's input that a small map can tell, which changes more slowly than the rest. On the synthetic
# 7B 0.63 to 0.76, by text, budget and loss (docs/decisions/log.md).
_STEADY = 0.7
# The same for gates above zero where up has a ReLU, too: they are spread over more neurons than active ones are.
_SPREAD = 1.25


def profiled(store: Store, model: Model, trained: Predictors | None, sketch: Sketch | None) -> Profiled | None:
    """None without a profile. trained, sketch: predictors that may be used, as they were calibrated.

    Raises: InputError if it is too short.
    """
    if not (store.path / PROFILE_FILE).exists():
        return None
    info = store.neurons
    assert info is not None
    orders = [info.read_order(layer) for layer in range(info.layers)]
    return ordered(load_profile(store), orders, model, trained, sketch)


def ordered(
    profile: Profile,
    orders: Sequence[NDArray[np.int32]],
    model: Model,
    trained: Predictors | None,
    sketch: Sketch | None,
) -> Profiled:
    """What a profile says of neurons that lie in these orders: [layers][ffn], the model's index of the k-th stored."""
    shares = np.array([profile.rates(batch) for batch in range(1, len(profile.counts) + 1)], np.float32)
    for layer, order in enumerate(orders):
        shares[:, layer] = shares[:, layer, order]
    active, both = float(shares[0].mean()), model.config.act_up in ZERO_BELOW
    finds: dict[Predictor, Finds] = {}
    if both:  # counted are products; gate and up are taken as alike and independent
        gates = float(np.sqrt(shares[0]).mean())
        finds["gate"] = finds["read-gate"] = Finds(gates, gates, _SPREAD)
    if trained:
        finds["low-rank"] = _found(trained, trained.energy, active)
    if sketch:
        finds["sketch"] = Finds(sketch.facts.candidates, sketch.facts.wanted, _STEADY)
    return Profiled(shares, finds, both, pairs(profile.trace, orders, profile.sampled_every))


def giving_up(known: Profiled, trained: Predictors, energy: float) -> Profiled:
    """The same with low-rank predictors that give up so much energy where neurons are in memory."""
    return replace(known, finds={**known.finds, "low-rank": _found(trained, energy, float(known.shares[0].mean()))})


def _found(trained: Predictors, energy: float, active: float) -> Finds:
    computed, wanted = trained.candidates(energy) * active, trained.wanted(energy) * active
    fetched = fetch_energy(energy, trained.fetch)
    by_layer = zip(trained.tables.shares(energy), trained.tables.shares(fetched), strict=True)
    return Finds(min(computed, 1.0), min(wanted, 1.0), _STEADY, tuple(by_layer))
