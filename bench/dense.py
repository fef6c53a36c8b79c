"""hotset and llama.cpp on the same weights, in turn, on this host: `make bench-dense`.

Every round runs both engines as fresh processes, one after the other, in an order that alternates; each process warms
up and measures prefill 512 and decode 128 once. The ratio of a test is the median over rounds of hotset / llama.cpp
within the round, so that a host whose speed drifts favours neither.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import peers
from bench.common import ROOT, hotset, random_7b, result_path, smollm2_as, store_of, table, warn_if_busy
from bench.peak import int8_peak, macs_per_token
from hotset.tools.result import Series, record, write

PREFILL, DECODE = 512, 128
TESTS = (f"prefill{PREFILL}", f"decode{DECODE}")
ENGINES = ("hotset", "llama.cpp")
Sample = dict[str, float]  # test -> tokens/s


@dataclass
class Case:
    """One model with one number of threads."""

    model: str
    store: Path
    gguf: Path
    threads: int
    samples: dict[str, list[Sample]] = field(default_factory=lambda: {engine: [] for engine in ENGINES})

    def run(self, engine: str) -> None:
        measure: Callable[[], Sample] = {"hotset": self._hotset, "llama.cpp": self._llama}[engine]
        self.samples[engine].append(measure())

    def _hotset(self) -> Sample:
        sizes = ["--prefill", str(PREFILL), "--decode", str(DECODE), "--repeats", "1", "--no-bandwidth"]
        result = hotset("bench", str(self.store), "--threads", str(self.threads), *sizes)
        return {entry["test"]: entry["median"] for entry in result["series"] if entry["test"] in TESTS}

    def _llama(self) -> Sample:
        rates = peers.bench(self.gguf, threads=self.threads, prompt=PREFILL, generate=DECODE)
        return {f"prefill{r.prompt}" if r.prompt else f"decode{r.generated}": r.samples[0] for r in rates}

    def ratio(self, test: str) -> float:
        pairs = zip(self.samples["hotset"], self.samples["llama.cpp"], strict=True)
        return statistics.median(ours[test] / theirs[test] for ours, theirs in pairs)

    def series(self) -> list[Series]:
        return [
            Series(test, "tokens/s", tuple(sample[test] for sample in samples), self.threads, engine, self.model)
            for engine, samples in self.samples.items()
            for test in TESTS
        ]


def cases(models: list[str], threads: list[int]) -> list[Case]:
    """`models`: smollm2-q4_0, smollm2-q8_0, 7b-q4_0."""
    found = []
    for model in models:
        if model == "7b-q4_0":
            store, gguf = random_7b()
        else:
            gguf = smollm2_as(model.removeprefix("smollm2-").upper())
            store = store_of(gguf)
        found += [Case(model, store, gguf, count) for count in threads]
    return found


def compare(case: Case, rounds: int) -> None:
    for index in range(rounds):
        for engine in ENGINES if index % 2 == 0 else ENGINES[::-1]:
            case.run(engine)
        shown = ", ".join(
            f"{test} {case.samples['hotset'][-1][test] / case.samples['llama.cpp'][-1][test]:.2f}" for test in TESTS
        )
        print(f"{case.model}, {case.threads} thread(s), round {index + 1}: hotset / llama.cpp {shown}", flush=True)


def ratios(found: list[Case]) -> list[dict[str, Any]]:
    return [
        {"model": case.model, "threads": case.threads, "test": test, "ratio": case.ratio(test)}
        for case in found
        for test in TESTS
    ]


def shares_of_int8(found: list[Case], build: Path) -> list[dict[str, Any]]:
    """How near prompts come to the peak of the int8 units, measured now."""
    peaks = {count: int8_peak(build, count) for count in {case.threads for case in found}}
    rows = []
    for case in found:
        if peak := peaks[case.threads]:
            macs, rate = macs_per_token(case.store), _median(case, "hotset", TESTS[0])
            row = {"model": case.model, "threads": case.threads, "test": TESTS[0], "macs_per_token": macs}
            rows.append(row | {"int8_macs_per_s": peak, "share": rate * macs / peak})
    return rows


def show(found: list[Case], bounds: list[dict[str, Any]]) -> str:
    shares = {(b["model"], b["threads"], b["test"]): f"{b['share']:.0%}" for b in bounds}
    rows = [
        [
            case.model,
            str(case.threads),
            test,
            *(f"{_median(case, engine, test):.1f}" for engine in ENGINES),
            f"{case.ratio(test):.2f}",
            shares.get((case.model, case.threads, test), ""),
        ]
        for case in found
        for test in TESTS
    ]
    header = ["model", "threads", "test", *(f"{engine}, tokens/s" for engine in ENGINES), "ratio", "of int8 peak"]
    return table(header, rows)


def _median(case: Case, engine: str, test: str) -> float:
    return statistics.median(sample[test] for sample in case.samples[engine])


def share_of_bandwidth(threads: list[int], repeats: int, path: Path) -> None:
    """How near decode of the 7B shape comes to the memory bandwidth measured in the same run."""
    counts = ",".join(map(str, threads))
    store, _ = random_7b()
    sizes = ["--prefill", "0", "--decode", str(DECODE), "--repeats", str(repeats)]
    for bound in hotset("bench", str(store), "--threads", counts, *sizes, "--output", str(path))["bounds"]:
        print(f"7b-q4_0, {bound['threads']} thread(s): decode reaches {bound['share']:.0%} of the memory bandwidth")
    print(f"written to {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["smollm2-q4_0", "smollm2-q8_0", "7b-q4_0"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--build", type=Path, default=ROOT / "build/dev", help="folder with bench_kernels")
    parser.add_argument("--output", type=Path, help="default: bench/results/dense-CPU-DATE.json")
    args = parser.parse_args()
    found = cases(args.models, args.threads)
    warn_if_busy()
    for case in found:
        compare(case, args.rounds)
    series = [entry for case in found for entry in case.series()]
    bounds = shares_of_int8(found, args.build)
    result = record("dense", series, peer=peers.version(), ratios=ratios(found), bounds=bounds)
    path = args.output or result_path("dense", result["host"]["cpu"]["model"])
    write(result, path)
    print(f"\n{show(found, bounds)}\n\nwritten to {path}")
    if "7b-q4_0" in args.models:
        stem = path.stem.replace("dense", "bench", 1) if "dense" in path.stem else f"{path.stem}-bench"
        share_of_bandwidth(args.threads, args.rounds, path.with_stem(stem))


if __name__ == "__main__":
    main()
