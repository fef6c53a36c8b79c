"""What this host offers hotset, measured, and what it lacks."""

from __future__ import annotations

import platform
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from hotset import _core
from hotset.engine import budget
from hotset.engine.cgroup import memory_group
from hotset.tools.probe_drive import backends, scratch_file

_MIB = 1 << 20
_DRIVE_FILE_BYTES = 256 * _MIB
_BANDWIDTH_MIB = 1024  # far beyond any L3 cache; less where memory is short


@dataclass(frozen=True, slots=True)
class Cpu:
    model: str
    features: list[str]
    cores: int  # that this process may use, cgroup quota included
    l2_bytes: int
    l3_bytes: int


@dataclass(frozen=True, slots=True)
class Kernels:
    selected: str
    usable: list[str]
    not_supported: list[str]  # built, but this CPU cannot run them
    not_built: list[str]


@dataclass(frozen=True, slots=True)
class Memory:
    total_bytes: int
    available_bytes: int
    limit_bytes: int | None  # the tightest of its cgroups, memory.high of version 2 included; None = no limit
    transparent_huge_pages: str  # always | madvise | never | unknown


@dataclass(frozen=True, slots=True)
class DriveRate:
    backend: str
    block_bytes: int
    depth: int
    random: bool
    bytes_per_s: float
    cpu_us_per_read: float


@dataclass(frozen=True, slots=True)
class Host:
    """Facts that a result must state, too."""

    cpu: Cpu
    kernels: Kernels
    memory: Memory
    io_uring_compiled: bool
    io_uring_works: bool
    system: str
    python: str
    compiler: str
    hotset: str


def host() -> Host:
    """Reads what the system says; measures nothing."""
    cpu, io = _core.cpu_info(), _core.io_info()
    return Host(
        cpu=_cpu(cpu),
        kernels=_kernels(),
        memory=memory(),
        io_uring_compiled=io["io_uring_compiled"],
        io_uring_works=io["io_uring_works"],
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        compiler=_core.compiler,
        hotset=_core.__version__,
    )


def _cpu(info: dict[str, object]) -> Cpu:
    features, cpus = info["features"], info["allowed_cpus"]
    assert isinstance(features, list)
    assert isinstance(cpus, list)
    return Cpu(str(info["model"]), features, len(cpus), int(str(info["l2_bytes"])), int(str(info["l3_bytes"])))


def _kernels() -> Kernels:
    isas = _core.isa_list()
    return Kernels(
        selected=_core.select_isa(),
        usable=[i.name for i in isas if i.compiled and i.supported],
        not_supported=[i.name for i in isas if i.compiled and not i.supported],
        not_built=[i.name for i in isas if i.supported and not i.compiled],
    )


def memory() -> Memory:
    """Memory of the machine and of this process's cgroup."""
    sizes = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        sizes[name] = int(rest.split()[0]) * 1024
    group = memory_group()
    limit = None if group is None else group.limit
    return Memory(sizes["MemTotal"], sizes["MemAvailable"], limit, _transparent_huge_pages())


def _transparent_huge_pages() -> str:
    chosen = [w for w in _read("/sys/kernel/mm/transparent_hugepage/enabled").split() if w.startswith("[")]
    return chosen[0].strip("[]") if chosen else "unknown"


def _read(path: Path | str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def memory_rates(threads: Collection[int], seconds: float = 0.5) -> dict[int, float]:
    """Sequential read rate in bytes/s by number of threads."""
    megabytes = max(1, min(_BANDWIDTH_MIB, budget.Host.measure().free // _MIB // 4))
    return {n: _core.memory_bandwidth(n, megabytes, seconds) for n in threads}


def drive_rates(folder: Path, seconds: float = 0.5) -> list[DriveRate]:
    """Direct reads of a scratch file in `folder`: big and small blocks, every back end that works here.

    Raises StorageError if the file cannot be written.
    """
    with scratch_file(folder, _DRIVE_FILE_BYTES) as path:
        return [
            _drive_rate(str(path), backend, block, depth, random, seconds)
            for backend in backends()
            for block, depth, random in ((_MIB, 8, False), (16384, 32, True), (4096, 32, True))
        ]


def _drive_rate(path: str, backend: str, block: int, depth: int, random: bool, seconds: float) -> DriveRate:
    rates = _core.drive_read(path, block, depth, backend, random, seconds)
    return DriveRate(backend, block, depth, random, rates["bytes_per_s"], rates["cpu_us_per_read"])


def advice(found: Host) -> list[str]:
    """What is missing and how to get it; empty if nothing is."""
    lines = []
    if not found.io_uring_compiled:
        lines.append("io_uring is not built in: install liburing's headers (Debian: liburing-dev), then build again")
    elif not found.io_uring_works:
        lines.append("io_uring is refused by this kernel or container: allow it (sysctl kernel.io_uring_disabled=0)")
    if found.memory.transparent_huge_pages == "never":
        lines.append("huge pages are off: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled")
    if found.kernels.selected == "scalar":
        lines.append("no SIMD kernels fit this CPU: expect a small part of the usual speed")
    if found.kernels.not_built:
        lines.append(f"this CPU could run kernels that this build lacks: {', '.join(found.kernels.not_built)}")
    return lines


def as_json(found: Host) -> dict[str, object]:
    return asdict(found)
