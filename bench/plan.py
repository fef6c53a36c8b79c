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
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.common import MODELS, ROOT, commit, hotset, result_path, table, warn_if_busy
from bench.sparse import Bench, say
from bench.sparse_summary import Run
from hotset.tools import doctor
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


def runs(bench: Bench, wanted: Sequence[tuple[float | None, str]]) -> Iterator[Run]:
    """Those that gave rates, with those of the host just before."""
    for budget in dict.fromkeys(budget for budget, _ in wanted):
        rates = hotset("probe", str(bench.store), "--refresh")["rates"]
        for mode in (mode for each, mode in wanted if each == budget):
            run = say(bench.hotset(budget, mode, *MODES[mode]))
            if run.details:
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
    parser.add_argument("--budgets", default="1.6,2.0,2.4,3.0,3.6,none", help="GB in all; none: no limit")
    parser.add_argument("--mode", choices=MODES, help="only this one")
    parser.add_argument("--tokens", type=int, default=70, help="to decode, warm-up included")
    parser.add_argument("--warm-up", type=int, default=30)
    parser.add_argument("--decode-seconds", type=float, default=8, help="after which no new token is decoded")
    parser.add_argument("--within", type=float, default=0.15)
    parser.add_argument("--resume", action="store_true", help="keep what the output has already")
    parser.add_argument("--output", type=Path, help="default: bench/results/plan-CPU-DATE.json")
    return parser.parse_args()


def main() -> int:
    args = parsed()
    warn_if_busy()
    sizes = {"tokens": args.tokens, "warm-up": args.warm_up, "seconds": args.decode_seconds, "prompt": 64}
    child = [word for name, value in ({"text": args.text} | sizes).items() for word in (f"--{name}", str(value))]
    bench = Bench(args.store, None, Path(), child, 0, frozenset(), 0, 300)
    path = args.output or result_path("plan", doctor.host().cpu.model)
    done = [Run(**run) for run in json.loads(path.read_text())["runs"]] if args.resume and path.exists() else []
    budgets = [None if budget == "none" else float(budget) for budget in args.budgets.split(",")]
    wanted = [(budget, mode) for budget in budgets for mode in ([args.mode] if args.mode else MODES)]
    known = {(run.budget_gb, run.engine) for run in done}
    rows = [compared(run) for run in done]
    for run in runs(bench, [each for each in wanted if each not in known]):
        done.append(run)
        rows.append(compared(run))
        write(_result(rows, done, sizes | {"text": args.text.name}), path)
    print(f"\n{show(rows)}\n")
    found = problems(rows, args.within)
    print("\n".join([*found, f"written to {path}"]))
    return 1 if found else 0


def _result(rows: Sequence[dict[str, Any]], done: Sequence[Run], sizes: dict[str, Any]) -> dict[str, Any]:
    series = [
        Series(f"decode, {row['budget_gb'] or 'no'} limit", "tokens/s", (row["measured"],), engine=row["mode"])
        for row in rows
    ]
    return record("plan", series, commit=commit(), sizes=sizes, rows=rows, runs=[asdict(run) for run in done])


if __name__ == "__main__":
    sys.exit(main())
