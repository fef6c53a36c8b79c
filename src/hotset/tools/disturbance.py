"""How much of the CPUs other programs take, and the virtual machines beside this one, while something is measured."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_STAT = Path("/proc/stat")
_IDLE, _IOWAIT, _STEAL = 3, 4, 7  # columns of the first line, seconds in ticks: man 5 proc_stat
_COUNTED = _STEAL + 1  # guests are in the first columns already
ENOUGH = 0.1  # of the threads measured: what a sample may lose


@dataclass(frozen=True, slots=True)
class _Times:
    """CPU seconds, since any time."""

    wall: float
    busy: float  # of all CPUs, by whoever; stolen ones too
    own: float  # of this process


def disturbed(threads: int, work: Callable[[], object]) -> float:
    """Runs `work`; returns how much CPU time others took from its threads, as a share of what these wanted.

    0 where there are CPUs enough for all, or where the system does not tell (no /proc/stat).
    """
    before = _times()
    work()
    after = _times()
    if before is None or after is None or after.wall <= before.wall:
        return 0.0
    elapsed, cpus = after.wall - before.wall, os.cpu_count() or 1
    others = ((after.busy - before.busy) - (after.own - before.own)) / elapsed
    return min(max(0.0, others - (cpus - threads)) / threads, 1.0)


def _times() -> _Times | None:
    try:
        line = _STAT.read_text().partition("\n")[0]
        ticks = [int(n) for n in line.split()[1 : 1 + _COUNTED]]
        busy = (sum(ticks) - ticks[_IDLE] - ticks[_IOWAIT]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None
    own = os.times()
    return _Times(time.perf_counter(), busy, own.user + own.system)
