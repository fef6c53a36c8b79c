"""What memory and cores give."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from hotset import _core

ROWS, COLS = 1024, 4096  # 2.3 MB of 4-bit weights: they stay in a core's share of the cache
TOKENS = 64  # a call's fixed costs vanish


def int8_gmac_per_s(threads: int, seconds: float) -> float:
    """10^9 multiply-adds/s of 4-bit weights and 8-bit activations, 16 tokens at once, all threads together."""
    rng = np.random.default_rng(0)
    packed = np.empty(_core.packed_bytes("q4_0", ROWS, COLS), np.uint8)
    _core.encode("q4_0", rng.standard_normal((ROWS, COLS), np.float32), packed)
    x = rng.standard_normal((TOKENS, COLS), np.float32)
    isa = _core.select_isa()
    ready = threading.Barrier(threads)

    def work() -> float:
        """Calls per second of this thread while all of them run."""
        _core.matmul(isa, "q4_0", packed, ROWS, COLS, x)
        ready.wait()
        start, calls = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < seconds:
            _core.matmul(isa, "q4_0", packed, ROWS, COLS, x)
            calls += 1
        return calls / elapsed

    with ThreadPoolExecutor(threads) as pool:
        rates = [pool.submit(work) for _ in range(threads)]
        return sum(rate.result() for rate in rates) * ROWS * COLS * TOKENS / 1e9


def thread_counts(cores: int) -> list[int]:
    """1, 2, 4, … and all."""
    return sorted({*(1 << i for i in range(cores.bit_length()) if 1 << i <= cores), cores})


def by_threads(
    measure: Callable[[int], float], counts: Sequence[int], repeats: int, done: Callable[[], None]
) -> dict[int, list[float]]:
    """All samples; calls `done` after each."""
    samples: dict[int, list[float]] = {}
    for threads in counts:
        for _ in range(repeats):
            samples.setdefault(threads, []).append(measure(threads))
            done()
    return samples
