"""How long a token takes: what it needs from drive, memory and cores, and how they overlap. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hotset.planner.rates import Rates
from hotset.planner.sizes import NeuronSizes, Predictor

Bound = Literal["drive", "memory", "compute"]


@dataclass(frozen=True, slots=True)
class Demand:
    """Neurons of an average token, all layers together."""

    candidates: float  # computed at least in part
    active: float  # whose product is not zero
    missed: float  # candidates that have to be read

    @property
    def hit_rate(self) -> float:
        return 1 - self.missed / self.candidates if self.candidates else 1.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """Of one token while decoding one text. A bound is reached if the other two are hidden behind it."""

    tokens_per_s: float
    bound: Bound
    drive_s: float
    memory_s: float
    compute_s: float
    drive_bytes: float
    memory_bytes: float
    reads: float
    hit_rate: float  # of the neurons computed

    @property
    def bound_tokens_per_s(self) -> float:
        return 1 / max(self.drive_s, self.memory_s, self.compute_s)


def forecast(
    sizes: NeuronSizes, predictor: Predictor, demand: Demand, resident_bytes: int, rates: Rates, threads: int
) -> Forecast:
    """Speed of decoding.

    resident_bytes: weights besides the FFNs that every token reads (attention, head).
    Within a layer the reads of missing neurons run while those in memory are computed, as in sparse_ffn.cc; attention
    and prediction come before both, and what was read is computed after. Issuing the reads takes a core's time.
    """
    vectors = _vectors(sizes, predictor, demand)
    missed_share = 1 - demand.hit_rate
    before = resident_bytes + sizes.predictor_bytes(predictor)
    neurons = vectors * sizes.vector_bytes

    def seconds(count: float, rate: float = rates.memory_rate(threads)) -> float:
        """To stream and multiply so many bytes of weights."""
        return max(count / rate, _macs(sizes, count) / rates.gmac_rate(threads) / 1e9)

    bundles = rates.neuron_rate(threads)  # less than memory gives: neurons lie apart, and come in three passes

    drive = demand.missed / rates.reads_per_s(sizes.stride)
    issue = demand.missed * rates.cpu_us_per_read * 1e-6
    total = (
        seconds(before)
        + max(drive, issue + seconds(neurons * (1 - missed_share), bundles))
        + seconds(neurons * missed_share, bundles)
    )
    moved = before + neurons
    needs: dict[Bound, float] = {
        "drive": drive,
        "memory": moved / rates.memory_rate(threads),
        "compute": _macs(sizes, moved) / rates.gmac_rate(threads) / 1e9 + issue / threads,
    }
    return Forecast(
        tokens_per_s=1 / total,
        bound=max(needs, key=lambda name: needs[name]),
        drive_s=needs["drive"],
        memory_s=needs["memory"],
        compute_s=needs["compute"],
        drive_bytes=demand.missed * sizes.stride,
        memory_bytes=moved,
        reads=demand.missed,
        hit_rate=demand.hit_rate,
    )


def _vectors(sizes: NeuronSizes, predictor: Predictor, demand: Demand) -> float:
    """Weight vectors touched: up of every candidate, or where a gate decides of those above zero; down of the active.

    Where nothing predicts, or a low-rank map does, the gates of candidates are computed from their bundles, too.
    """
    if not sizes.gated:
        return demand.candidates + demand.active
    if predictor == "gate":
        return demand.candidates + demand.active
    return demand.candidates + 2 * demand.active


def _macs(sizes: NeuronSizes, weight_bytes: float) -> float:
    """Multiply-adds of weights in the format of the neurons."""
    return weight_bytes * sizes.hidden / sizes.vector_bytes


def reads_in_order_win(sizes: NeuronSizes, rates: Rates, missed_share: float) -> bool:
    """Whether reading all neurons of a layer in order beats reading its missing ones one by one.

    missed_share: of all neurons of a layer that are not hot. They break even at the ratio of the two rates in bytes/s;
    padding is read either way.
    """
    return missed_share > rates.reads_per_s(sizes.stride) * sizes.stride / rates.seq_bytes_per_s
