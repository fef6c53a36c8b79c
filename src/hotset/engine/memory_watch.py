"""Keeps a running model within a memory limit that shrinks, or that other processes fill."""

from __future__ import annotations

import time
import warnings
from typing import Protocol

from hotset.engine.budget import MIB, RESERVE, resident_bytes
from hotset.engine.cgroup import MemoryGroup, memory_group

# What stays free of the limit. A quarter of the reserve, so that a plan that fills its limit gives nothing up.
MARGIN = RESERVE // 4
_SECONDS = 0.25  # between two looks, each of less than half a millisecond


class MemoryLimitWarning(RuntimeWarning):
    """The system grants less memory than the model was loaded for."""


class ColdSlots(Protocol):
    """The part of `_core.Engine` that gives up neurons in memory; see _core.pyi."""

    def shrink_cold(self, slots: int) -> int: ...
    @property
    def sparse_stats(self) -> dict[str, float]: ...


class MemoryWatch:
    """Called between two steps: looks at the cgroup's limit now and then, and gives cold slots up where it is too low.

    needed: bytes that the model was loaded for, all of the process included if there are slots. slots: None where all
    weights stay in memory; then a limit that is too low is only told.
    """

    def __init__(self, needed: int, slots: ColdSlots | None = None) -> None:
        self._loaded, self._needed, self._slots, self._next = needed, needed, slots, 0.0
        self._told_given = self._told_short = False
        group = memory_group()
        self._limits = {} if group is None else {one.folder: one.limit for one in (group, *group.others)}

    def __call__(self) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _SECONDS
        group = memory_group()
        if group is not None and self._slots is not None:
            group = group.fullest  # a dense model has taken what it needs: there the tightest limit counts
        if group is None or (short := self._short(group)) <= 0:
            return
        if self._slots is not None:
            short -= self._give_up(self._slots, group, short + MARGIN)  # more than short, so that it lasts for a while
        if short > 0 and not self._told_short:
            self._told_short = True
            _warn(
                f"{self._cause(group)}; the model was loaded for {self._loaded // MIB} MiB, so the system may end or "
                "stall it: load it again with a smaller budget"
            )

    def _short(self, group: MemoryGroup) -> int:
        """Bytes by which the limit is too low for what the process is yet to take, and a margin."""
        if self._slots is None:
            return self._needed - group.limit
        stats = self._slots.sparse_stats
        unused = int((stats["cold_slots"] - stats["cold_used"]) * stats["slot_bytes"])
        growth = max(unused, self._needed - RESERVE - resident_bytes())
        return growth + MARGIN - group.free

    def _give_up(self, slots: ColdSlots, group: MemoryGroup, wanted: int) -> int:
        """Bytes that the process now takes less than before, or will."""
        before = slots.sparse_stats["bytes"]
        released = slots.shrink_cold(-(-wanted // int(slots.sparse_stats["slot_bytes"])))
        given_up = int(before - slots.sparse_stats["bytes"])
        self._needed -= given_up
        if given_up and not self._told_given:
            self._told_given = True
            _warn(
                f"{self._cause(group)}; {given_up // MIB} MiB of the memory for neurons are given up, "
                f"{released // MIB} MiB of them back to the system, so more neurons are read from the drive from now on"
            )
        return given_up

    def _cause(self, group: MemoryGroup) -> str:
        before = self._limits.get(group.folder)
        if before is None:
            return f"a memory limit of {group.limit // MIB} MiB was set"
        if group.limit < before:
            return f"the memory limit has fallen from {before // MIB} to {group.limit // MIB} MiB"
        return f"of the memory limit of {group.limit // MIB} MiB only {max(0, group.free) // MIB} MiB are free"


def _warn(message: str) -> None:
    warnings.warn(message, MemoryLimitWarning, stacklevel=3)
