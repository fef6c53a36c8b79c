"""Tables from the newest result of every kind in bench/results: `make report`.

All of them go into docs/reference/results.md, the few that matter most into README.md, between its markers. --print
writes them to standard output instead.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.common import RESULTS, ROOT, table
from bench.headline import headline
from bench.sparse_summary import LADDER, PEER

if TYPE_CHECKING:
    from matplotlib.figure import Figure

START = "<!-- results: written by `make report` from bench/results -->"
END = "<!-- end of results -->"
PAGE = ROOT / "docs/reference/results.md"
ABOUT = """# Results

Written by `make report`: the newest result of every kind in `bench/results/`, where every sample lies, with host and
command. Each ratio is of one run, in which both engines took turns; machines differ from table to table.
"""
PLANNED_WITHIN = 0.15  # of the measured speed: a plan that is good enough
Result = dict[str, Any]


def newest() -> dict[str, Result]:
    """The last result of each kind; of comparisons with a peer, the last of each model."""
    results = [
        json.loads(path.read_text()) | {"file": path.relative_to(ROOT).as_posix()} for path in RESULTS.glob("*.json")
    ]
    dated = [result for result in results if "date" in result]  # a baseline is no result
    found: dict[str, Result] = {}
    for result in sorted(dated, key=lambda r: str(r["date"])):
        for row in result.get("ratios", []):
            row["of"] = where(result)
        old = found.get(result["what"])
        if old and "peer" in result and "ratios" in result:
            models = {row["model"] for row in result["ratios"]}
            for rows in ("ratios", "series", "bounds"):
                kept = [row for row in old.get(rows, []) if row["model"] not in models]
                result[rows] = kept + result.get(rows, [])
        found[result["what"]] = result
    return found


def where(result: Result) -> str:
    """Of which machine and day a result is."""
    cpu = result["host"]["cpu"]
    return f"{cpu['model']}, {cpu['cores']} cores, {result['date'][:10]}: [all samples]({result['file']})"


def dense(result: Result) -> str:
    medians = {(s["model"], s["threads"], s["test"], s["engine"]): s["median"] for s in result["series"]}
    shares = {(b["model"], b["threads"], b["test"]): f"{b['share']:.0%}" for b in result.get("bounds", [])}
    rows = [
        [
            r["model"],
            str(r["threads"]),
            r["test"],
            *(_rate(medians, r, e) for e in ("hotset", "llama.cpp")),
            f"{r['ratio']:.2f}",
            shares.get((r["model"], r["threads"], r["test"]), ""),
        ]
        for r in result["ratios"]
    ]
    header = ["model", "threads", "test", "hotset, tokens/s", "llama.cpp, tokens/s", "ratio", "of int8 peak"]
    return table(header, rows)


def decode(result: Result) -> str:
    medians = {s["test"]: s["median"] for s in result["series"]}
    rows = [[r["test"], f"{medians[r['test']]:.1f}", f"{r['ratio']:.2f}"] for r in result["ratios"]]
    return table([f"decode, {result['model']['name']}", "tokens/s", "of the first"], rows)


def _rate(medians: dict[tuple[str, int, str, str], float], row: Result, engine: str) -> str:
    return f"{medians[row['model'], row['threads'], row['test'], engine]:.1f}"


def ppl(result: Result) -> str:
    rows = [
        [name, f"{row['hotset']:.4f}", f"{row['llama.cpp']:.4f}", f"{row['difference']:+.2%}"]
        for name, row in result["comparison"].items()
    ]
    head = f"perplexity of SmolLM2-135M-Instruct, {result['chunks']} x 512 tokens of {result['text']}"
    return table([head, "hotset", "llama.cpp", "difference"], rows)


def start(result: Result) -> str:
    rows = [
        ["start to first token, whole process, store in page cache", f"{result['series'][0]['median']:.2f} s"],
        ["memory above weights and KV cache", f"{result['memory']['above_bytes'] / 2**20:.0f} MiB"],
    ]
    return table([f"`hotset run`, {result['series'][0]['model']}", "median"], rows)


def bench(result: Result) -> str:
    rows = [
        [str(b["threads"]), f"{b['tokens_per_s']:.2f}", f"{b['bytes_per_token'] / 1e9:.2f} GB",
         f"{b['bandwidth_bytes_per_s'] / 1e9:.1f} GB/s", f"{b['share']:.0%}"]
        for b in result["bounds"]
    ]  # fmt: skip
    head = f"threads ({Path(result['model']['name']).name})"
    return table([head, "decode, tokens/s", "moved per token", "memory bandwidth, measured", "share reached"], rows)


_MODES = ("exact", "predicted")
_LEFT_OUT = ("exact, no drafts",)  # of the tables; the JSON has them
_WORKLOAD = "[synthetic 7B](docs/explanation/synthetic-workload.md)"


def sparse(result: Result, model: str = _WORKLOAD) -> str:
    rows = result["summary"]
    compared = sorted((r for r in rows if r["engine"].startswith(_MODES) and r["decode"]), key=_by_budget)
    peer = {r["budget_gb"]: r["decode"] for r in rows if r["engine"] == PEER}
    cells = [
        [_budget(r), r["engine"], _two(peer.get(r["budget_gb"])), _two(r["decode"]), _two(r["decode_ratio"]),
         _two(r["planned_tokens_per_s"]), f"{_share(r['missed_share'])}, {_share(r['missed_share_p99'])}",
         _quality(r), f"{r['p99_over_mean']:.2f}", _share(r["bound_share"]), _two(r["prefill"]),
         f"{r['peak_bytes'] / 1e9:.2f} GB"]
        for r in compared
        if r["engine"] not in _LEFT_OUT
    ]  # fmt: skip
    head = [f"memory in all, {model}", "mode", "llama.cpp, tokens/s", "hotset, tokens/s", "ratio", "planned, tokens/s",
            "missed neurons, mean and P99", "recall at over-prediction; divergence", "P99 / mean latency",
            "share of bound", "prefill, tokens/s", "peak memory"]  # fmt: skip
    plot = f"![tokens/s over memory]({Path(result['file']).with_suffix('.svg').as_posix()})"
    return "\n\n".join([table(head, cells), *_ladder(rows), *_beside_window(rows), _plans(compared), plot])


def harder(result: Result) -> str:
    return sparse(result, "[harder synthetic 7B](docs/explanation/synthetic-workload.md)")


def _quality(row: Result) -> str:
    """Of what was decoded, beside what every neuron gives."""
    if row.get("recall") is None:
        return "exact" if row["engine"].startswith("exact") else "–"
    return f"{row['recall']:.1%} at {row['over_prediction']:.1f}x; {row['divergence']:.3f} nats"


def _by_budget(row: Result) -> float:
    return -math.inf if row["budget_gb"] is None else -float(row["budget_gb"])


def _ladder(rows: list[Result]) -> Iterator[str]:
    """A table of the steps of our own engine under the first budget, if there are any."""
    first = rows[0]["budget_gb"]
    found = {r["engine"]: r["decode"] for r in rows if r["budget_gb"] == first or r["engine"] in LADDER}
    steps = [step for step in LADDER if found.get(step)]
    if len(steps) > 1:
        steps += [r["engine"] for r in rows if r["engine"].startswith("predicted")][:1]
        cells = [[step, _two(found[step])] for step in steps]
        yield table([f"step, {first} GB (`all kept`: no limit)", "decode, tokens/s"], cells)


def _beside_window(rows: list[Result]) -> Iterator[str]:
    for row in rows:
        if row["engine"].startswith("predicted") and row.get("window_ratio"):
            yield (
                f"{row['engine']}, {_budget(row)}: {row['window_ratio']:.2f} times LLM in a Flash's policy in the same "
                "engine (`window`: bundles, all of one loss of perplexity, reads waited for)."
            )


def _plans(rows: list[Result]) -> str:
    """How far the plans' forecasts were from what was measured."""
    off = [(abs(r["planned_tokens_per_s"] / r["decode"] - 1), r) for r in rows if r["planned_tokens_per_s"]]
    within = sum(share <= PLANNED_WITHIN for share, _ in off)
    worst, row = max(off, key=lambda pair: pair[0])
    return (
        f"Plans: {within} of {len(off)} within {PLANNED_WITHIN:.0%} of what was measured; the worst, {row['engine']} "
        f"in {_budget(row)}, is off by {worst:.0%}."
    )


def saved(result: Result) -> str:
    rows = [
        [row["loss"], _two(row["tokens_per_s"]), *_memory(row), f"{result['peer_tokens_per_s']:.2f}",
         f"{result['peer_bytes'] / 1e9:.2f} GB", _share(row["saved"])]
        for row in result["rows"]
    ]  # fmt: skip
    head = ["least memory that is as fast as llama.cpp all in memory, allowed loss", "hotset, tokens/s", "budget",
            "peak memory", "llama.cpp, tokens/s", "its peak memory", "saved"]  # fmt: skip
    return table(head, rows)


def _memory(row: Result) -> list[str]:
    if row["budget_gb"] is None:
        return ["none is", "–"]
    return [f"{row['budget_gb']:.2f} GB", f"{row['peak_bytes'] / 1e9:.2f} GB"]


def _budget(row: Result) -> str:
    return "no limit" if row["budget_gb"] is None else f"{row['budget_gb']:.1f} GB"


def _two(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def plot_sparse(result: Result) -> None:
    """Tokens/s over memory, every engine and policy, beside the result as .svg."""
    from matplotlib.figure import Figure  # of hotset[plot]; the tables need none of it

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    points: dict[str, list[tuple[float, float]]] = {}
    for row in result["summary"]:
        if row["decode"] and row["budget_gb"] is not None and row["engine"] not in _LEFT_OUT:
            points.setdefault(row["engine"], []).append((row["budget_gb"], row["decode"]))
    for engine, values in points.items():
        axes.plot(*zip(*sorted(values), strict=True), marker="o", label=engine)
    axes.set(xlabel="memory in all, page cache included (GB)", ylabel="decode (tokens/s)", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")
    _save(figure, result)


def plot_budget(result: Result) -> None:
    """Peak memory and tokens/s over the budget, beside the result as .svg."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    runs = sorted(result["runs"], key=lambda run: int(run["budget_bytes"]))
    budgets = [run["budget_bytes"] / 2**20 for run in runs]
    above.plot(budgets, budgets, color="gray", linestyle="--", label="budget")
    above.plot(budgets, [run["peak_bytes"] / 2**20 for run in runs], marker="o", label="peak, page cache included")
    above.set(ylabel="memory (MiB)", ylim=(0, None))
    above.legend(fontsize="small")
    below.plot(budgets, [run["tokens_per_s"] for run in runs], marker="o")
    below.set(xlabel="budget (MiB)", ylabel="decode (tokens/s)", ylim=(0, None))
    for axes in (above, below):
        axes.grid(alpha=0.3)
    _save(figure, result)


def _save(figure: Figure, result: Result) -> None:
    """Beside the result; the same figures give the same bytes."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": result["what"]}):
        figure.savefig((ROOT / result["file"]).with_suffix(".svg"), metadata={"Date": None})


PLOTS: dict[str, Callable[[Result], None]] = {
    "sparse": plot_sparse,
    "sparse-hard": plot_sparse,
    "budget": plot_budget,
}
SHOW: dict[str, Callable[[Result], str]] = {
    "dense": dense,
    "bench": bench,
    "decode": decode,
    "sparse": sparse,
    "sparse-hard": harder,
    "sparse-saved": saved,
    "ppl": ppl,
    "start": start,
}


def report() -> Iterator[str]:
    found = newest()
    for what, show in SHOW.items():
        if what in found:
            result = found[what]
            files = dict.fromkeys([where(result), *(row["of"] for row in result.get("ratios", []))])
            yield f"{show(result)}\n\n" + "; older rows: ".join(files)


def as_page(text: str) -> str:
    """The tables with their links as seen from PAGE."""
    return f"{ABOUT}\n{text}\n".replace("](bench/", "](../../bench/").replace("](docs/", "](../")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", help="to standard output, not into files")
    args = parser.parse_args()
    text, found = "\n\n".join(report()), newest()
    if args.print:
        print(text)
        return
    for what in PLOTS.keys() & found.keys():
        PLOTS[what](found[what])
    PAGE.write_text(as_page(text))
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition(START)
    readme.write_text(f"{before}{START}\n{headline(found)}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
