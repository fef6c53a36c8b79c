"""The least memory in which a packed 7B decodes as fast as llama.cpp does with the dense shape all in memory.

    python -m bench.sparse_saved [--store DIR] [--gguf FILE] [--rounds 3]

llama.cpp runs without a limit, with and without its copy of the weights in another order: the faster sets the speed to
reach, the one that holds less the memory to save from. Then, for each allowed loss, the least budget of a grid whose
median over the rounds is as fast, by bisection; every run is a fresh process in a control group whose limit counts page
cache, started with the page cache dropped. Needs root.
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

LEAST, MOST, STEP = 1.6, 3.2, 0.05  # GB
NOT_COPIED = f"{PEER}, weights not copied"


@dataclass(frozen=True)
class Saved:
    """At one allowed loss. No budget: none up to MOST was as fast."""

    loss: str
    budget_gb: float | None
    tokens_per_s: float | None
    peak_bytes: int | None
    saved: float | None  # share of the peer's memory, by the peaks


def grid() -> list[float]:
    return [round(LEAST + i * STEP, 2) for i in range(round((MOST - LEAST) / STEP) + 1)]


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
        for _ in range(self.rounds):
            for name, copied in ((PEER, True), (NOT_COPIED, False)):
                run = self.bench.peer(None, copied=copied)
                run.engine = name
                self.runs.append(say(run))
        rows = [row for row in summary(self.runs) if row["decode"]]
        return max(row["decode"] for row in rows), min(row["peak_bytes"] for row in rows)

    def decode(self, budget: float, loss: str) -> float:
        """Median tokens/s of the rounds."""
        engine = f"predicted, loss {loss}"
        same = [run for run in self.runs if (run.budget_gb, run.engine) == (budget, engine)]
        for _ in range(self.rounds - len(same)):
            same.append(say(self.bench.hotset(budget, engine, "--predict", "auto", "--loss", loss)))
            self.runs.append(same[-1])
        return statistics.median([sample for run in same for sample in run.decode or [0.0]])

    def saved(self, loss: str, wanted: float, memory: int) -> Saved:
        found = least_enough(grid(), lambda budget: self.decode(budget, loss) >= wanted)
        if found is None:
            return Saved(loss, None, None, None, None)
        engine = f"predicted, loss {loss}"
        peak = max(run.peak_bytes for run in self.runs if (run.budget_gb, run.engine) == (found, engine))
        return Saved(loss, found, self.decode(found, loss), peak, 1 - peak / memory)


def measured(args: argparse.Namespace) -> Found:
    flags = {"text": args.text, "tokens": args.tokens, "warm-up": args.warm_up, "seconds": args.decode_seconds}
    child = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    bench = Bench(args.store, None, args.gguf, child, 0, frozenset(), args.peer_tokens, args.seconds)
    search = Search(bench, args.rounds)
    wanted, memory = search.peers()
    rows = [search.saved(loss, wanted, memory) for loss in LOSSES]
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
        grid_gb=[LEAST, MOST, STEP],
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
        return f"loss {row['loss']}: no budget up to {MOST} GB is as fast"
    return (
        f"loss {row['loss']}: {row['tokens_per_s']:.2f} tokens/s in {row['budget_gb']:.2f} GB, "
        f"peak {row['peak_bytes'] / UNIT:.2f} GB, {row['saved']:.0%} saved"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=MODELS / "sparse-7b-packed")
    parser.add_argument("--gguf", type=Path, default=MODELS / "random-7b.Q4_0.gguf")
    parser.add_argument("--text", type=Path, default=ROOT / "docs/explanation/how-a-token-is-made.md")
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
