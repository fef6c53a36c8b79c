"""How sure models are of the next token: python -m bench.confidence STORE... --text FILE

Drafts and losses by prediction depend on it, so a synthetic model has to be as sure as a real one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from bench.common import commit, result_path
from bench.sparse_quality import step
from hotset import LLM
from hotset.errors import InputError
from hotset.tools.result import Series, record, write

_ROWS = 16  # of a step
NEAR = 0.2  # nats between the likeliest token and the next one


def confidence(llm: LLM, tokens: list[int]) -> dict[str, tuple[float, ...]]:
    """After each token: probability of the likeliest one, entropy in nats, 1 if the next one is within NEAR."""
    found: dict[str, list[float]] = {"probability of the likeliest": [], "entropy": [], f"two within {NEAR} nats": []}
    seq = llm.core.sequence_new()
    for at in range(0, len(tokens), _ROWS):
        step(llm.core, seq, tokens[at : at + _ROWS])
        for logits in llm.core.logits().astype(np.float64):
            logs = logits - np.logaddexp.reduce(logits)
            second, first = np.partition(logs, -2)[-2:]
            values = (np.exp(first), -(np.exp(logs) @ logs), first - second < NEAR)
            for samples, value in zip(found.values(), values, strict=True):
                samples.append(float(value))
    llm.core.sequence_free(seq)
    return {name: tuple(samples) for name, samples in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", type=Path, nargs="+", metavar="STORE")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=512)
    args = parser.parse_args()
    text, series = args.text.read_text(encoding="utf-8")[: 12 * args.tokens], list[Series]()
    for store in args.stores:
        with LLM(store, context=args.tokens) as llm:
            tokens = llm.tokenize(text)[: args.tokens]
            if len(tokens) < args.tokens:
                raise InputError(f"{args.text} has {len(tokens)} tokens; wanted {args.tokens}: give a longer text")
            for name, samples in confidence(llm, tokens).items():
                series.append(Series(name, "mean", samples, model=store.name))
                print(f"{store.name}: {name} {np.mean(samples):.3f}")
    result = record("confidence", series, commit=commit(), text=args.text.name, tokens=args.tokens)
    result["means"] = {f"{s.model}, {s.test}": float(np.mean(s.samples)) for s in series}
    write(result, path := result_path("confidence", result["host"]["cpu"]["model"]))
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
