"""Decode at long contexts and of several sequences at once, on one store: `python -m bench.decode STORE`.

Both are ratios within one process: rate at a depth over the rate at the first depth, and total rate of a batch over
that of one sequence. Contexts are filled with random tokens first, which takes most of the time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from bench.common import result_path
from hotset.llm import LLM
from hotset.tools.result import Series, record, write

SHORT = 256  # context of the batches


def step(llm: LLM, seqs: list[int], tokens: int, want: int) -> float:
    """Appends random tokens to every sequence; returns seconds."""
    ids = np.random.default_rng(0).integers(0, llm.config.vocab, tokens * len(seqs), dtype=np.int32)
    counts, wants = np.full(len(seqs), tokens, np.int32), np.full(len(seqs), want, np.uint8)
    started = time.perf_counter()
    llm.core.step(np.array(seqs, np.int32), counts, ids, wants)
    return time.perf_counter() - started


def at_depths(llm: LLM, depths: list[int], repeats: int) -> dict[int, tuple[float, ...]]:
    """Tokens/s of one sequence that already holds so many tokens; depths in turn, as a host's speed drifts."""
    seq = llm.core.sequence_new()
    while (held := llm.core.sequence_length(seq)) < max(depths):
        step(llm, [seq], min(llm.max_step_tokens, max(depths) - held), 0)
    seqs = {depth: llm.core.sequence_fork(seq) for depth in depths}
    for depth, fork in seqs.items():
        llm.core.sequence_truncate(fork, depth)
    rounds = [{depth: 1 / step(llm, [fork], 1, 1) for depth, fork in seqs.items()} for _ in range(repeats + 2)]
    for fork in [seq, *seqs.values()]:
        llm.core.sequence_free(fork)
    return {depth: tuple(rates[depth] for rates in rounds[2:]) for depth in depths}


def in_batches(llm: LLM, sizes: list[int], repeats: int) -> dict[int, tuple[float, ...]]:
    """Tokens/s of all sequences together, one token each a step."""
    rates = {}
    for size in sizes:
        seqs = [llm.core.sequence_new() for _ in range(size)]
        rates[size] = tuple(size / step(llm, seqs, 1, 1) for _ in range(repeats + 2))[2:]
        for seq in seqs:
            llm.core.sequence_free(seq)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kv", nargs="*", default=["f16", "int8"], choices=["f16", "int8"], help="for --depths")
    parser.add_argument("--depths", nargs="*", type=int, default=[128, 16384])
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--repeats", type=int, default=16)
    parser.add_argument("--output", type=Path, help="default: bench/results/decode-CPU-DATE.json")
    args = parser.parse_args()
    series, ratios = [], []

    def keep(name: str, found: dict[int, tuple[float, ...]]) -> None:
        first = statistics.median(next(iter(found.values())))
        for n, samples in found.items():
            series.append(Series(f"{name}{n}", "tokens/s", samples, args.threads, model=args.store.name))
            ratios.append({"test": f"{name}{n}", "ratio": statistics.median(samples) / first})
            print(f"{name}{n}: {statistics.median(samples):.2f} tokens/s, {ratios[-1]['ratio']:.2f}", flush=True)

    for kv in args.kv if args.depths else ():
        with LLM(args.store, threads=args.threads, kv=kv, context=max(args.depths) + SHORT * len(args.depths)) as llm:
            keep(f"{kv}-depth", at_depths(llm, args.depths, args.repeats))
    if args.batches:
        with LLM(args.store, threads=args.threads, context=SHORT, kv_tokens=SHORT * max(args.batches)) as llm:
            keep("batch", in_batches(llm, args.batches, args.repeats))
    result = record("decode", series, ratios=ratios, model={"name": args.store.name})
    write(result, args.output or result_path("decode", result["host"]["cpu"]["model"]))


if __name__ == "__main__":
    main()
