"""Instructions that kernels take, counted by callgrind: a check of their speed that no other load disturbs.

    python -m bench.instructions [--build FOLDER] [--update]

Counts one call of every kernel on fixed input and compares with bench/results/instructions.json; --update writes that
file. Valgrind knows no AVX-512, so what is counted is AVX2's instance of the templates that all ISAs share.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from bench.common import RESULTS, ROOT

BASELINE = RESULTS / "instructions.json"
TOLERANCE = 0.02  # another compiler's schedule moves counts by less; a lost inlining or vectorization by far more
ISA = "avx2"


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
    names = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
    return {name: collected(program, name, 2) - collected(program, name, 1) for name in names}


def compare(want: dict[str, int], got: dict[str, int]) -> list[str]:
    """What is not as it was, one line each."""
    lines = [f"{name}: not in {BASELINE.name}; --update adds it" for name in sorted(got.keys() - want.keys())]
    lines += [f"{name}: gone" for name in sorted(want.keys() - got.keys())]
    for name in sorted(want.keys() & got.keys()):
        change = got[name] / want[name] - 1
        if change > TOLERANCE:
            lines.append(f"{name}: {got[name]:,} instructions, {change:+.1%} over {want[name]:,}")
        elif change < -TOLERANCE:
            lines.append(f"{name}: {got[name]:,} instructions, {change:+.1%}; --update keeps that")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.instructions", description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, default=ROOT / "build/dev", help="folder with count_kernels")
    parser.add_argument("--update", action="store_true", help="make these counts the baseline")
    args = parser.parse_args()
    if not shutil.which("valgrind"):
        raise SystemExit("instructions: no valgrind here; install the package of that name")
    got = count(args.build / "count_kernels")
    if args.update:
        BASELINE.write_text(json.dumps({"isa": ISA, "instructions": got}, indent=1) + "\n")
        return 0
    lines = compare(json.loads(BASELINE.read_text())["instructions"], got)
    print("\n".join(lines) or f"{len(got)} kernels take as many instructions as before")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
