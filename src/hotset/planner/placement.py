"""Neurons that stay in memory, and what a token needs under them. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hotset.planner.model_cost import Demand, Forecast, reach
from hotset.planner.sizes import NeuronSizes, Predictor, knows_gates
from hotset.planner.together import Pairs
from hotset.planner.use import Cold, Finds, NeuronUse, neuron_use, used_by_any

# Of a layer's places for cold neurons, those that the mean token may use: others use more.
_FULL = 0.8


@dataclass(frozen=True, slots=True)
class Profiled:
    """What is known of a model's neurons: in which share of the runs of tokens each is active, in store order.

    shares: [n, layers, ffn], see neuron_use(). finds: by predictor, if it does not find exactly the active neurons.
    both: gate and up are each zero for some inputs. near: which neurons are active together; None: not known.
    parallel: sequences that a step computes a token of each of.
    """

    shares: NDArray[np.float32]
    finds: Mapping[Predictor, Finds]
    both: bool = False
    near: Pairs | None = None
    parallel: int = 1

    def use(self, predictor: Predictor) -> NeuronUse:
        """Of the neurons that a predictor has computed and read."""
        return neuron_use(self.shares, self.finds.get(predictor), self.near, self.parallel)

    def demand(self, placement: Placement, sizes: NeuronSizes, use: NeuronUse | None = None) -> Demand:
        """Of a step. use: of the placement's predictor, if it is at hand."""
        predictor = placement.predictor
        if sum(placement.hot) == sizes.neurons and self.parallel == 1:
            cold, chosen, in_use = Cold(), self._chosen(sizes, predictor), 0.0
        else:
            use = use or self.use(predictor)
            cold = use.cold(use.border(sum(placement.hot)), placement.cold_slots, reach(sizes))
            chosen = float(use.computed @ use.sizes)
            in_use = _together(use, placement, sizes.layers_at_work(predictor))
        candidates, absent = chosen - cold.skipped, (cold.missed + cold.skipped) / max(chosen, 1.0)
        tried = candidates if knows_gates(predictor) else self.tried(candidates)
        active, read = min(self.active, tried), sizes.request_bytes(cold.requests, cold.read)
        users = self._users(self._chosen(sizes, predictor), tried + active, predictor)
        return Demand(candidates, tried, active, cold.missed, cold.requests, read, absent, in_use, self.parallel, users)

    def every(self, sizes: NeuronSizes, stay: int) -> Demand:
        """Of a step for which all neurons are computed, `stay` of them from memory."""
        tried, active = self.tried(sizes.neurons), self.active
        users = self._users(sizes.neurons, tried + active, "all")
        return replace(every_neuron(sizes, stay), tried=tried, active=active, parallel=self.parallel, users=users)

    def tried(self, candidates: float) -> float:
        """Of candidates, those whose gate is not zero: if up may be zero, too, as often as that, independently."""
        return self._tried(self.active, candidates)

    @property
    def active(self) -> float:
        """Active neurons of a step, all layers together."""
        return float(used_by_any(self.shares[0].astype(np.float64), self.parallel).sum())

    def _tried(self, active: float, candidates: float) -> float:
        return math.sqrt(active * candidates) if self.both else min(active, candidates)

    def _chosen(self, sizes: NeuronSizes, predictor: Predictor) -> float:
        """Neurons that one token computes if all are in memory."""
        finds = self.finds.get(predictor)
        return finds.computed * sizes.neurons if finds else float(self.shares[0].sum(dtype=np.float64))

    def _users(self, chosen: float, vectors: float, predictor: Predictor) -> float:
        """Tokens that need each of a step's ups and downs, where a token chooses so many neurons."""
        active = float(self.shares[0].sum(dtype=np.float64))
        tried = chosen if knows_gates(predictor) else self._tried(active, chosen)
        return max(1.0, self.parallel * (tried + min(active, tried)) / max(vectors, 1.0))


def _together(use: NeuronUse, placement: Placement, layers: int) -> float:
    """Neurons beyond the hot ones that a layer needs in memory; where layers at work share slots, their mean."""
    each = use.in_use(np.array(placement.hot), placement.cold_slots)
    shared = layers if placement.cold_slots else 1
    return float(np.convolve(each, np.full(shared, 1 / shared), "valid").max())


@dataclass(frozen=True, slots=True)
class Placement:
    """Neurons in memory: the first hot[i] of layer i stay, any others share the cold slots."""

    predictor: Predictor
    hot: tuple[int, ...]
    cold_slots: int
    demand: Demand | None = None  # where a profile is known
    forecast: Forecast | None = None  # where the host's rates are, too
    spill: int | None = None  # as NeuronSizes has it

    def bytes(self, sizes: NeuronSizes) -> dict[str, int]:
        sizes = self._sizes(sizes)
        return {
            "predictor": sizes.predictor_bytes(self.predictor),
            "hot": sum(self.hot) * sizes.stride,
            "cold": self.cold_slots * sizes.slot_bytes,
            "spill": sizes.spill_bytes(self.predictor, min(self.hot), self.cold_slots),
        }

    def places(self, sizes: NeuronSizes) -> int:
        """Neurons beyond the hot ones that a layer can have in memory at a time."""
        return self._sizes(sizes).places(self.predictor, min(self.hot), self.cold_slots)

    def crowded(self, sizes: NeuronSizes) -> bool:
        """Whether the engine skips neurons that the predictor wants read, as they find no place, so more is lost."""
        all_fit = self._sizes(sizes).spill_places(self.predictor) >= sizes.ffn - min(self.hot)
        return not all_fit and self.demand is not None and self.demand.in_use > _FULL * self.places(sizes)

    def with_places(self, sizes: NeuronSizes) -> Placement:
        """With a place for everything that its predictor wants read."""
        return replace(self, spill=self.enough_spill(sizes)) if self.crowded(sizes) else self

    def enough_spill(self, sizes: NeuronSizes) -> int:
        assert self.demand is not None
        return min(sizes.ffn, math.ceil(self.demand.in_use / _FULL))

    def _sizes(self, sizes: NeuronSizes) -> NeuronSizes:
        return replace(sizes.of(self.predictor), spill=self.spill)


def every_neuron(sizes: NeuronSizes, stay: int) -> Demand:
    """Of a token for which all neurons are computed, `stay` of them from memory, where no profile is known."""
    count, missed = float(sizes.neurons), float(sizes.neurons - stay)
    return Demand(count, count, count, missed, missed / reach(sizes).together, missed * sizes.stride, missed / count)
