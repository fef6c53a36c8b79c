"""What the runs of bench/sparse.py come to: medians, ratios, latencies, neurons, share of the bound, plans."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

PEER = "llama.cpp"
# LLM in a Flash (arXiv:2312.11514) in our engine: what the last tokens used is kept, as many tokens as fit; what a
# low-rank map of the layer's own input asks for beyond that is read in bundles and waited for, then all is computed.
WINDOW = "window"
OVERLAPPED = f"{WINDOW}, overlapped"  # the same, but what is in memory is computed while the reads run
LADDER = ("nothing predicted", "nothing kept", "hot prefix", WINDOW, OVERLAPPED, "lru", "clock", "lfu", "all kept")
_PER_TOKEN = ("seconds", "candidates", "active", "missed", "reads", "bytes_read", "stall_seconds")
Found = dict[str, Any]


@dataclass
class Run:
    """One process. error: why it gave no rates, if it did not."""

    engine: str
    budget_gb: float | None  # None: no limit
    command: str
    peak_bytes: int
    killed: bool  # by the kernel, for want of memory
    error: str = ""
    decode: list[float] = field(default_factory=list)  # tokens/s, one sample for each repetition
    prefill: list[float] = field(default_factory=list)
    details: Found = field(default_factory=dict)


def summary(runs: Sequence[Run]) -> list[Found]:
    """Medians of every engine at every budget, and its ratios to the peer, and to WINDOW, in the same rounds."""
    groups: dict[tuple[float | None, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.budget_gb, run.engine), []).append(run)
    found = []
    for (budget, engine), same in groups.items():
        row = _summed(same, groups.get((budget, PEER), []))
        if engine not in (PEER, WINDOW) and (budget, WINDOW) in groups:
            row["window_ratio"] = _ratio(same, groups[budget, WINDOW], "decode")
        found.append(row)
    return found


def _ratio(ours: Sequence[Run], theirs: Sequence[Run], test: str) -> float | None:
    """Median over rounds."""
    pairs = [(getattr(a, test), getattr(b, test)) for a, b in zip(ours, theirs, strict=False)]
    ratios = [statistics.median(a) / statistics.median(b) for a, b in pairs if a and b]
    return statistics.median(ratios) if ratios else None


def _summed(same: Sequence[Run], theirs: Sequence[Run]) -> Found:
    found: Found = {
        "budget_gb": same[0].budget_gb,
        "engine": same[0].engine,
        "errors": [r.error for r in same if r.error],
    }
    found["peak_bytes"] = max(run.peak_bytes for run in same)
    for test in ("decode", "prefill"):
        samples = [sample for run in same for sample in getattr(run, test)]
        found[test] = statistics.median(samples) if samples else None
        found[f"{test}_ratio"] = _ratio(same, theirs, test)
    details = [run.details for run in same if run.details]
    return found | (_detailed(details) if details else {})


def _detailed(details: Sequence[Found]) -> Found:
    """Of a hotset engine, over all its runs' tokens."""
    tokens = {
        name: [v for d in details for v in d["decode"][name]] for name in details[0]["decode"] if name in _PER_TOKEN
    }
    seconds = sorted(tokens["seconds"])
    mean = statistics.fmean(seconds)
    missed = sorted(m / max(c, 1) for m, c in zip(tokens["missed"], tokens["candidates"], strict=True))
    plan, limits = details[0]["plan"], [d["bound"] for d in details if d["bound"]]
    planned = plan["forecast"]["tokens_per_s"] if plan["forecast"] else None
    return {
        "predictor": plan["predictor"],
        "tokens": len(seconds),
        **{f"p{share}_s": _quantile(seconds, share) for share in (50, 90, 99)},
        "p99_over_mean": _quantile(seconds, 99) / mean,
        **{f"{name}_per_token": statistics.fmean(tokens[name]) for name in _PER_TOKEN if name != "seconds"},
        "missed_share": statistics.fmean(missed),
        "missed_share_p99": _quantile(missed, 99),
        "stall_share": sum(tokens["stall_seconds"]) / sum(seconds),
        "bound": limits[0]["bound"] if limits else None,
        "bound_share": statistics.fmean(1 / mean / b["tokens_per_s"] for b in limits) if limits else None,
        "planned_tokens_per_s": planned,
        "planned_over_measured": planned * mean if planned else None,
        **_drafts([d["drafts"] for d in details if d.get("drafts")]),
        **_quality([d["quality"] for d in details if d.get("quality")]),
    }


def _drafts(runs: Sequence[Found]) -> Found:
    if not runs:
        return {}
    passes, drafted, accepted = (sum(run[name] for run in runs) for name in ("passes", "drafted", "accepted"))
    return {"draft_acceptance": accepted / max(drafted, 1), "tokens_per_pass": (passes + accepted) / max(passes, 1)}


def _quality(runs: Sequence[Found]) -> Found:
    """What prediction changed in the tokens that were decoded, means over runs."""
    names = ("recall", "over_prediction", "divergence", "agreement") if runs else ()
    return {name: statistics.fmean(run[name] for run in runs) for name in names}


def _quantile(ordered: Sequence[float], percent: int) -> float:
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)]
