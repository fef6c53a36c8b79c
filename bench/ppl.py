"""Perplexity of hotset and of llama.cpp on the same GGUF and text, cut into the same chunks.

python -m bench.ppl TEXT [--formats Q8_0 F16 Q4_0 Q4_1] [--chunks 40]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench import peers
from bench.common import hotset, result_path, smollm2_as, store_of, table
from hotset.tools.result import Series, record, write


def compare(gguf: Path, text: Path, chunks: int) -> dict[str, Any]:
    """Both perplexities, and by how much ours is above theirs."""
    theirs, error = peers.perplexity(gguf, text, chunks=chunks)
    ours = hotset("eval", "ppl", str(store_of(gguf)), str(text), "--windows", str(chunks))["perplexity"]
    return {"hotset": ours, "llama.cpp": theirs, "standard_error": error, "difference": ours / theirs - 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="UTF-8 text, such as the raw test set of WikiText-2")
    parser.add_argument("--formats", nargs="+", default=["Q8_0", "F16", "Q4_0", "Q4_1"])
    parser.add_argument("--chunks", type=int, default=40, help="chunks of 512 tokens")
    parser.add_argument("--output", type=Path, help="default: bench/results/ppl-CPU-DATE.json")
    args = parser.parse_args()
    found = {}
    for kind in args.formats:
        found[kind] = compare(smollm2_as(kind), args.text, args.chunks)
        print(f"{kind}: {found[kind]}", flush=True)
    series = [
        Series("perplexity", "", (row[engine],), 0, engine, f"smollm2-{kind.lower()}")
        for kind, row in found.items()
        for engine in ("hotset", "llama.cpp")
    ]
    result = record("ppl", series, peer=peers.version(), text=args.text.name, chunks=args.chunks, comparison=found)
    path = args.output or result_path("ppl", result["host"]["cpu"]["model"])
    write(result, path)
    rows = [
        [kind, f"{row['hotset']:.4f}", f"{row['llama.cpp']:.4f}", f"{row['difference']:+.2%}"]
        for kind, row in found.items()
    ]
    print(f"\n{table(['weights', 'hotset', 'llama.cpp', 'difference'], rows)}\n\nwritten to {path}")


if __name__ == "__main__":
    main()
