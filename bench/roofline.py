"""Rates of the kernels beside what this host can do at most: a table, and a roofline plot for the docs.

    python -m bench.roofline [--build FOLDER] [--seconds S]

Runs bench_kernels and bench_neurons, writes bench/results/kernels-<host>-<date>.json and docs/explanation/roofline.svg.
The roof is memory bandwidth measured in the same run, and the int8 rate of a loop that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.common import ROOT, commit, result_path, warn_if_busy
from bench.common import table as markdown
from bench.peak import int8_peak
from hotset.tools.result import record, write

PLOT = ROOT / "docs/explanation/roofline.svg"
_LINE = re.compile(r"^(\S+)\s+(\S+)\s+(cache|dram)\s+n=(\d+)\s+([\d.]+) GB/s\s+([\d.]+) GMAC/s")


@dataclass(frozen=True, slots=True)
class Rate:
    """One kernel on some rows of activations: bytes of weights and multiply-adds a second."""

    kernel: str
    where: str  # cache or dram
    threads: int
    rows: int
    bytes_per_s: float
    macs_per_s: float


def matrices(program: Path, isa: str, seconds: float) -> list[Rate]:
    """Rates of the matrix products on one thread."""
    command = [program, "--isa", isa, "--seconds", str(seconds), "--kernel", "matmul_q", "--dram-mib", "512"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [
        Rate(m[2], m[3], 1, int(m[4]), float(m[5]) * 1e9, float(m[6]) * 1e9)
        for m in map(_LINE.match, text.splitlines())
        if m
    ]


def neurons(program: Path, fmt: str, seconds: float) -> tuple[str, list[Rate]]:
    """ISA, and the rates on lists of single neurons for one thread and two."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [program, "--format", fmt, "--seconds", str(seconds), "--json", out.name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found = json.loads(Path(out.name).read_text())
    named = {"dot": f"dot_neurons_{fmt}", "sum": f"sum_neurons_{fmt}", "gather": f"gather_{fmt}"}
    lines = [{**line, "kernel": named.get(line["kernel"], line["kernel"])} for line in found["lines"]]
    return found["isa"], [Rate(**line) for line in lines]


def table(rates: list[Rate], bandwidth: dict[int, float], peak: float) -> str:
    """GB/s and GMAC/s, with shares of what the threads could reach."""
    header = ["kernel", "where", "threads", "rows", "GB/s", "of memory", "GMAC/s", "of int8 peak"]
    rows = []
    for r in rates:
        share = f"{r.bytes_per_s / bandwidth[r.threads]:.0%}" if r.where == "dram" else ""
        gmacs = [f"{r.macs_per_s / 1e9:.0f}", f"{r.macs_per_s / (peak * r.threads):.0%}"]
        rows.append([r.kernel, r.where, str(r.threads), str(r.rows), f"{r.bytes_per_s / 1e9:.1f}", share, *gmacs])
    return markdown(header, rows)


def plot(rates: list[Rate], bandwidth: float, peak: float, path: Path) -> None:
    """Multiply-adds a second over those for each byte of weights; one thread, kernels that read memory."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "hotset"  # the same file for the same numbers
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    x = np.geomspace(0.5, 300, 200)
    axes.loglog(x, np.minimum(x * bandwidth, peak) / 1e9, "k-", label="roof: memory, int8")
    shown = [r for r in rates if r.threads == 1 and r.where == "dram" and r.macs_per_s > 0]
    for kernel in sorted({r.kernel for r in shown}):
        points = [(r.macs_per_s / r.bytes_per_s, r.macs_per_s / 1e9) for r in shown if r.kernel == kernel]
        axes.loglog(*zip(*points, strict=True), "o-", markersize=4, linewidth=0.8, label=kernel)
    axes.set_xlabel("multiply-adds per byte of weights")
    axes.set_ylabel("GMAC/s, one thread")
    axes.grid(visible=True, which="both", linewidth=0.2)
    axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.roofline", description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, default=ROOT / "build/dev", help="folder with the benchmarks")
    parser.add_argument("--seconds", type=float, default=0.2, help="of every measurement")
    args = parser.parse_args()
    warn_if_busy()
    isa, rates = neurons(args.build / "bench_neurons", "q4_0", args.seconds)
    rates += neurons(args.build / "bench_neurons", "q8_0", args.seconds)[1]
    rates += matrices(args.build / "bench_kernels", isa, args.seconds)
    peak = int8_peak(args.build)
    if not peak:
        raise SystemExit(f"roofline: the int8 peak of {isa} is not known; bench_kernels has one for avx512vnni")
    bandwidth = {r.threads: r.bytes_per_s for r in rates if r.kernel == "memory"}
    rates = [r for r in rates if r.kernel != "memory"]
    found = {"memory_bytes_per_s": bandwidth, "int8_macs_per_s": peak, "rates": [asdict(r) for r in rates]}
    result = record("kernels", [], isa=isa, commit=commit(), **found)
    write(result, result_path("kernels", result["host"]["cpu"]["model"]))
    plot(rates, bandwidth[1], peak, PLOT)
    print(table(rates, bandwidth, peak))


if __name__ == "__main__":
    main()
