"""Of which store and host a plan is, where it is kept, and what the store's drive does to it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hotset import _core
from hotset.errors import HotsetError
from hotset.formats.gates import GATES_FILE
from hotset.formats.predictors import PREDICTORS_FILE
from hotset.formats.profile import PROFILE_FILE
from hotset.formats.sketch import SKETCH_FILE
from hotset.formats.store import MANIFEST, Store
from hotset.planner.plan_file import MadeFor
from hotset.planner.rates import Rates
from hotset.tools.probe_drive import existing
from hotset.tools.resolve import cache_dir

_IN_MEMORY = ("tmpfs", "ramfs")
_REMOTE = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs", "fuse.s3fs", "glusterfs")
_OTHERS_SIZE = ("zfs", *_REMOTE)  # changes with what others write, and their sources tell them apart


def made_for(store: Store, memory: int | None, kv: str, predict: str) -> MadeFor:
    model = hashlib.sha256((store.path / MANIFEST).read_bytes()).hexdigest()
    return MadeFor(model, host_fingerprint(), _core.__version__, memory, kv, predict)


def host_fingerprint() -> str:
    """Changes with CPU, number of CPUs and size of memory, not with names and load."""
    cpu = _core.cpu_info()
    total = Path("/proc/meminfo").read_text().split("\n", 1)[0]
    return _digest([cpu["model"], cpu["features"], cpu["allowed_cpus"], total])[:16]


def file_state(store: Store) -> list[object]:
    """Of what a plan reads besides the store's manifest."""
    files = [store.path / PROFILE_FILE, store.path / PREDICTORS_FILE, store.path / SKETCH_FILE, store.path / GATES_FILE]
    rates = host_rates(store)
    return [*map(_state, files), None if rates is None else rates.as_json()]


def plan_path(wanted: MadeFor, *more: object) -> Path:
    """Where the cache keeps a plan."""
    names = [wanted.model, wanted.host, wanted.hotset, wanted.memory, wanted.kv, wanted.predict]
    return cache_dir() / "plans" / f"{_digest([names, more])[:16]}.json"


def host_rates(store: Store) -> Rates | None:
    """What `hotset probe` found out about this host and the store's drive; None if it has not run."""
    from hotset.tools.probe import cached_rates

    try:
        return cached_rates(store.path)
    except HotsetError:  # of another version, damaged: as good as none, and `hotset probe` will replace it
        return None


def storage_remarks(store: Store, rates: Rates | None) -> Iterator[str]:
    """What is odd about the drive that a store lies on."""
    kind = file_system(store.path)
    if kind in _IN_MEMORY:
        yield f"{store.path} lies on {kind}, so the whole file is in memory already, beyond any budget; use a drive"
        return
    if kind in _REMOTE:
        yield f"{store.path} lies on a network file system ({kind}); copy it to a local drive for speed"
    if why := _buffered(store, rates):
        yield f"{why}, so reads go through the page cache, which the budget does not hold"


def _buffered(store: Store, rates: Rates | None) -> str:
    """Why neurons are not read by direct I/O, as options_for() in neuron_file.cc decides; "" if they are."""
    info = store.neurons
    if info is None:
        return ""
    alignment = _core.direct_alignment(info.path)
    if alignment <= 1 or (rates is not None and not rates.direct):
        return "this file system has no direct I/O"
    if any(place % alignment for place in (info.stride, *info.offsets)):
        return (
            f"direct reads of this drive ask for multiples of {alignment} bytes, and neurons lie {info.stride} apart "
            "(`hotset pack` to this drive makes a store that fits)"
        )
    return ""


@dataclass(frozen=True, slots=True)
class Mount:
    """A file system as the kernel names it."""

    point: str = ""
    kind: str = ""
    source: str = ""  # device, host and folder, or whatever else its kind has


def drive_facts(folder: Path) -> dict[str, object]:
    """What tells the drive of a folder, or of where it is to be, from others: no number alone does for every kind."""
    place = existing(folder)
    found, numbers = mount(place), os.statvfs(place)
    return {
        "kind": found.kind,
        "device": place.stat().st_dev,
        "source": found.source,
        "id": numbers.f_fsid,
        "bytes": None if found.kind in _OTHERS_SIZE else numbers.f_blocks * numbers.f_frsize,
    }


def file_system(path: Path) -> str:
    """Type of the file system that a path lies on, as the kernel names it; "" if it does not say."""
    return mount(path).kind


def mount(path: Path) -> Mount:
    """The file system that a path lies on; its texts are empty if the kernel does not say."""
    resolved, best = str(path.resolve()), Mount()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        point = left.split()[4].replace("\\040", " ")
        inside = resolved == point or resolved.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best.point):
            kind, source, *_ = right.split(" ")
            best = Mount(point, kind, source)
    return best


def _state(path: Path) -> list[int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def allowed_threads() -> int:
    """One for each core that this process may use."""
    cpus = _core.cpu_info()["allowed_cpus"]
    assert isinstance(cpus, list)
    return len(cpus)
