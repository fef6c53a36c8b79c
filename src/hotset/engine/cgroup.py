"""The memory that the kernel counts for this process and those it shares a limit with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

_MOUNT = Path("/sys/fs/cgroup")
_NO_LIMIT = 1 << 60  # version 1 says a number near 2^63 for "none"


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """A limited cgroup, page cache included in all numbers (bytes)."""

    limit: int  # the kernel ends processes above it, or, where it is memory.high of version 2, slows them down
    used: int
    peak: int | None  # None: this kernel does not say
    cached: int = 0  # of `used`: files that no process maps, which the kernel takes back when it needs the memory
    folder: str = field(default="", compare=False)  # where the kernel shows it
    others: tuple[MemoryGroup, ...] = field(default=(), compare=False)  # with limits on this process, too

    @property
    def free(self) -> int:
        """Below 0 where less is granted than is used."""
        return self.limit - self.used + self.cached

    @property
    def fullest(self) -> MemoryGroup:
        """Of this and the others the one with the least free: a looser limit may be shared with more processes."""
        return min((self, *self.others), key=lambda group: group.free)


def memory_group(proc: Path = Path("/proc/self/cgroup"), mount: Path = _MOUNT) -> MemoryGroup | None:
    """The tightest limit on this process, with the others; None if there is none."""
    found = [group for folder in _folders(proc, mount) if (group := _read(folder)) is not None]
    groups = sorted(found, key=lambda group: group.limit)
    return replace(groups[0], others=tuple(groups[1:])) if groups else None


def _folders(proc: Path, mount: Path) -> Iterator[Path]:
    """The process's cgroup and those around it, of version 2 and of version 1's memory controller."""
    try:
        lines = proc.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        root = mount / "memory" if controllers else mount
        own = root / path.lstrip("/")
        yield from (folder for folder in (own, *own.parents) if folder == root or root in folder.parents)


def _read(folder: Path) -> MemoryGroup | None:
    for limits, used, peak in (
        (("memory.max", "memory.high"), "memory.current", "memory.peak"),
        (("memory.limit_in_bytes",), "memory.usage_in_bytes", "memory.max_usage_in_bytes"),
    ):
        set_here = [most for name in limits if (most := _number(folder / name)) is not None and most < _NO_LIMIT]
        if set_here:
            return MemoryGroup(
                min(set_here),
                _number(folder / used) or 0,
                _number(folder / peak),
                _cached(folder / "memory.stat"),
                str(folder),
            )
    return None


def _cached(path: Path) -> int:
    try:
        stat = {key: int(count) for key, count in map(str.split, path.read_text().splitlines())}
    except (OSError, ValueError):
        return 0
    if "total_cache" in stat:  # version 1, with the groups inside
        return max(0, stat["total_active_file"] + stat["total_inactive_file"] - stat["total_mapped_file"])
    return max(0, stat.get("active_file", 0) + stat.get("inactive_file", 0) - stat.get("file_mapped", 0))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def peak_memory() -> tuple[int, str]:
    """Most bytes so far, and whose: of the "cgroup" (page cache included) where one has a limit, or the "process"."""
    group = memory_group()
    if group is not None and group.peak is not None:
        return group.peak, "cgroup"
    return _high_water_mark(), "process"


def _high_water_mark() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("/proc/self/status has no VmHWM")
