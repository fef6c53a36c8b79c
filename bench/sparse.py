"""A packed 7B under memory limits, in turn with llama.cpp on the dense shape: `make bench-sparse`. Needs root.

Every run is a fresh process in a control group whose limit counts page cache, started with the page cache dropped.
hotset plans by itself for the limit and decodes real text after a short prompt (bench/sparse_child.py); llama.cpp maps
a Q4_0 GGUF of the same shape (--repack 0 under a limit, as a repacked copy of the weights would be killed). A round
runs every engine once, in an order that alternates; ratios are medians over rounds. The ladder runs steps of our own
engine, from reading everything to the plan, under the first budget. With --window-store the same rounds also run LLM
in a Flash's way of keeping and reading neurons. docs/howto/measure-sparse.md says how to read it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import cgroup, peers
from bench.common import MODELS, ROOT, commit, hotset, result_path, table, warn_if_busy
from bench.sparse_summary import LADDER, OVERLAPPED, PEER, WINDOW, Found, Run, summary
from hotset.formats.predictors import PREDICTORS_FILE
from hotset.formats.sketch import SKETCH_FILE
from hotset.tools.result import Series, record, shown, write

UNIT = 10**9  # budgets are in GB
LOSSES = ("1%", "2%")  # of perplexity, allowed where neurons are predicted
NO_DRAFTS = "exact, no drafts"


@dataclass(frozen=True)
class Bench:
    """What is measured and how long."""

    store: Path
    window_store: Path | None  # the same neurons, predictors as LLM in a Flash has them
    gguf: Path
    child: Sequence[str]  # flags of bench.sparse_child
    prefill: int
    prefill_at: frozenset[float | None]  # budgets; elsewhere only decode is measured
    peer_tokens: int
    seconds: float  # of one process at most
    losses: Sequence[str] = LOSSES

    def hotset(self, budget_gb: float | None, engine: str, *flags: str) -> Run:
        store = self.window_store if engine in (WINDOW, OVERLAPPED) else self.store
        sizes = ["--prefill", str(self._prefill(budget_gb))]
        command = [sys.executable, "-m", "bench.sparse_child", "--store", str(store), *self.child, *sizes, *flags]
        if budget_gb is not None:
            command += ["--memory", str(int(budget_gb * UNIT))]
        found, output = self._run(command, budget_gb, engine)
        if output:
            found.details = details = json.loads(output)
            seconds = details["decode"]["seconds"]
            found.decode = [len(seconds) / sum(seconds)]
            found.prefill = [rate for rate in [details["prefill_tokens_per_s"]] if rate]
        return found

    def peer(self, budget_gb: float | None, *, copied: bool | None = None) -> Run:
        """copied: whether it makes a copy of the weights in another order; None: as it does, but under a limit."""
        sizes = {
            "threads": len(os.sched_getaffinity(0)),
            "prompt": self._prefill(budget_gb),
            "generate": self.peer_tokens,
        }
        command = peers.bench_command(self.gguf, **sizes)
        if not (budget_gb is None if copied is None else copied):
            command += ["--repack", "0"]
        found, output = self._run(command, budget_gb, PEER)
        for rate in peers.rates(output) if output else []:
            (found.prefill if rate.prompt else found.decode).extend(rate.samples)
        return found

    def _prefill(self, budget_gb: float | None) -> int:
        return self.prefill if budget_gb in self.prefill_at else 0

    def _run(self, command: list[str], budget_gb: float | None, engine: str) -> tuple[Run, str]:
        limit = None if budget_gb is None else int(budget_gb * UNIT)
        cgroup.drop_page_cache()
        try:
            done = cgroup.run(command, limit, seconds=self.seconds)
        except subprocess.TimeoutExpired:
            return Run(engine, budget_gb, shown(command), 0, False, f"took more than {self.seconds:.0f} s"), ""
        found = Run(engine, budget_gb, shown(command), done.peak_bytes, done.killed)
        if done.returncode == 0 and not done.killed:
            return found, done.output
        found.error = "killed for want of memory" if done.killed else done.errors.strip()[-400:]
        return found, ""


def predicts(store: Path) -> bool:
    """Whether anything tells what a neuron will contribute."""
    return any((store / name).exists() for name in (PREDICTORS_FILE, SKETCH_FILE))


def modes(bench: Bench, *, first: bool) -> dict[str, list[str]]:
    """Flags of each engine of ours. first: with what is measured under the first budget alone."""
    drafted = ["--predict", "exact", "--follow", "greedy"]
    found = {"exact": drafted}
    if not predicts(bench.store):
        return found
    if first:
        found[NO_DRAFTS] = [*drafted, "--no-draft"]
    for loss in bench.losses:
        found[f"predicted, loss {loss}"] = ["--predict", "auto", "--loss", loss]
    if first and bench.window_store:
        found[WINDOW] = ["--step", WINDOW, "--predict", "auto", "--loss", bench.losses[0], "--prefill", "0"]
    return found


def compare(bench: Bench, budgets: Sequence[float | None], rounds: int) -> Iterator[Run]:
    """hotset exact and predicted, and the peer, in turn."""
    for index in range(rounds):
        for budget in budgets:
            ours = modes(bench, first=budget == budgets[0])
            for engine in [*ours, PEER] if index % 2 == 0 else [PEER, *ours]:
                if engine == PEER:
                    yield bench.peer(budget)
                else:
                    yield bench.hotset(budget, engine, *ours[engine])


def ladder(bench: Bench, budget_gb: float) -> Iterator[Run]:
    """The steps in our own engine under one budget, predicted if the store can be; "all kept" without a limit."""
    flags = ["--predict", "auto", "--loss", bench.losses[0]] if predicts(bench.store) else []
    for step in LADDER:
        if step == WINDOW or (step == OVERLAPPED and not bench.window_store):  # the former was compared already
            continue
        limit = None if step == "all kept" else budget_gb
        yield bench.hotset(limit, step, "--step", step, "--prefill", "0", *flags)


def series(runs: Sequence[Run], bench: Bench) -> list[Series]:
    groups: dict[tuple[str, str, str], list[float]] = {}
    for run in runs:
        where = "no limit" if run.budget_gb is None else f"{run.budget_gb} GB"
        model = bench.gguf.stem if run.engine == PEER else bench.store.name
        for test, samples in (("decode", run.decode), (f"prefill{bench.prefill}", run.prefill)):
            groups.setdefault((f"{test}, {where}", run.engine, model), []).extend(samples)
    threads = len(os.sched_getaffinity(0))
    return [
        Series(test, "tokens/s", tuple(samples), threads, engine, model)
        for (test, engine, model), samples in groups.items()
        if samples
    ]


def say(run: Run) -> Run:
    where = "no limit" if run.budget_gb is None else f"{run.budget_gb} GB"
    rates = [
        f"{name} {statistics.median(r):.2f} tokens/s"
        for name, r in (("decode", run.decode), ("prefill", run.prefill))
        if r
    ]
    print(f"{where}, {run.engine}: {run.error or ', '.join(rates)}; peak {run.peak_bytes / UNIT:.2f} GB", flush=True)
    return run


def show(rows: Sequence[Found]) -> str:
    shown = [
        [_cell(row, name) for name in ("budget_gb", "engine", "decode", "decode_ratio", "prefill")] for row in rows
    ]
    return table(["GB", "engine", "decode, tokens/s", f"ratio to {PEER}", "prefill, tokens/s"], shown)


def _cell(row: Found, name: str) -> str:
    value = row[name]
    return value if isinstance(value, str) else "–" if value is None else f"{value:.2f}"


def readahead_kb(path: Path) -> int | None:
    """Of the drive that a file lies on: what lets a mapped file be read at the drive's speed."""
    number = path.stat().st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    queues = [folder / "queue/read_ahead_kb" for folder in (device, device.parent)]  # a partition's drive has it
    return next((int(queue.read_text()) for queue in queues if queue.exists()), None)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=MODELS / "sparse-7b-packed", help="packed; `hotset pack`")
    parser.add_argument("--window-store", type=Path, help="the same by bench.window_store, to compare with")
    parser.add_argument("--gguf", type=Path, default=MODELS / "random-7b.Q4_0.gguf", help="dense, of the same shape")
    parser.add_argument("--text", type=Path, default=ROOT / "docs/explanation/how-a-token-is-made.md", help="to decode")
    parser.add_argument("--budgets", default="3.0,3.6,2.4,2.0,1.6", help="GB in all, with commas between")
    parser.add_argument("--losses", default=",".join(LOSSES), help="that predicted modes may cost, of perplexity")
    parser.add_argument("--no-limit", action="store_true", help="also with all in memory")
    parser.add_argument("--no-ladder", action="store_true", help="leave out the steps of our own engine")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=160, help="of hotset to decode, warm-up included")
    parser.add_argument("--warm-up", type=int, default=32, help="of these, tokens that do not count")
    parser.add_argument(
        "--peer-tokens", type=int, default=8, help="of llama.cpp to decode; each takes more than a second"
    )
    parser.add_argument("--prefill", type=int, default=512, help="tokens, at the first budget and without; 0: none")
    parser.add_argument(
        "--follow", choices=("greedy", "text"), default="text", help="which token comes next where no drafts are made"
    )
    parser.add_argument("--decode-seconds", type=float, default=60, help="after which hotset decodes no new token")
    parser.add_argument("--seconds", type=float, default=900, help="of one process at most")
    parser.add_argument("--name", default="sparse", help="of the result: another one for another workload")
    parser.add_argument("--output", type=Path, help="default: bench/results/NAME-CPU-DATE.json")
    return parser.parse_args()


def measured(args: argparse.Namespace) -> Iterator[Found]:
    """The result after the comparison, and again with the ladder, so that stopping early loses little."""
    flags = {"text": args.text, "tokens": args.tokens, "warm-up": args.warm_up}
    flags |= {"follow": args.follow, "seconds": args.decode_seconds}
    child = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    budgets: list[float | None] = [float(budget) for budget in args.budgets.split(",")]
    longer = frozenset({budgets[0], None})
    bench = Bench(
        args.store,
        args.window_store,
        args.gguf,
        child,
        args.prefill,
        longer,
        args.peer_tokens,
        args.seconds,
        args.losses.split(","),
    )
    sizes = flags | {"text": args.text.name, "prefill": args.prefill, "peer_tokens": args.peer_tokens}
    rates = hotset("probe", str(args.store), "--refresh")["rates"]
    runs = [say(run) for run in compare(bench, [*budgets, *([None] if args.no_limit else [])], args.rounds)]
    sizes |= {"rounds": args.rounds}
    yield _result(args.name, bench, runs, sizes, rates)
    if not args.no_ladder and budgets[0] is not None:
        runs += [say(run) for run in ladder(bench, budgets[0])]
        yield _result(args.name, bench, runs, sizes, rates)


def _result(name: str, bench: Bench, runs: Sequence[Run], sizes: Found, rates: Found) -> Found:
    return record(
        name,
        series(runs, bench),
        commit=commit(),
        peer=peers.version(),
        page_cache="dropped before each run, counted in each limit",
        read_ahead_kb=readahead_kb(bench.gguf),
        sizes=sizes,
        rates=rates,
        summary=summary(runs),
        runs=[asdict(run) for run in runs],
    )


def main() -> None:
    args = parsed()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: ends the running program, removes its group
    warn_if_busy()
    try:
        for result in measured(args):
            path = args.output or result_path(args.name, result["host"]["cpu"]["model"])
            write(result, path)
            print(f"\n{show(result['summary'])}\n\nwritten to {path}", flush=True)
    except cgroup.CgroupError as error:
        sys.exit(f"bench.sparse: {error}")


if __name__ == "__main__":
    main()
