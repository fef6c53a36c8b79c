"""Peak memory under many budgets: each run lives in a control group of exactly its budget, page cache counted.

    python -m bench.budget [STORE] [--budgets 20] [--tokens 64]

From the least budget that works to one that holds everything, a fresh process with the page cache dropped reads a
prompt of 400 tokens and answers. Every peak must stay within the budget and no process be killed; without STORE the
model is SmolLM2-135M with a ReLU put in, whose text is poor and whose neurons are real. Needs root. Exits 1 if a budget
is exceeded, a process killed, or a text depends on the budget (within one predictor).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import cgroup
from bench.common import HOTSET, MODELS, result_path, smollm2, store_of
from hotset.formats.store import CONFIG, MANIFEST, is_store
from hotset.tools.result import Series, record, write

MIB = 1 << 20
CONTEXT = 512
PROMPT = "The little girl went to the park and saw a big dog. She was very happy and gave it a red ball. " * 16


@dataclass(frozen=True, slots=True)
class Run:
    budget_bytes: int
    peak_bytes: int  # as the kernel counts it, page cache included
    killed: bool
    returncode: int
    tokens: list[int]
    tokens_per_s: float
    planned_bytes: int
    predictor: str
    errors: str

    @property
    def fine(self) -> bool:
        return self.returncode == 0 and not self.killed and self.peak_bytes <= self.budget_bytes


def relu_store(source: Path, dest: Path) -> Path:
    """A packed copy of a store with ReLU in place of its activation, so that neurons are zero or not."""
    if is_store(dest):
        return dest
    from hotset.tools.pack import pack

    dense = dest.with_name(f"{dest.name}-dense")
    shutil.rmtree(dense, ignore_errors=True)
    shutil.copytree(source, dense)
    text = json.dumps(json.loads((dense / CONFIG).read_text()) | {"hidden_act": "relu"})
    (dense / CONFIG).write_text(text)
    manifest = json.loads((dense / MANIFEST).read_text())
    manifest["files"][CONFIG]["bytes"] = len(text.encode())
    (dense / MANIFEST).write_text(json.dumps(manifest))
    return pack(dense, dest, fmt="q8_0").dest


def least_budget(store: Path) -> int:
    """Bytes; what the refusal of a hopeless budget names, and a little for the process that then really runs."""
    refused = subprocess.run([*_command(store, MIB, 1)], capture_output=True, text=True, check=False)
    named = re.search(r"least that works is (\d+)MiB", refused.stderr)
    if refused.returncode != 6 or named is None:
        raise RuntimeError(f"a budget of 1 MiB was not refused as it should be: {refused.stderr[-400:]}")
    return (int(named[1]) + 4) * MIB


def whole_budget(store: Path) -> int:
    """Bytes with which everything stays in memory, and a tenth."""
    planned = subprocess.run(
        [*HOTSET, "plan", str(store), "--context", str(CONTEXT), "--json"], capture_output=True, text=True, check=True
    )
    return int(sum(json.loads(planned.stdout)["memory"].values()) * 1.1)


def measure(store: Path, budget: int, tokens: int) -> Run:
    """One process under one budget, cold."""
    cgroup.drop_page_cache()
    done = cgroup.run(_command(store, budget, tokens), budget, seconds=600)
    found: dict[str, Any] = json.loads(done.output) if done.returncode == 0 else {}
    return Run(
        budget_bytes=budget,
        peak_bytes=done.peak_bytes,
        killed=done.killed,
        returncode=done.returncode,
        tokens=found.get("tokens", []),
        tokens_per_s=found.get("tokens_per_s", 0.0),
        planned_bytes=found.get("stats", {}).get("planned_bytes", 0),
        predictor=found.get("stats", {}).get("predictor", ""),
        errors=done.errors[-400:],
    )


def _command(store: Path, budget: int, tokens: int) -> list[str]:
    flags = {"--memory": budget, "--max-tokens": tokens, "--context": CONTEXT, "--temperature": 0}
    switches = ("--raw", "--ignore-eos", "--stats", "--json")
    return [*HOTSET, "run", str(store), PROMPT, *(str(x) for pair in flags.items() for x in pair), *switches]


def problems(runs: list[Run]) -> list[str]:
    """What speaks against the budgets being hard and exact."""
    found = [
        f"budget {r.budget_bytes / MIB:.0f} MiB: peak {r.peak_bytes / MIB:.1f} MiB, exit code {r.returncode}"
        f"{', killed' if r.killed else ''} {r.errors}"
        for r in runs
        if not r.fine
    ]
    for predictor in sorted({r.predictor for r in runs}):  # each sums gates in an order of its own
        texts = {tuple(r.tokens) for r in runs if r.predictor == predictor and r.returncode == 0}
        if len(texts) > 1:
            found.append(f"{len(texts)} different texts with predictor {predictor}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, nargs="?")
    parser.add_argument("--budgets", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--no-result", action="store_true", help="write no file under bench/results")
    args = parser.parse_args()
    store = args.store or relu_store(store_of(smollm2()), MODELS / "smollm2-relu-packed")
    least, whole = least_budget(store), whole_budget(store)
    runs = []
    for i in range(args.budgets):
        runs.append(run := measure(store, least + (whole - least) * i // max(args.budgets - 1, 1), args.tokens))
        print(
            f"budget {run.budget_bytes / MIB:8.1f} MiB  peak {run.peak_bytes / MIB:8.1f} MiB  "
            f"{run.tokens_per_s:7.2f} tokens/s  {'fine' if run.fine else 'NOT FINE'}",
            flush=True,
        )
    if not args.no_result:
        series = [Series("peak", "bytes", (float(r.peak_bytes),)) for r in runs]
        result = record("budget", series, model={"name": store.name}, runs=[asdict(r) for r in runs])
        write(result, result_path("budget", result["host"]["cpu"]["model"]))
    print("\n".join(problems(runs)))
    return 1 if problems(runs) else 0


if __name__ == "__main__":
    sys.exit(main())
