"""How long a token takes: what it needs from drive, memory and cores, and how they overlap. Pure functions.

Two things are told apart. The bound is what the drive's requests, the bytes from memory and the arithmetic take at the
best rates that were measured, each alone: no overlap beats the longest. The forecast is how fast the engine is: its own
rates for matrices and for scattered neurons, checksums, and reads that hide behind computing only in part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hotset.planner.rates import Rates
from hotset.planner.read_sizes import ReadSizes
from hotset.planner.sizes import NeuronSizes, Predictor, knows_gates
from hotset.planner.use import Reach

Bound = Literal["drive", "memory", "compute"]
_CHOOSE_S = 3e-9  # of one thread, to look at the score of a neuron


@dataclass(frozen=True, slots=True)
class Demand:
    """Neurons of an average step, all layers together: of one token, or of one token of each of several sequences."""

    candidates: float  # computed at least in part
    tried: float  # whose gate is not zero, so that up is computed, too; if that is not known, as many as are active
    active: float  # whose product is not zero
    missed: float  # candidates that have to be read
    requests: float  # that the drive gets for these: near ones are one
    read_bytes: float  # that these ask for, with what lies between
    absent: float = 0.0  # share of those worth computing that are not in memory, whether they are read or left out
    in_use: float = 0.0  # that a layer reads or has in cold slots, most of all layers
    parallel: int = 1  # sequences
    users: float = 1.0  # tokens of the step that need an up or a down, of those that any needs

    @property
    def hit_rate(self) -> float:
        return 1 - self.missed / self.candidates if self.candidates else 1.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """Of one token while decoding one text, or its share of a step of several; seconds are those of the bound."""

    tokens_per_s: float  # of all sequences together
    bound: Bound
    drive_s: float
    memory_s: float
    compute_s: float
    drive_bytes: float
    memory_bytes: float
    reads: float  # requests
    hit_rate: float  # of the neurons computed

    @property
    def bound_tokens_per_s(self) -> float:
        return 1 / max(self.drive_s, self.memory_s, self.compute_s)


def reach(sizes: NeuronSizes) -> Reach:
    """Of the reads of missing neurons."""
    return ReadSizes(sizes.merged_bytes, sizes.gap_bytes).reach(sizes.spaced)


def forecast(
    sizes: NeuronSizes, predictor: Predictor, demand: Demand, resident_bytes: int, rates: Rates, threads: int
) -> Forecast:
    """Speed of decoding, and its bound.

    resident_bytes: weights besides the FFNs that every token reads (attention, head).
    """
    before, tokens = resident_bytes + sizes.predictor_reads(predictor), demand.parallel
    moved = before + _vectors(sizes, predictor, demand) * sizes.vector_bytes
    multiplied = before * tokens + _products(sizes, predictor, demand) * sizes.vector_bytes
    in_order = sizes.in_order_bytes(predictor)
    ordered_s = in_order / rates.seq_bytes_per_s
    needs: dict[Bound, float] = {
        "drive": (rates.least_drive_seconds(demand.requests, demand.read_bytes, sizes.stride) + ordered_s) / tokens,
        "memory": max(moved - rates.cache_bytes, 0) / rates.memory_rate(threads) / tokens,
        "compute": _macs(sizes, multiplied) / rates.gmac_rate(threads) / 1e9 / tokens,
    }
    seconds = _seconds(sizes, predictor, demand, before, rates, threads) / tokens
    return Forecast(
        tokens_per_s=1 / max(seconds, *needs.values()),
        bound=max(needs, key=lambda name: needs[name]),
        drive_s=needs["drive"],
        memory_s=needs["memory"],
        compute_s=needs["compute"],
        drive_bytes=(demand.read_bytes + in_order) / tokens,
        memory_bytes=moved / tokens,
        reads=(demand.requests + sizes.in_order_reads(predictor)) / tokens,
        hit_rate=demand.hit_rate,
    )


def _seconds(
    sizes: NeuronSizes, predictor: Predictor, demand: Demand, before: float, rates: Rates, threads: int
) -> float:
    """Of a step, as sparse_step.cc takes it.

    A predictor that looks ahead, and gates that stream by, have the drive read for what follows while everything else
    is done. Otherwise a layer is attended and predicted first, then missing neurons are read while gate and up of those
    in memory and of those that have come are computed, at last down. Neither of two times that overlap hides wholly
    behind the other if they are alike: a queue runs dry when the cores are late, cores wait at the end of a layer. The
    root of the sum of squares is within 8 % of what was measured from 0.2 to 13 times as long for the drive as for the
    cores (docs/decisions/log.md).
    """
    neurons = _vectors(sizes, predictor, demand) * sizes.vector_bytes
    down = demand.active * sizes.vector_bytes
    cached = min(rates.cache_bytes / (before + neurons), 1.0)
    products = _products(sizes, predictor, demand) * sizes.vector_bytes

    def seconds(count: float, multiplied: float, rate: float) -> float:
        """multiplied: bytes, each as often as a token needs it."""
        return max(count * (1 - cached) / rate, _macs(sizes, multiplied) / rates.gmac_rate(threads) / 1e9)

    drive = rates.drive_seconds(demand.requests, demand.read_bytes)
    issue = rates.read_cpu_s(demand.requests, demand.read_bytes) / threads
    choose = 0 if predictor == "all" else _CHOOSE_S * sizes.neurons
    first = seconds(before, before * demand.parallel, rates.weight_rate(threads)) + choose
    first += sizes.layers * rates.layer_seconds(threads)
    bundles, each = rates.neuron_rate(threads), rates.vector_seconds(threads) / sizes.vector_bytes
    check = demand.missed * sizes.stride / rates.check_rate(threads)
    inside = seconds(neurons - down, products - down * demand.users, bundles) + (neurons - down) * each + check + issue
    after = seconds(down, down * demand.users, bundles) + down * each
    if in_order := sizes.in_order_bytes(predictor):
        work = first + inside + after + in_order / rates.check_rate(threads)
        return math.hypot(drive + in_order / rates.busy_rate(threads), work)
    if sizes.layers_at_work(predictor) > 1:
        return math.hypot(drive, first + inside + after)
    return first + math.hypot(drive, inside) + after


def _vectors(sizes: NeuronSizes, predictor: Predictor, demand: Demand) -> float:
    """Weight vectors touched: gates of the candidates unless they are a predictor's, ups of those tried, downs."""
    if not sizes.gated:
        return demand.candidates + demand.active
    gates = 0 if knows_gates(predictor) else demand.candidates
    return gates + demand.tried + demand.active


def _products(sizes: NeuronSizes, predictor: Predictor, demand: Demand) -> float:
    """Of a vector with a token: gates (ups where there are none) with all tokens, others as each needs them."""
    later = demand.active + demand.tried * sizes.gated
    return (_vectors(sizes, predictor, demand) - later) * demand.parallel + later * demand.users


def _macs(sizes: NeuronSizes, weight_bytes: float) -> float:
    """Multiply-adds of weights in the format of the neurons."""
    return weight_bytes * sizes.hidden / sizes.vector_bytes


def reads_in_order_win(sizes: NeuronSizes, rates: Rates, demand: Demand, cold: float) -> bool:
    """Whether reading all `cold` neurons of a token in order beats reading its missing ones."""
    return rates.drive_seconds(demand.requests, demand.read_bytes) > cold * sizes.stride / rates.seq_bytes_per_s
