"""The few figures that say how fast hotset is beside llama.cpp, of the newest results: README.md's table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.common import table
from bench.sparse_summary import PEER

Result = dict[str, Any]
_DENSE = (  # model, test, what it is called
    ("7b-q4_0", "decode128", "dense 7B, Q4_0: decode"),
    ("7b-q4_0", "prefill512", "dense 7B, Q4_0: prompt of 512"),
    ("smollm2-q4_0", "decode128", "SmolLM2-135M, Q4_0: decode"),
    ("smollm2-q8_0", "decode128", "SmolLM2-135M, Q8_0: decode"),
)
_SPARSE = (  # mode, what it is called
    ("predicted, loss 4%", "predicted within 4 %"),
    ("exact", "exact"),
)
_THREADS = 2


def headline(found: dict[str, Result]) -> str:
    """A table in Markdown; found: results by kind, as of bench.report.newest()."""
    rows = [*_dense(found.get("dense")), *_sparse(found.get("sparse"))]
    return table(["tokens/s, 2 threads", "llama.cpp", "hotset", "ratio"], rows)


def _dense(result: Result | None) -> Iterator[list[str]]:
    if result is None:
        return
    medians = {(s["model"], s["test"], s["engine"]): s["median"] for s in result["series"] if s["threads"] == _THREADS}
    ratios = {(r["model"], r["test"]): r["ratio"] for r in result["ratios"] if r["threads"] == _THREADS}
    for model, test, name in _DENSE:
        if (model, test) in ratios:
            peer, ours = medians[model, test, PEER], medians[model, test, "hotset"]
            yield [name, f"{peer:.1f}", f"{ours:.1f}", f"{ratios[model, test]:.2f}"]


def _sparse(result: Result | None) -> Iterator[list[str]]:
    if result is None:
        return
    found = {(r["budget_gb"], r["engine"]): r for r in result["summary"]}
    budgets = sorted({budget for budget, _ in found if budget is not None}, reverse=True)
    for budget in (None, *budgets):
        for engine, mode in _SPARSE:
            row, peer = found.get((budget, engine)), found.get((budget, PEER))
            if row and peer and row["decode"]:
                where = "all in memory" if budget is None else f"{budget:.1f} GB in all"
                yield [f"sparse 7B, {where}: {mode}", f"{peer['decode']:.2f}", f"{row['decode']:.1f}",
                       f"{row['decode_ratio']:.1f}"]  # fmt: skip
