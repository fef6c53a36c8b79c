"""What decoding took: speed, neurons hit and missed, the drive's part, and how near it came to what bounds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hotset.engine import Completion, Stats
from hotset.engine.cgroup import peak_memory
from hotset.formats.predictors import read_predictors
from hotset.formats.sketch import read_sketch

if TYPE_CHECKING:
    from hotset.llm import LLM
    from hotset.planner.model_cost import Bound, Forecast
    from hotset.planner.plan_file import Plan
    from hotset.planner.rates import Rates
    from hotset.planner.sizes import NeuronSizes

COUNTERS = ("candidates", "active", "missed", "reads", "bytes_read", "stall_seconds")


@dataclass(frozen=True, slots=True)
class RunStats:
    """Figures of one answer, made by `LLM.run_stats`: of the tokens after its first, which belongs to the prompt.

    Seconds and bytes; hit rate, shares and acceptance are from 0 to 1.
    """

    tokens: int
    tokens_per_s: float
    p50_s: float  # latencies: half of the tokens came within this time, 90 % and 99 % within the next two
    p90_s: float
    p99_s: float
    peak_bytes: int  # most memory so far
    peak_of: str  # "cgroup", page cache included, or "process"
    mode: str = "exact"  # LLM.mode
    predictor: str = ""  # of a packed model, as its plan says
    planned_bytes: int = 0  # what that plan takes in all
    neurons: NeuronStats | None = None  # of a packed model
    drafts: DraftStats | None = None  # where drafts were made

    @property
    def shares(self) -> dict[Bound, float]:
        """Of the time a token took, what drive, memory and cores need at their best; empty if that is not known."""
        if self.neurons is None or (best := self.neurons.bound) is None:
            return {}
        seconds: dict[Bound, float] = {"drive": best.drive_s, "memory": best.memory_s, "compute": best.compute_s}
        return {name: self.tokens_per_s * needed for name, needed in seconds.items()}

    @property
    def reached(self) -> float | None:
        """Share of the speed at which the slowest of these would be busy all the time; None if that is not known."""
        return max(self.shares.values(), default=None)

    def as_json(self) -> dict[str, Any]:
        """All of it by name, with `shares`, `reached`, the rates of hits and misses, and the bound in tokens/s."""
        found = asdict(self) | {"shares": self.shares, "reached": self.reached}
        if (n := self.neurons) is not None:
            found["neurons"] |= {"hit_rate": n.hit_rate, "miss_rate": n.miss_rate}
            if n.bound is not None:
                found["neurons"]["bound"]["bound_tokens_per_s"] = n.bound.bound_tokens_per_s
        return found


@dataclass(frozen=True, slots=True)
class DraftStats:
    """Of one request in all."""

    passes: int  # exact ones, each of which verified a draft
    drafted: int
    accepted: int
    acceptance: float  # share of the drafted tokens
    tokens_per_pass: float


@dataclass(frozen=True, slots=True)
class NeuronStats:
    """Of a token in the mean."""

    candidates: float  # computed at least in part
    active: float
    missed: float
    reads: float  # requests to the drive
    drive_bytes: float  # that these asked for
    stall_s: float  # waiting for the drive with nothing to compute
    bound: Forecast | None  # what these numbers imply on this host; None: it was not probed

    @property
    def hit_rate(self) -> float:
        """Share of the neurons computed that were in memory."""
        return 1 - self.missed / self.candidates if self.candidates else 1.0

    @property
    def miss_rate(self) -> float:
        return 1 - self.hit_rate


def run_stats(llm: LLM, completion: Completion) -> RunStats:
    """Of an answer of `llm` that ran alone."""
    stats = completion.stats
    tokens = max(stats.output_tokens - len(completion.samples), 0)
    peak, peak_of = peak_memory()
    return RunStats(
        tokens=tokens,
        tokens_per_s=stats.decode_rate,
        p50_s=stats.latency(0.5),
        p90_s=stats.latency(0.9),
        p99_s=stats.latency(0.99),
        peak_bytes=peak,
        peak_of=peak_of,
        mode=llm.mode,
        predictor=llm.plan.predictor if llm.plan else "",
        planned_bytes=llm.plan.bytes if llm.plan else 0,
        neurons=_neurons(llm, stats, tokens) if stats.neurons and tokens else None,
        drafts=_drafts(stats) if stats.drafted else None,
    )


def _drafts(stats: Stats) -> DraftStats:
    tokens = (stats.accepted + stats.passes) / stats.passes
    return DraftStats(stats.passes, stats.drafted, stats.accepted, stats.acceptance, tokens)


def _neurons(llm: LLM, stats: Stats, tokens: int) -> NeuronStats:
    each = {name: stats.neurons[name] / tokens for name in COUNTERS}
    return NeuronStats(
        each["candidates"],
        each["active"],
        each["missed"],
        reads=each["reads"],
        drive_bytes=each["bytes_read"],
        stall_s=each["stall_seconds"],
        bound=bound(llm, each, stats),
    )


def bound(llm: LLM, counts: Mapping[str, float], stats: Stats | None = None) -> Forecast | None:
    """What bounds decoding by what was counted; None where the host was not probed.

    counts: COUNTERS, each of a token. stats: of the request, if drafts were made.
    """
    from hotset.tools.plan_host import host_rates
    from hotset.tools.plan_sizes import neuron_sizes, read_per_token

    rates, plan, neurons = host_rates(llm.store), llm.plan, llm.store.neurons
    if rates is None or plan is None or neurons is None:
        return None
    trained = read_predictors(llm.store.path, neurons) if plan.predictor == "low-rank" else None
    sketch = read_sketch(llm.store.path, neurons) if plan.predictor == "sketch" else None
    sizes = neuron_sizes(llm.store, llm.descriptor, trained, sketch, plan.predictor == "read-gate").of(plan.predictor)
    run = _Run(plan, sizes, read_per_token(llm.store, llm.descriptor), rates)
    return run.drafted(counts, stats) if plan.drafts and stats and stats.passes else run.bound(counts)


@dataclass(frozen=True, slots=True)
class _Run:
    """Of what there are counts."""

    plan: Plan
    sizes: NeuronSizes
    resident: int
    rates: Rates

    def bound(self, counts: Mapping[str, float]) -> Forecast:
        """counts: of a token."""
        from hotset.planner.model_cost import Demand, forecast

        # Ups are not counted: those of active neurons were computed for sure.
        candidates, active, missed = counts["candidates"], counts["active"], counts["missed"]
        predictor = self.plan.predictor
        reads = max(counts["reads"] - self.sizes.in_order_reads(predictor), 0)  # the forecast adds what comes in order
        read_bytes = max(counts["bytes_read"] - self.sizes.in_order_bytes(predictor), 0)
        demand = Demand(candidates, active, active, missed, reads, read_bytes)
        return forecast(self.sizes, predictor, demand, self.resident, self.rates, self.plan.threads)

    def drafted(self, counts: Mapping[str, float], stats: Stats) -> Forecast:
        """counts: of a token in all; passes count in reads alone."""
        from hotset.planner.drafting import most_pass_reads, of_rounds, verification
        from hotset.planner.model_cost import Demand

        tokens, drafted, hot = stats.output_tokens - stats.samples, max(stats.drafted, 1), sum(self.plan.hot)
        every = Demand(self.sizes.neurons, counts["active"], counts["active"], 0, 0, 0)
        verify = verification(self.sizes, hot, every, self.resident, self.rates, self.plan.threads)
        passes = stats.passes / tokens
        of_drafts = {
            **counts,
            "reads": max(counts["reads"] - passes * most_pass_reads(self.sizes, hot), 0),
            "bytes_read": max(counts["bytes_read"] - passes * verify.drive_bytes, 0),
        }
        draft = self.bound({name: count * tokens / drafted for name, count in of_drafts.items()})
        return of_rounds(draft, verify, stats.drafted / stats.passes, tokens / stats.passes)


def lines(stats: RunStats) -> list[str]:
    """The stats for people."""
    where = "of the cgroup, page cache included" if stats.peak_of == "cgroup" else "of the process"
    return [*decode_lines(stats), f"memory   peak {stats.peak_bytes / 2**20:.0f} MiB {where}"]


def short(stats: RunStats) -> str:
    """One line of what matters while talking: slow tokens, drafts, neurons, drive, bound and memory."""
    found = [f"P99 {stats.p99_s * 1e3:.0f} ms"]
    if (n := stats.neurons) is not None:
        found += [stats.mode, f"{n.hit_rate:.1%} in memory", f"{n.reads:.0f} reads of {n.drive_bytes / 1e6:.2f} MB"]
        found.append(f"{n.stall_s * 1e3:.1f} ms waiting a token")
        if n.bound is not None:
            found.append(f"{stats.reached:.0%} of the {n.bound.bound} bound")
    if (d := stats.drafts) is not None:
        found.append(f"{d.acceptance:.0%} of drafts accepted")
    return f"[{', '.join(found)}; peak {stats.peak_bytes / 2**20:.0f} MiB]"


def decode_lines(stats: RunStats) -> list[str]:
    """All but the memory."""
    found = [
        f"decode   {stats.tokens_per_s:.2f} tokens/s over {stats.tokens} tokens; latency P50 {stats.p50_s * 1e3:.1f} ms"
        f", P90 {stats.p90_s * 1e3:.1f} ms, P99 {stats.p99_s * 1e3:.1f} ms",
    ]
    if (d := stats.drafts) is not None:
        found.append(
            f"drafts   {d.accepted} of {d.drafted} tokens accepted ({d.acceptance:.1%}); {d.passes} exact passes, "
            f"{d.tokens_per_pass:.2f} tokens each"
        )
    if stats.neurons is not None:
        found += [f"mode     {stats.mode}; predictor {stats.predictor}", *_neuron_lines(stats, stats.neurons)]
    return found


def _neuron_lines(stats: RunStats, n: NeuronStats) -> list[str]:
    drafted = " in drafts" * (stats.mode == "exact, drafted")  # passes compute all, and count in reads alone
    found = [
        f"neurons  a token{drafted}: {n.candidates:.0f} computed, {n.active:.0f} active, {n.missed:.0f} missed "
        f"({n.hit_rate:.2%} in memory)",
        f"drive    a token: {n.reads:.0f} reads, {n.drive_bytes / 1e6:.2f} MB, {n.stall_s * 1e3:.2f} ms waiting",
    ]
    if n.bound is None:
        return [*found, "bound    not known: this host was not probed; run `hotset probe`"]
    shares = {name: f"{share:.0%}" for name, share in stats.shares.items()}
    return [
        *found,
        f"bound    {n.bound.bound}: at most {n.bound.bound_tokens_per_s:.1f} tokens/s, reached {shares[n.bound.bound]} "
        f"(drive {n.bound.drive_s * 1e3:.2f} ms, {shares['drive']}; memory {n.bound.memory_s * 1e3:.2f} ms for "
        f"{n.bound.memory_bytes / 1e6:.1f} MB, {shares['memory']}; compute {n.bound.compute_s * 1e3:.2f} ms, "
        f"{shares['compute']})",
    ]
