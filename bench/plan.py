"""How fast plans say a packed store will be under memory limits, and how fast it is. Needs root.

    python -m bench.plan --store STORE --text FILE [--budgets 1.6,2.0,2.4,3.0,3.6]

For each budget, and without a limit: `hotset probe`, as a host's memory may be half as fast a minute later; then a
fresh process per mode in a control group, with the page cache dropped, decodes after a short prompt and says what its
plan foretold (bench/sparse_child.py). A plan expects
text like that of the profile: `--text` should be such a text, which predicted modes follow token by token. Drafts need
the model's own likeliest tokens. Exits 1 if a forecast is further off than --within, or a bound is beaten.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.common import MODELS, ROOT, commit, hotset, result_path, table, warn_if_busy
from bench.sparse import Bench, say
from bench.sparse_summary import Run
from hotset.tools.result import Series, record, write

MODES = {
    "predicted, loss 1%": ["--predict", "auto", "--loss", "1%", "--follow", "text"],
    "exact": ["--predict", "exact"],
}


def compared(run: Run) -> dict[str, Any]:
    """What the plan said and what came of it, by mode and budget."""
    plan, decode, bound = run.details["plan"], run.details["decode"], run.details["bound"]
    seconds, planned = decode["seconds"], plan["forecast"]
    count = len(seconds)
    measured = count / sum(seconds)
    return {
        "budget_gb": run.budget_gb,
        "mode": run.engine,
        "predictor": plan["predictor"],
        "planned": planned["tokens_per_s"],
        "measured": measured,
        "planned_over_measured": planned["tokens_per_s"] / measured,
        "bound": bound["bound"],
        "bound_share": measured / bound["tokens_per_s"],
        "planned_reads": planned["reads"],
        "reads": sum(decode["reads"]) / count,
        "planned_hit_rate": planned["hit_rate"],
        "hit_rate": 1 - sum(decode["missed"]) / max(sum(decode["candidates"]), 1),
        "tokens": count,
        "drafts": run.details["drafts"],
    }


def show(rows: Sequence[dict[str, Any]]) -> str:
    head = ["GB", "mode", "predictor", "planned", "measured", "planned / measured", "bound", "share of it"]
    lines = [
        [
            "none" if row["budget_gb"] is None else f"{row['budget_gb']:.1f}",
            row["mode"],
            row["predictor"],
            *(f"{row[name]:.2f}" for name in ("planned", "measured", "planned_over_measured")),
            row["bound"],
            f"{row['bound_share']:.0%}",
        ]
        for row in rows
    ]
    return table(head, lines)


def runs(bench: Bench, budgets: Sequence[float | None], modes: Sequence[str]) -> Iterator[Run]:
    """Those that gave rates, with those of the host just before."""
    for budget in budgets:
        rates = hotset("probe", str(bench.store), "--refresh")["rates"]
        for mode in modes:
            run = say(bench.hotset(budget, mode, *MODES[mode]))
            if run.details:
                print(f"  planned {run.details['plan']['forecast']['tokens_per_s']:.2f}", flush=True)
                run.details["rates"] = rates
                yield run


def problems(rows: Sequence[dict[str, Any]], within: float) -> list[str]:
    named = [(f"{row['budget_gb']} GB, {row['mode']}", row) for row in rows]
    return [
        *(
            f"{name}: planned {row['planned_over_measured']:.2f} of what was measured"
            for name, row in named
            if not 1 / (1 + within) <= row["planned_over_measured"] <= 1 + within
        ),
        *(f"{name}: {row['bound_share']:.0%} of its bound" for name, row in named if row["bound_share"] > 1),
    ]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=MODELS / "sparse-7b-packed", help="packed, with a profile")
    parser.add_argument("--text", type=Path, default=ROOT / "docs/explanation/how-a-token-is-made.md")
    parser.add_argument("--budgets", default="1.6,2.0,2.4,3.0,3.6", help="GB in all; everything in memory comes last")
    parser.add_argument("--mode", choices=MODES, help="only this one")
    parser.add_argument("--tokens", type=int, default=70, help="to decode, warm-up included")
    parser.add_argument("--warm-up", type=int, default=30)
    parser.add_argument("--decode-seconds", type=float, default=8, help="after which no new token is decoded")
    parser.add_argument("--within", type=float, default=0.15)
    parser.add_argument("--output", type=Path, help="default: bench/results/plan[-MODE]-CPU-DATE.json")
    return parser.parse_args()


def main() -> int:
    args = parsed()
    warn_if_busy()
    sizes = {"tokens": args.tokens, "warm-up": args.warm_up, "seconds": args.decode_seconds, "prompt": 64}
    child = [word for name, value in ({"text": args.text} | sizes).items() for word in (f"--{name}", str(value))]
    bench = Bench(args.store, None, Path(), child, 0, frozenset(), 0, 300)
    budgets = [*(float(budget) for budget in args.budgets.split(",")), None]
    done = list(runs(bench, budgets, [args.mode] if args.mode else list(MODES)))
    rows = [compared(run) for run in done]
    print(f"\n{show(rows)}\n")
    series = [
        Series(f"decode, {row['budget_gb'] or 'no'} limit", "tokens/s", (row["measured"],), engine=row["mode"])
        for row in rows
    ]
    sizes |= {"text": args.text.name}
    result = record("plan", series, commit=commit(), sizes=sizes, rows=rows, runs=[asdict(r) for r in done])
    name = "plan" if args.mode is None else f"plan-{args.mode.partition(',')[0]}"
    path = args.output or result_path(name, result["host"]["cpu"]["model"])
    write(result, path)
    found = problems(rows, args.within)
    print("\n".join([*found, f"written to {path}"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
