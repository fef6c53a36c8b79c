"""Tables from the newest result of every kind in bench/results, into README.md between its markers: `make report`.

--print writes them to standard output instead.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.common import RESULTS, ROOT, table

START = "<!-- results: written by `make report` from bench/results -->"
END = "<!-- end of results -->"
Result = dict[str, Any]


def newest() -> dict[str, Result]:
    """The last result of each kind."""
    found: dict[str, Result] = {}
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        if result["date"] >= found.get(result["what"], {"date": ""})["date"]:
            found[result["what"]] = result | {"file": path.relative_to(ROOT).as_posix()}
    return found


def dense(result: Result) -> str:
    medians = {(s["model"], s["threads"], s["test"], s["engine"]): s["median"] for s in result["series"]}
    rows = [
        [
            r["model"],
            str(r["threads"]),
            r["test"],
            *(_rate(medians, r, e) for e in ("hotset", "llama.cpp")),
            f"{r['ratio']:.2f}",
        ]
        for r in result["ratios"]
    ]
    return table(["model", "threads", "test", "hotset, tokens/s", "llama.cpp, tokens/s", "ratio"], rows)


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


SHOW: dict[str, Callable[[Result], str]] = {"dense": dense, "bench": bench, "ppl": ppl, "start": start}


def report() -> Iterator[str]:
    found = newest()
    for what, show in SHOW.items():
        if what in found:
            result = found[what]
            cpu = result["host"]["cpu"]
            where = f"{cpu['model']}, {cpu['cores']} cores, {result['date'][:10]}"
            yield f"{show(result)}\n\n{where}: [all samples]({result['file']})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", help="to standard output, not into README.md")
    args = parser.parse_args()
    text = "\n\n".join(report())
    if args.print:
        print(text)
        return
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition(START)
    readme.write_text(f"{before}{START}\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
