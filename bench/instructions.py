"""Instructions that kernels take, counted by callgrind: a check of their speed that no other load disturbs.

    python -m bench.instructions [--build FOLDER] [--update | --if-comparable]

Counts one call of every kernel on fixed input and compares with bench/results/instructions.json; --update writes that
file. Valgrind knows no AVX-512, so what is counted is AVX2's instance of the templates that all ISAs share. With
--if-comparable it says why and succeeds where there is no valgrind or the counts are another compiler's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.common import RESULTS, ROOT

BASELINE = RESULTS / "instructions.json"
TOLERANCE = 0.02  # another compiler's schedule moves counts by less; a lost inlining or vectorization by far more
ISA = "avx2"


def asked(program: Path, what: str) -> str:
    return subprocess.run([program, what], capture_output=True, text=True, check=True).stdout.strip()


def collected(program: Path, kernel: str, repeats: int) -> int:
    """Instructions of a whole run."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", program, kernel, str(repeats)]
    env = {**os.environ, "HOTSET_ISA": ISA}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    found = re.search(r"Collected\s*:\s*(\d+)", done.stderr)
    if done.returncode or not found:
        raise SystemExit(f"instructions: {kernel}: valgrind exited with {done.returncode}: {done.stderr[-400:]}")
    return int(found[1])


def count(program: Path) -> dict[str, int]:
    """Instructions of one call of each kernel."""
    names = asked(program, "--list").split()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        one, two = (list(pool.map(lambda name, n=n: collected(program, name, n), names)) for n in (1, 2))
    return {name: b - a for name, a, b in zip(names, one, two, strict=True)}


def not_comparable(program: Path, baseline: dict[str, Any]) -> str:
    """Why nothing can be said here; empty if something can."""
    if platform.machine() != "x86_64":
        return f"counts are of {ISA}, and this is {platform.machine()}"
    if not shutil.which("valgrind"):
        return "no valgrind here; install the package of that name"
    if (compiler := asked(program, "--compiler")) != baseline["compiler"]:
        return f"compiled by {compiler}, counted in {BASELINE.name} with {baseline['compiler']}"
    return ""


def compare(want: dict[str, int], got: dict[str, int]) -> list[str]:
    """What is worse than it was, one line each."""
    lines = [f"{name}: not in {BASELINE.name}; --update adds it" for name in sorted(got.keys() - want.keys())]
    lines += [f"{name}: gone" for name in sorted(want.keys() - got.keys())]
    for name in sorted(want.keys() & got.keys()):
        change = got[name] / want[name] - 1
        if change > TOLERANCE:
            lines.append(f"{name}: {got[name]:,} instructions, {change:+.1%} over {want[name]:,}")
        elif change < -TOLERANCE:
            print(f"{name}: {got[name]:,} instructions, {change:+.1%}; --update keeps that")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.instructions", description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, default=ROOT / "build/dev", help="folder with count_kernels")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--update", action="store_true", help="make these counts the baseline")
    mode.add_argument("--if-comparable", action="store_true", help="succeed where nothing can be compared")
    args = parser.parse_args()
    program, baseline = args.build / "count_kernels", json.loads(BASELINE.read_text())
    if not args.update and (why := not_comparable(program, baseline)):
        print(f"instructions: not compared: {why}")
        return 0 if args.if_comparable else 1
    got = count(program)
    if args.update:
        found = {"isa": ISA, "compiler": asked(program, "--compiler"), "instructions": got}
        BASELINE.write_text(json.dumps(found, indent=1) + "\n")
        return 0
    lines = compare(baseline["instructions"], got)
    print("\n".join(lines) or f"{len(got)} kernels take no more instructions than before")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
