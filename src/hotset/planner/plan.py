"""Which neurons of a packed model stay in memory, and what finds the others. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hotset.errors import MemoryBudgetError
from hotset.planner.model_cost import forecast, reads_in_order_win
from hotset.planner.placement import Placement, Profiled, every_neuron
from hotset.planner.rates import Rates
from hotset.planner.sizes import NeuronSizes, Predictor
from hotset.planner.use import NeuronUse

POLICY = "clock"  # as good as LRU on recorded traces, at one store a touch
DEPTH = 64  # reads in flight where the drive's best number is not known
# Without a profile: ReLU's share in models that were made sparse is 0.3, dReLU's 0.1 (arXiv:2406.05955).
ASSUMED_ACTIVE = 0.3
_ABOUT_EQUAL = 0.95
# Of several sequences: slots to those from which on misses fall. What they need together fills so much of the memory
# that the best border is beside the cliff; steps that need more than the mean, and a profile's error, are beyond it.
# What a predictor has missed more often than foretold is wanted more often, too.
_EDGE = 1.1


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

    predictors: those that give what the user asked for, in order of preference where speeds are not known; "all" takes
        their place if none fits.
    Neurons have equal sizes, so the most frequent ones are the best hot set and need no solver; the border between hot
    and cold is tried at 256 places, because a cold slot follows the text and a hot one does not.
    Raises: MemoryBudgetError if not even one layer's neurons fit.
    """
    fitting = [p for p in predictors if least_bytes(sizes, p) <= room] or ["all"]
    if (short := least_bytes(sizes, fitting[0]) - room) > 0:
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


def least_bytes(sizes: NeuronSizes, predictor: Predictor) -> int:
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
        if least_bytes(sizes, predictor) > room:
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
