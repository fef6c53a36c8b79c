"""What a drive gives: block sizes, queue depths, back ends, ranges."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hotset import _core
from hotset.engine.budget import Host
from hotset.errors import StorageError
from hotset.formats.store import WEIGHT_FILES

MIB = 1 << 20
SEQUENTIAL_BYTES = MIB  # of one read
STREAM_DEPTH = 6  # of them with the drive while the engine reads layer after layer: kInFlight of layer_stream.cc
PLACED_BYTES = 256 * MIB
LEAST_FILE = 256 * MIB  # a smaller one may lie in the drive's own cache as a whole
_FREE_SHARE = 4  # a scratch file takes at most one part in so many of the free space


@dataclass(frozen=True, slots=True)
class DriveSample:
    """One measurement."""

    backend: str  # "io_uring" or "pread"
    random: bool
    block_bytes: int
    depth: int
    range_bytes: int  # that reads went to: size of the file
    reads_per_s: float
    bytes_per_s: float
    cpu_us_per_read: float
    direct: bool


@dataclass(frozen=True, slots=True)
class DriveGrid:
    """What to measure. Every combination takes `seconds` in each of `passes`: what else a drive has to do varies."""

    blocks: Sequence[int]
    depths: Sequence[int]
    sequential_depths: Sequence[int]
    ranges: Sequence[int]  # smaller files that 4 KiB reads go to, besides the main one
    seconds: float
    passes: int
    scratch_bytes: int  # of a file made for it, if the free space allows


QUICK = DriveGrid(
    blocks=(4096, 8192, 16384, 65536, MIB),
    depths=(4, 16, 64),
    sequential_depths=(4, 16),
    ranges=(),
    seconds=0.08,
    passes=2,
    scratch_bytes=LEAST_FILE,
)
FULL = DriveGrid(
    blocks=[4096 << i for i in range(9)],
    depths=[1 << i for i in range(7)],
    sequential_depths=(1, 2, 4, 8, 16),
    ranges=(128 * MIB, 512 * MIB),
    seconds=0.2,
    passes=2,
    scratch_bytes=1024 * MIB,
)


def backends() -> list[str]:
    """Ways of reading that work here."""
    return ["pread", *(["io_uring"] if _core.io_info()["io_uring_works"] else [])]


def measure(path: Path, grid: DriveGrid, done: Callable[[], None]) -> list[DriveSample]:
    """Reads an existing file; calls `done` after each of `steps(grid)` measurements. Raises StorageError."""
    ways = [(SEQUENTIAL_BYTES, depth, False) for depth in grid.sequential_depths]
    ways += [(block, depth, True) for block in grid.blocks for depth in grid.depths]
    samples = [
        _sample(path, backend, *way, grid.seconds, done)
        for _ in range(grid.passes)
        for backend in backends()
        for way in ways
        if way[0] <= path.stat().st_size
    ]
    ranges = grid.ranges if os.access(path.parent, os.W_OK) else ()  # a store may be read-only
    for size in ranges:
        with scratch_file(path.parent, size) as small:
            samples += [
                _sample(small, backend, 4096, depth, True, grid.seconds, done)
                for _ in range(grid.passes)
                for backend in backends()
                for depth in grid.depths
            ]
    return samples


def placed(path: Path, backend: str, block: int, depth: int, seconds: float) -> float:
    """Reads/s of random blocks that go to more memory than caches hold, if there is so much. Raises: StorageError."""
    places = min(PLACED_BYTES, Host.measure().free // 4)
    return _core.drive_read(str(path), block, depth, backend, True, seconds, places)["reads_per_s"]


def busy_in_order(path: Path, backend: str, threads: int, seconds: float) -> tuple[float, float]:
    """Bytes/s of reads in order beside `threads` computing threads, and the share of their speed that is left.

    As layer_stream.cc reads. Raises: StorageError.
    """
    got = _core.busy_drive_read(str(path), SEQUENTIAL_BYTES, STREAM_DEPTH, backend, threads, seconds)
    return got["bytes_per_s"], got["work_share"]


def steps(grid: DriveGrid) -> int:
    """Most measurements that `measure` makes."""
    per_file = len(grid.sequential_depths) + len(grid.blocks) * len(grid.depths) + len(grid.ranges) * len(grid.depths)
    return grid.passes * len(backends()) * per_file


def _sample(
    path: Path, backend: str, block: int, depth: int, random: bool, seconds: float, done: Callable[[], None]
) -> DriveSample:
    got = _core.drive_read(str(path), block, depth, backend, random, seconds)
    done()
    return DriveSample(
        backend=backend,
        random=random,
        block_bytes=block,
        depth=depth,
        range_bytes=path.stat().st_size,
        reads_per_s=got["reads_per_s"],
        bytes_per_s=got["bytes_per_s"],
        cpu_us_per_read=got["cpu_us_per_read"],
        direct=got["direct"] == 1.0,
    )


@contextmanager
def file_to_read(folder: Path, scratch_bytes: int) -> Iterator[Path]:
    """A weight file in `folder` that is large enough, else a scratch file beside it, removed afterwards."""
    found = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    largest = max(found, key=lambda path: path.stat().st_size, default=None)
    if largest is not None and largest.stat().st_size >= LEAST_FILE:
        yield largest
        return
    with scratch_file(folder, _fitting(folder, scratch_bytes)) as path:
        yield path


def _fitting(folder: Path, wanted: int) -> int:
    """As many bytes as wanted, or fewer where little space is free. Raises StorageError."""
    free = shutil.disk_usage(existing(folder)).free
    size = min(wanted, free // _FREE_SHARE) // MIB * MIB
    if size < LEAST_FILE:
        raise StorageError(
            f"{folder} has {free // MIB} MiB free, too little for a file to measure the drive with; at least "
            f"{LEAST_FILE * _FREE_SHARE // MIB} MiB are wanted: free some, or probe another folder of the same drive"
        )
    return size


def existing(folder: Path) -> Path:
    """The nearest folder upwards that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


@contextmanager
def scratch_file(folder: Path, size: int) -> Iterator[Path]:
    """A file of random bytes that lies on the drive, not only in the page cache; removed afterwards."""
    with _random_file(folder, size // MIB) as file:
        yield Path(file.name)


def _random_file(folder: Path, mebibytes: int) -> IO[bytes]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-")  # noqa: SIM115 - the caller closes it
        block = os.urandom(MIB)
        for _ in range(mebibytes):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(
            f"cannot write a scratch file of {mebibytes} MiB in {folder}: {error.strerror}; name another folder of the "
            "same drive"
        ) from error
    return file
