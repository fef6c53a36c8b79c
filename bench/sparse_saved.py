"""The least memory in which a packed 7B decodes as fast as llama.cpp does with the dense shape all in memory.

    python -m bench.sparse_saved [--store DIR] [--gguf FILE] [--rounds 3]

llama.cpp runs without a limit: that is the speed to reach. It then holds the mapped file and a copy of the weights in
another order, and can do without the former: what memory is saved from is the least limit under which it keeps its
speed. Then, for each allowed loss, the least budget of a grid whose median over the rounds is as fast, by bisection.
Every run is a fresh process in a control group whose limit counts page cache, started with the page cache dropped. Root
alone can run it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import cgroup, peers
from bench.common import MODELS, ROOT, commit, result_path, warn_if_busy
from bench.sparse import LOSSES, UNIT, Bench, say
from bench.sparse_summary import PEER, Found, Run, summary
from hotset.tools.result import Series, record, write

BUDGETS = (1.6, 3.2, 0.05)  # GB: least, most, step
PEER_LIMITS = (3.9, 5.1, 0.1)  # GB, of llama.cpp; its weights take 4.1
KEPT = 0.95  # share of its speed that llama.cpp must keep under a limit


@dataclass(frozen=True)
class Saved:
    """At one allowed loss. No budget: none was as fast."""

    loss: str
    budget_gb: float | None
    tokens_per_s: float | None
    peak_bytes: int | None
    saved: float | None  # share of the peer's memory, by the peaks


def grid(least: float, most: float, step: float) -> list[float]:
    return [round(least + i * step, 2) for i in range(round((most - least) / step) + 1)]


def least_enough(budgets: Sequence[float], enough: Callable[[float], bool]) -> float | None:
    """The first of ascending budgets that is enough, if more memory never makes what is enough too little."""
    low, high = 0, len(budgets)
    while low < high:
        middle = (low + high) // 2
        if enough(budgets[middle]):
            high = middle
        else:
            low = middle + 1
    return budgets[low] if low < len(budgets) else None


class Search:
    """Runs as they come; asked again for a budget, it does not measure again."""

    def __init__(self, bench: Bench, rounds: int) -> None:
        self.bench, self.rounds, self.runs = bench, rounds, list[Run]()

    def peers(self) -> tuple[float, int]:
        """Tokens/s to reach and bytes to save from."""
        wanted = self.decode(None, PEER)
        limit = least_enough(grid(*PEER_LIMITS), lambda limit: self.decode(limit, PEER, rounds=1) >= KEPT * wanted)
        return wanted, self.peak(limit, PEER)

    def decode(self, budget: float | None, engine: str, *flags: str, rounds: int = 0) -> float:
        """Median tokens/s of the rounds; 0 where a run failed."""
        for _ in range((rounds or self.rounds) - len(self._same(budget, engine))):
            peer = engine == PEER
            run = self.bench.peer(budget, copied=True) if peer else self.bench.hotset(budget, engine, *flags)
            self.runs.append(say(run))
        return statistics.median(sample for run in self._same(budget, engine) for sample in run.decode or [0.0])

    def peak(self, budget: float | None, engine: str) -> int:
        return max(run.peak_bytes for run in self._same(budget, engine))

    def _same(self, budget: float | None, engine: str) -> list[Run]:
        return [run for run in self.runs if (run.budget_gb, run.engine) == (budget, engine)]

    def saved(self, loss: str, wanted: float, memory: int) -> Saved:
        def decode(budget: float) -> float:
            return self.decode(budget, engine, "--predict", "auto", "--loss", loss)

        engine = f"predicted, loss {loss}"
        found = least_enough(grid(*BUDGETS), lambda budget: decode(budget) >= wanted)
        if found is None:
            return Saved(loss, None, None, None, None)
        peak = self.peak(found, engine)
        return Saved(loss, found, decode(found), peak, 1 - peak / memory)


def measured(args: argparse.Namespace) -> Found:
    flags = {"text": args.text, "tokens": args.tokens, "warm-up": args.warm_up, "seconds": args.decode_seconds}
    child = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    bench = Bench(args.store, None, args.gguf, child, 0, frozenset(), args.peer_tokens, args.seconds)
    search = Search(bench, args.rounds)
    wanted, memory = search.peers()
    rows = [search.saved(loss, wanted, memory) for loss in args.losses.split(",")]
    series = [Series("decode, no limit", "tokens/s", (wanted,), engine=PEER, model=args.gguf.stem)]
    series += [
        Series(f"decode, {row.budget_gb} GB", "tokens/s", (row.tokens_per_s,), engine="hotset", model=args.store.name)
        for row in rows
        if row.tokens_per_s
    ]
    return record(
        "sparse-saved",
        series,
        commit=commit(),
        peer=peers.version(),
        peer_tokens_per_s=wanted,
        peer_bytes=memory,
        budgets_gb=BUDGETS,
        peer_limits_gb=PEER_LIMITS,
        rounds=args.rounds,
        rows=[asdict(row) for row in rows],
        summary=summary(search.runs),
        runs=[asdict(run) for run in search.runs],
    )


def show(result: Found) -> str:
    head = f"llama.cpp: {result['peer_tokens_per_s']:.2f} tokens/s, {result['peer_bytes'] / UNIT:.2f} GB"
    return "\n".join([head, *(_line(row) for row in result["rows"])])


def _line(row: Found) -> str:
    if row["budget_gb"] is None:
        return f"loss {row['loss']}: no budget up to {BUDGETS[1]} GB is as fast"
    return (
        f"loss {row['loss']}: {row['tokens_per_s']:.2f} tokens/s in {row['budget_gb']:.2f} GB, "
        f"peak {row['peak_bytes'] / UNIT:.2f} GB, {row['saved']:.0%} saved"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=MODELS / "sparse-7b-packed")
    parser.add_argument("--gguf", type=Path, default=MODELS / "random-7b.Q4_0.gguf")
    parser.add_argument("--text", type=Path, default=ROOT / "docs/explanation/how-a-token-is-made.md")
    parser.add_argument("--losses", default=",".join(LOSSES), help="that prediction may cost, of perplexity")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=160, help="of hotset to decode, warm-up included")
    parser.add_argument("--warm-up", type=int, default=32, help="of these, tokens that do not count")
    parser.add_argument("--peer-tokens", type=int, default=32)
    parser.add_argument("--decode-seconds", type=float, default=60)
    parser.add_argument("--seconds", type=float, default=900, help="of one process at most")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    warn_if_busy()
    try:
        result = measured(args)
    except cgroup.CgroupError as error:
        sys.exit(f"bench.sparse_saved: {error}")
    path = args.output or result_path("sparse-saved", result["host"]["cpu"]["model"])
    write(result, path)
    print(f"{show(result)}\nwritten to {path}")


if __name__ == "__main__":
    main()
