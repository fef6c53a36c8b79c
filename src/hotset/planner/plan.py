"""Which neurons of a packed model stay in memory, and what finds the others. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hotset.errors import MemoryBudgetError
from hotset.planner.model_cost import Demand, Forecast, forecast, reach, reads_in_order_win
from hotset.planner.rates import Rates
from hotset.planner.sizes import NeuronSizes, Predictor, knows_gates
from hotset.planner.together import Pairs
from hotset.planner.use import Cold, Finds, NeuronUse, neuron_use, used_by_any

POLICY = "clock"  # as good as LRU on recorded traces, at one store a touch
DEPTH = 64  # reads in flight where the drive's best number is not known
# Without a profile: ReLU's share in models that were made sparse is 0.3, dReLU's 0.1 (arXiv:2406.05955).
ASSUMED_ACTIVE = 0.3
_ABOUT_EQUAL = 0.95
# Of several sequences: slots to those from which on misses fall. What they need together fills so much of the memory
# that the best border is beside the cliff; steps that need more than the mean, and a profile's error, are beyond it.
# What a predictor has missed more often than foretold is wanted more often, too.
_EDGE = 1.1
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


@dataclass(frozen=True, slots=True)
class Host:
    """What speed depends on besides the neurons. rates: None where the host was not probed."""

    threads: int
    resident_bytes: int  # of weights that every token reads, besides the FFNs
    rates: Rates | None = None


def place(
    sizes: NeuronSizes, room: int, predictors: Sequence[Predictor], profiled: Profiled | None, host: Host
) -> Placement:
    """The fastest placement within `room` bytes.

    predictors: those that give what the user asked for, in order of preference where speeds are not known.
    Neurons have equal sizes, so the most frequent ones are the best hot set and need no solver; the border between hot
    and cold is tried at 256 places, because a cold slot follows the text and a hot one does not.
    Raises: MemoryBudgetError if not even one layer's neurons fit.
    """
    fitting = [p for p in predictors if _least(sizes, p) <= room] or ["all"]
    if (short := _least(sizes, fitting[0]) - room) > 0:
        raise MemoryBudgetError(f"the neurons need {short} bytes more than there are; raise the budget")
    found = [_judged(_roomy(sizes, room, p, profiled), sizes, host) for p in fitting]
    found = [f for f in found if not f.crowded(sizes)] or found
    whole = [f for f in found if sum(f.hot) == sizes.neurons]
    exact = not {"low-rank", "sketch"} & set(fitting)
    if any(f.forecast is None for f in found):
        return whole[0] if whole and exact else min(found, key=lambda f: _expected_misses(f, sizes))
    best = max(found, key=_speed)
    # Which exact way finds the zeros makes little difference where nothing is read: always the same, then.
    return whole[0] if whole and exact and _speed(whole[0]) > _ABOUT_EQUAL * _speed(best) else best


def _speed(placement: Placement) -> float:
    return placement.forecast.tokens_per_s if placement.forecast else 0.0


def _least(sizes: NeuronSizes, predictor: Predictor) -> int:
    """Bytes with which it works, none kept: the missing neurons of a layer pass through memory."""
    return sizes.predictor_bytes(predictor) + sizes.most_missing(predictor, 0) * sizes.of(predictor).stride


def _expected_misses(placement: Placement, sizes: NeuronSizes) -> float:
    """Missed neurons per token, guessed where there is no profile. Gates that are read count by their bytes."""
    own = sizes.of(placement.predictor)
    gates = sizes.in_order_bytes(placement.predictor) / own.stride
    if placement.demand is not None:
        return placement.demand.missed + gates
    return (sizes.neurons - sum(placement.hot) - placement.cold_slots) * ASSUMED_ACTIVE + gates


def _roomy(sizes: NeuronSizes, room: int, predictor: Predictor, profiled: Profiled | None) -> Placement:
    """With a place for everything that the predictor wants read, if that can be."""
    usual = found = _placed(sizes.of(predictor), room, predictor, profiled)
    use: NeuronUse | None = None
    while profiled and found.crowded(sizes):  # each time with more places and thus fewer neurons that stay
        sizes, use = replace(sizes, spill=found.enough_spill(sizes)), use or profiled.use(predictor)
        if _least(sizes, predictor) > room:
            return usual
        found = _placed(sizes.of(predictor), room, predictor, profiled, use)
    return found


def _placed(
    sizes: NeuronSizes, room: int, predictor: Predictor, profiled: Profiled | None, use: NeuronUse | None = None
) -> Placement:
    """sizes: those beside the predictor. use: of what it chooses, if it is at hand."""
    left = room - sizes.predictor_bytes(predictor)
    nothing = np.zeros(sizes.layers, np.int64)
    if predictor == "all":  # every token uses every neuron, so a cache would be overwritten before it hits
        return _expected(Placement(predictor, _grown(nothing, sizes, predictor, left), 0), sizes, profiled)
    if predictor == "read-gate":  # a pass over all neurons needs the gates of hot ones, which are not in memory
        slots = min(left // sizes.slot_bytes, sizes.neurons)
        slots = slots if slots >= sizes.ffn else 0  # else what a layer misses passes through memory
        return _expected(Placement(predictor, (0,) * sizes.layers, slots), sizes, profiled)
    if left >= sizes.neurons * sizes.stride:
        return _expected(Placement(predictor, (sizes.ffn,) * sizes.layers, 0), sizes, profiled)
    if profiled is None:
        slots = left // sizes.slot_bytes
        if slots < ASSUMED_ACTIVE * sizes.neurons:  # the cliff, see below: any fixed part hits more
            return Placement(predictor, _grown(nothing, sizes, predictor, left), 0)
        return Placement(predictor, (0,) * sizes.layers, min(slots, sizes.neurons))
    use = use or profiled.use(predictor)
    more = max(1.0, use.repeats) if profiled.parallel > 1 else 1.0
    edge = _EDGE * more if profiled.parallel > 1 else 1.0

    def missed(split: tuple[int, int]) -> float:
        beyond = split[1] < edge * use.least_slots(split[0])
        return more * use.wanted(split[0]) if beyond else use.cold(*split).missed

    border, slots = min(_splits(use, sizes, predictor, left), key=missed)
    hot = tuple(use.hot[border].tolist())
    if slots < edge * use.least_slots(border):  # the cliff
        hot, slots = _grown(use.hot[border], sizes, predictor, left), 0
    return _expected(Placement(predictor, hot, slots, spill=sizes.spill), sizes, profiled, use)


def _expected(
    placement: Placement, sizes: NeuronSizes, profiled: Profiled | None, use: NeuronUse | None = None
) -> Placement:
    """With what a token needs, as far as that is known."""
    if placement.predictor == "all":
        hot = sum(placement.hot)
        stay = hot if placement.cold_slots < sizes.neurons - hot else sizes.neurons
        return replace(placement, demand=profiled.every(sizes, stay) if profiled else every_neuron(sizes, stay))
    if profiled is None:
        return placement
    return replace(placement, demand=profiled.demand(placement, sizes, use))


def every_neuron(sizes: NeuronSizes, stay: int) -> Demand:
    """Of a token for which all neurons are computed, `stay` of them from memory, where no profile is known."""
    count, missed = float(sizes.neurons), float(sizes.neurons - stay)
    return Demand(count, count, count, missed, missed / reach(sizes).together, missed * sizes.stride, missed / count)


def _splits(use: NeuronUse, sizes: NeuronSizes, predictor: Predictor, left: int) -> Iterator[tuple[int, int]]:
    """(border, cold slots) of every hot set that fits, with slots for all that the layers at work can miss."""
    for border, hot in enumerate(use.hot):
        slots = (left - int(hot.sum()) * sizes.stride) // sizes.slot_bytes
        if border > 0 and slots < sizes.most_missing(predictor, int(hot.min())):
            return
        yield border, min(slots, sizes.neurons - int(hot.sum()))


def _grown(hot: NDArray[np.int64], sizes: NeuronSizes, predictor: Predictor, left: int) -> tuple[int, ...]:
    """The hot sets with as many more neurons of each layer as fit without cold slots."""
    if left >= sizes.neurons * sizes.stride:
        return (sizes.ffn,) * sizes.layers
    spare = left - int(hot.sum()) * sizes.stride - sizes.spill_bytes(predictor, int(hot.min()), 0)
    # One of each layer, and as long as all of them may spill one less of those at work.
    spilled = sizes.layers_at_work(predictor) if sizes.spill_places(predictor) == sizes.ffn else 0
    more = max(0, spare) // (max(1, sizes.layers - spilled) * sizes.stride)
    return tuple(int(n) for n in np.minimum(hot + more, sizes.ffn))


def judged(placement: Placement, sizes: NeuronSizes, profiled: Profiled | None, host: Host) -> Placement:
    """A placement that somebody chose, with what is to be expected of it."""
    unknown = replace(placement, demand=None, forecast=None)
    return _judged(_expected(unknown, sizes.of(placement.predictor), profiled), sizes, host)


def _judged(placement: Placement, sizes: NeuronSizes, host: Host) -> Placement:
    """With its speed, where that is known."""
    if placement.demand is None or host.rates is None:
        return placement
    own = sizes.of(placement.predictor)
    found = forecast(own, placement.predictor, placement.demand, host.resident_bytes, host.rates, host.threads)
    return replace(placement, forecast=found)


def remarks(placement: Placement, sizes: NeuronSizes, profiled: Profiled | None, host: Host) -> Iterator[str]:
    """What a user should know about a placement."""
    cold = sizes.neurons - sum(placement.hot)
    if not cold:
        return
    if profiled is None and placement.predictor != "all":
        yield "no profile: which neurons are hot is not known; `hotset profile` finds out, then pack the store again"
    if placement.predictor == "all":
        yield "nothing tells which neurons are zero, so each token reads all that are not in memory"
    if host.rates is None:
        yield "this host was not probed, so no speed is predicted; `hotset probe` measures it"
    elif placement.demand and reads_in_order_win(sizes.of(placement.predictor), host.rates, placement.demand, cold):
        yield "so many neurons are missing for each token that reading whole layers in order would be faster"
