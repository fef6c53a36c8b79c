"""Speed of exact decoding whose tokens a predictor drafts and one pass over all neurons verifies. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hotset.planner.model_cost import Bound, Forecast
from hotset.planner.plan import Host, Placement, Profiled, place
from hotset.planner.rates import Rates
from hotset.planner.sizes import NeuronSizes

# Of greedy drafts while nothing is measured: predictors are trained for a change of perplexity well below a percent.
ASSUMED_ACCEPTANCE = 0.9
_MOST = 64  # drafts of a round, as hotset.engine.draft_length


@dataclass(frozen=True, slots=True)
class Pass:
    """What verifying takes: seconds of the drive and the memory once, of the cores for each row."""

    drive_s: float
    memory_s: float
    row_s: float
    drive_bytes: float
    memory_bytes: float

    def seconds(self, rows: float) -> float:
        """Layers are read ahead of the compute, so the slowest part is all that shows."""
        return max(self.drive_s, self.memory_s, rows * self.row_s)


def verification(sizes: NeuronSizes, hot: int, resident_bytes: int, rates: Rates, threads: int) -> Pass:
    """Of a model with so many neurons in memory; the others are read in file order.

    resident_bytes: weights besides the FFNs that every pass reads.
    """
    read = (sizes.neurons - hot) * sizes.stride
    vectors = sizes.neurons * (3 if sizes.gated else 2)
    weights = vectors * sizes.vector_bytes + resident_bytes
    macs = weights * sizes.hidden / sizes.vector_bytes
    return Pass(
        drive_s=read / rates.seq_bytes_per_s,
        memory_s=(weights + read) / rates.memory_rate(threads),
        row_s=macs / rates.gmac_rate(threads) / 1e9,
        drive_bytes=read,
        memory_bytes=weights + read,
    )


def with_drafts(draft: Forecast, verify: Pass, acceptance: float = ASSUMED_ACCEPTANCE) -> Forecast:
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


def or_drafted(
    placement: Placement, sizes: NeuronSizes, room: int, profiled: Profiled | None, host: Host, *, chosen: bool
) -> Placement:
    """The faster of an exact placement and the best one whose low-rank predictor drafts.

    chosen: the user chose the placement. If its predictor is a low-rank one, that drafts.
    """
    if placement.predictor == "low-rank":
        return _as_draft(placement, sizes, host)
    if chosen or sum(placement.hot) == sizes.neurons:  # nothing is read: a pass takes longer than the token it gives
        return placement
    drafted = _as_draft(place(sizes, room, ["low-rank"], profiled, host), sizes, host)
    if drafted.predictor != "low-rank":  # it does not fit
        return placement
    # Where nothing was measured: one pass over the model shared by many tokens, against one for each.
    if placement.forecast is None or drafted.forecast is None:
        return drafted
    return drafted if drafted.forecast.tokens_per_s > placement.forecast.tokens_per_s else placement


def _as_draft(placement: Placement, sizes: NeuronSizes, host: Host) -> Placement:
    """The same placement where what it predicts is verified."""
    if placement.forecast is None or host.rates is None:
        return placement
    verify = verification(sizes, sum(placement.hot), host.resident_bytes, host.rates, host.threads)
    return replace(placement, forecast=with_drafts(placement.forecast, verify))
