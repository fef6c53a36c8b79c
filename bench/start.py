"""Start to first token of `hotset run` as a whole process, and its memory above weights and KV cache.

python -m bench.start [--store STORE] [--repeats 11]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from pathlib import Path

from bench.common import HOTSET, result_path, smollm2_as, store_of, warn_if_busy
from hotset.tools.result import Series, record, write

PROMPT = "Why is the sky blue?"


def first_byte(store: Path) -> float:
    """Seconds from starting the process to the first byte of its answer."""
    started = time.perf_counter()
    with subprocess.Popen(
        [*HOTSET, "run", str(store), PROMPT, "--max-tokens", "4"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        if not os.read(process.stdout.fileno(), 1):
            raise RuntimeError(f"hotset run exited with {process.wait()} before its first token")
        elapsed = time.perf_counter() - started
        process.stdout.read()
    return elapsed


def memory(store: Path, tokens: int) -> dict[str, float]:
    """Peak resident bytes of one answer, and what of it is neither weights nor KV cache."""
    command = [*HOTSET, "run", str(store), PROMPT, "--max-tokens", str(tokens), "--ignore-eos", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        answer = json.loads(process.stdout.read())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss * 1024
    held = answer["memory"]["weight_bytes"] + answer["memory"]["kv_bytes"]
    return {"peak_bytes": peak, "weights_and_kv_bytes": held, "above_bytes": peak - held}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="default: SmolLM2-135M-Instruct, Q4_0")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--tokens", type=int, default=512, help="length of the answer whose memory is measured")
    parser.add_argument("--output", type=Path, help="default: bench/results/start-CPU-DATE.json")
    args = parser.parse_args()
    store = args.store or store_of(smollm2_as("Q4_0"))
    warn_if_busy()
    first_byte(store)  # fills the page cache
    samples = tuple(first_byte(store) for _ in range(args.repeats))
    series = [Series("start", "s", samples, model=store.name)]
    held = memory(store, args.tokens)
    result = record("start", series, page_cache="warm", memory=held)
    path = args.output or result_path("start", result["host"]["cpu"]["model"])
    write(result, path)
    above = held["above_bytes"] / 2**20
    print(f"start to first token: median {series[0].median:.3f} s, {min(samples):.3f} to {max(samples):.3f}")
    print(f"memory above weights and KV cache: {above:.0f} MiB\nwritten to {path}")


if __name__ == "__main__":
    main()
