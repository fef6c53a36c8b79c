"""Speed of exact decoding whose tokens a predictor drafts and one pass over all neurons verifies. Pure functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from hotset.planner.model_cost import Bound, Demand, Forecast
from hotset.planner.placement import Placement, Profiled, every_neuron
from hotset.planner.plan import Host, place
from hotset.planner.rates import Rates
from hotset.planner.sizes import PIECE_NEURONS, NeuronSizes

_MOST = 64  # drafts of a round, as hotset.engine.draft_length
_PIECE_BYTES = 1 << 20  # of one read, kReadBytes of layer_stream.cc
# Share of drafted tokens that hold, by the share of their neurons that are not in memory.
Acceptance = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Pass:
    """What verifying takes: seconds of the drive and the memory once, of the cores for each row, at the best rates."""

    drive_s: float
    memory_s: float
    row_s: float
    drive_bytes: float
    memory_bytes: float
    once_s: float  # of the cores in fact, besides what each row takes
    rates: Rates
    threads: int

    def seconds(self, rows: float) -> float:
        """Layers are read ahead of the compute."""
        return self.rates.in_order_seconds(self.drive_bytes, self.once_s + rows * self.row_s, self.threads)

    def shared(self, sequences: int) -> Pass:
        """The part of each sequence, of a pass that verifies the drafts of several."""
        alone = ("drive_s", "memory_s", "drive_bytes", "memory_bytes", "once_s")
        return replace(self, **{name: getattr(self, name) / sequences for name in alone})


def verification(sizes: NeuronSizes, hot: int, demand: Demand, resident_bytes: int, rates: Rates, threads: int) -> Pass:
    """Of a model with so many neurons in memory; the others are read in file order.

    demand: of a token for which every neuron is computed. resident_bytes: weights besides the FFNs that every pass
    reads.
    """
    read = (sizes.neurons - hot) * sizes.stride
    first = demand.candidates * sizes.vector_bytes  # gates, or ups where there are none
    later = (demand.tried * sizes.gated + demand.active) * sizes.vector_bytes
    macs = (first + later + resident_bytes) * sizes.hidden / sizes.vector_bytes
    return Pass(
        drive_s=read / rates.seq_bytes_per_s,
        memory_s=max(first + resident_bytes - rates.cache_bytes, 0) / rates.memory_rate(threads),
        row_s=macs / rates.gmac_rate(threads) / 1e9,
        drive_bytes=read,
        memory_bytes=first + resident_bytes,
        once_s=sizes.layers * rates.layer_seconds(threads)
        + resident_bytes / rates.weight_rate(threads)
        + (first + later) / rates.neuron_rate(threads)
        + read / rates.check_rate(threads),
        rates=rates,
        threads=threads,
    )


def most_pass_reads(sizes: NeuronSizes, hot: int) -> int:
    """Most reads of a pass: of each piece, the first and the last of a layer cut short."""
    pieces = -(-(sizes.neurons - hot) // PIECE_NEURONS) + sizes.layers
    return pieces * -(-PIECE_NEURONS * sizes.stride // _PIECE_BYTES)


def with_drafts(draft: Forecast, verify: Pass, acceptance: float) -> Forecast:
    """Of a token, at the best number of drafts a round. draft: of one drafted token."""
    found = [of_rounds(draft, verify, drafts, _expected(acceptance, drafts)) for drafts in range(1, _MOST + 1)]
    return max(found, key=lambda f: f.tokens_per_s)


def _expected(acceptance: float, drafts: int) -> float:
    """Tokens of a round: the drafts that hold, and one that the pass gives (arXiv:2211.17192, equation 1)."""
    return (1 - acceptance ** (drafts + 1)) / (1 - acceptance)


def of_rounds(draft: Forecast, verify: Pass, drafts: float, tokens: float) -> Forecast:
    """Of a token, where a round has so many drafts and gives so many tokens in the mean."""
    needs: dict[Bound, float] = {
        "drive": (drafts * draft.drive_s + verify.drive_s) / tokens,
        "memory": (drafts * draft.memory_s + verify.memory_s) / tokens,
        "compute": (drafts * draft.compute_s + (drafts + 1) * verify.row_s) / tokens,
    }
    return Forecast(
        tokens_per_s=tokens / (drafts / draft.tokens_per_s + verify.seconds(drafts + 1)),
        bound=max(needs, key=lambda name: needs[name]),
        drive_s=needs["drive"],
        memory_s=needs["memory"],
        compute_s=needs["compute"],
        drive_bytes=(drafts * draft.drive_bytes + verify.drive_bytes) / tokens,
        memory_bytes=(drafts * draft.memory_bytes + verify.memory_bytes) / tokens,
        reads=drafts * draft.reads / tokens,
        hit_rate=draft.hit_rate,
    )


def drafted(
    sizes: NeuronSizes, room: int, profiled: Profiled | None, host: Host, acceptance: Acceptance
) -> Placement | None:
    """The best placement whose low-rank predictor drafts; None if it does not fit."""
    found = place(sizes, room, ["low-rank"], profiled, host)
    return as_draft(found, sizes, profiled, host, acceptance) if found.predictor == "low-rank" else None


def as_draft(
    placement: Placement,
    sizes: NeuronSizes,
    profiled: Profiled | None,
    host: Host,
    acceptance: Acceptance,
) -> Placement:
    """The same placement, judged already, where what it predicts is verified."""
    if placement.demand is None or placement.forecast is None or host.rates is None:
        return placement
    hot = sum(placement.hot)
    every = replace(profiled, parallel=1).every(sizes, hot) if profiled else every_neuron(sizes, hot)
    verify = verification(sizes, hot, every, host.resident_bytes, host.rates, host.threads)
    shared = verify.shared(placement.demand.parallel)
    drafted = with_drafts(placement.forecast, shared, acceptance(placement.demand.absent))
    return replace(placement, forecast=drafted)
