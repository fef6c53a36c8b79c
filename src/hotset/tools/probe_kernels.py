"""What memory and cores give."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from hotset import _core

ROWS, COLS = 1024, 4096  # 2.3 MB of 4-bit weights: they stay in a core's share of the cache
TOKENS = 64  # a call's fixed costs vanish
_CHECKED_BYTES = 64 << 20  # what comes from a drive lies in no cache of a core


def int8_gmac_per_s(threads: int, seconds: float) -> float:
    """10^9 multiply-adds/s of 4-bit weights and 8-bit activations, 16 tokens at once, all threads together."""
    rng = np.random.default_rng(0)
    packed = np.empty(_core.packed_bytes("q4_0", ROWS, COLS), np.uint8)
    _core.encode("q4_0", rng.standard_normal((ROWS, COLS), np.float32), packed)
    x = rng.standard_normal((TOKENS, COLS), np.float32)
    isa = _core.select_isa()
    calls = _calls_per_s(lambda: _core.matmul(isa, "q4_0", packed, ROWS, COLS, x), threads, seconds)
    return calls * ROWS * COLS * TOKENS / 1e9


def check_bytes_per_s(threads: int, seconds: float) -> float:
    """Bytes/s of checksums, all threads together."""
    data = np.random.default_rng(0).integers(0, 256, _CHECKED_BYTES, np.uint8)
    return _calls_per_s(lambda: _core.crc32c(data), threads, seconds) * data.nbytes


def _calls_per_s(call: Callable[[], object], threads: int, seconds: float) -> float:
    """Of all threads, each of which calls while all of them do."""
    ready = threading.Barrier(threads)

    def work() -> float:
        call()
        ready.wait()
        start, calls = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < seconds:
            call()
            calls += 1
        return calls / elapsed

    with ThreadPoolExecutor(threads) as pool:
        rates = [pool.submit(work) for _ in range(threads)]
        return sum(rate.result() for rate in rates)


def thread_counts(cores: int) -> list[int]:
    """1, 2, 4, … and all."""
    return sorted({*(1 << i for i in range(cores.bit_length()) if 1 << i <= cores), cores})
