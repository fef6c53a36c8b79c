"""`hotset probe`: rates of drive, memory and cores, measured once for each host and file system, kept in the cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from hotset import _core
from hotset.errors import FormatError, StorageError
from hotset.formats.files import Json, read_json, storage_error
from hotset.formats.progress import Progress, silent
from hotset.planner.rates import FORMAT_VERSION, Rates, load_rates, rates_from_json
from hotset.tools.disturbance import ENOUGH, disturbed
from hotset.tools.resolve import cache_dir

if TYPE_CHECKING:
    from hotset.tools.probe_drive import DriveGrid, DriveSample

Samples = Mapping[int, Sequence[float]]  # by threads
Table = Mapping[str, Samples]
_WAYS = 7  # of measuring cores and memory, see _cores
_BUSY_DRIVE = "busy_seq_bytes_per_s", "busy_work_share"
_AGAIN = 3  # samples in the place of one that others disturbed
_ABOUT_EQUAL = 0.85  # of the reads/s of the faster back end: as far as repeated measurements differ
_GOOD_ENOUGH = 0.95  # of the best rate: a deeper queue for less than that only costs memory and latency


@dataclass(frozen=True, slots=True)
class Probe:
    """A result and where it lies."""

    path: Path
    rates: Rates
    record: Json  # the whole file
    fresh: bool  # measured just now

    @property
    def age_seconds(self) -> float:
        return (datetime.now(UTC) - datetime.fromisoformat(self.record["measured_at"])).total_seconds()

    @property
    def busy(self) -> str | None:
        """A remark if so much else ran that the rates are lower than this host's."""
        lost = self.record["disturbed"]
        if lost <= ENOUGH:
            return None
        return (
            f"other programs took {lost:.0%} of the CPU time it was measured with, so the rates are too low: "
            "`hotset probe --refresh` when the host is idle"
        )


def cached_rates(folder: Path) -> Rates | None:
    """Rates of this host and the file system of `folder`, if they were measured. Raises FormatError, StorageError."""
    path = probe_path(folder)
    known = os.path.isfile(path)  # noqa: PTH113 - False, too, where the cache may not be looked into
    return load_rates(path) if known else None


def probe_path(folder: Path) -> Path:
    """Where the cache keeps the result for this host and the file system of `folder`."""
    from hotset.tools.plan_host import drive_facts, host_fingerprint

    key = [host_fingerprint(), *drive_facts(folder).values()]
    return cache_dir() / "probes" / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.json"


def probe(folder: Path, *, full: bool = False, refresh: bool = False, progress: Progress = silent) -> Probe:
    """What was measured before, or else measures.

    Args:
        folder: a store, or any folder on the file system in question; made if it is not there.
        full: more sizes, depths and repeats (about a minute); a quick result does not do then.
        refresh: measure in any case.
        progress: called with measurements done and in all.
    Raises: StorageError; FormatError naming a rate that cannot be. What was measured before stays then.
    """
    path = probe_path(folder)
    if not refresh and (kept := _kept(path, full)) is not None:
        return kept
    record = _measure(folder, full, progress)
    rates = rates_from_json(record["rates"], str(folder))
    _write(path, record)
    return Probe(path, rates, record, fresh=True)


def _kept(path: Path, full: bool) -> Probe | None:
    """An earlier result, unless it is damaged, of another version or not full enough."""
    try:
        rates, record = load_rates(path), read_json(path)
        known = Probe(path, rates, record, fresh=False)
        fine = known.age_seconds >= 0 and record["disturbed"] >= 0
        return known if fine and (record["mode"] == "full" or not full) else None
    except (FormatError, StorageError, KeyError, ValueError, TypeError):
        return None


def _measure(folder: Path, full: bool, progress: Progress) -> Json:
    from hotset.tools import doctor, probe_drive, probe_kernels
    from hotset.tools.plan_host import drive_facts, host_fingerprint

    grid, repeats, seconds = (probe_drive.FULL, 5, 0.4) if full else (probe_drive.QUICK, 3, 0.2)
    found = doctor.host()
    counts = probe_kernels.thread_counts(found.cpu.cores)
    placed_steps = repeats * len(grid.blocks)
    steps = _Steps(probe_drive.steps(grid) + placed_steps + (_WAYS + 1) * repeats * len(counts), progress)
    with probe_drive.file_to_read(folder, grid.scratch_bytes) as file:
        read = {"path": str(file), "bytes": file.stat().st_size}
        drive = probe_drive.measure(file, grid, lambda: steps.done("drive"))
        backend = chosen_backend(drive)
        placed = _placed(file, backend, grid, repeats, lambda: steps.done("drive"))
        busy = _busy_drive(file, backend, counts, repeats, seconds, lambda: steps.done("drive"))
    lost: list[float] = []
    samples = placed | busy | _cores(counts, repeats, seconds, steps.done, lost.append)
    rates = summary(found.cpu.cores, drive, samples, int(str(_core.cpu_info()["l3_bytes"])))
    return {
        "format_version": FORMAT_VERSION,
        "mode": "full" if full else "quick",
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "fingerprint": host_fingerprint(),
        "host": doctor.as_json(found),
        "file_system": drive_facts(folder),
        "file": read,
        "disturbed": round(median(lost), 3),
        "rates": rates.as_json(),
        "drive": [asdict(sample) for sample in drive],
        **samples,
    }


def _placed(
    file: Path, backend: str, grid: DriveGrid, repeats: int, done: Callable[[], None]
) -> dict[str, dict[int, list[float]]]:
    """Samples of random reads into much memory, by name as in Rates and by block bytes."""
    from hotset.tools import probe_drive

    found: dict[int, list[float]] = {block: [] for block in grid.blocks if block <= file.stat().st_size}
    for block in list(found) * repeats:
        found[block].append(probe_drive.placed(file, backend, block, max(grid.depths), grid.seconds))
        done()
    return {"placed_reads_per_s": found}


def _busy_drive(
    file: Path, backend: str, counts: Sequence[int], repeats: int, seconds: float, done: Callable[[], None]
) -> dict[str, dict[int, list[float]]]:
    """Samples of reads in order beside computing threads, by name as in Rates and by threads."""
    from hotset.tools import probe_drive

    found: dict[str, dict[int, list[float]]] = {name: {n: [] for n in counts} for name in _BUSY_DRIVE}
    for threads in list(counts) * repeats:
        for name, value in zip(_BUSY_DRIVE, probe_drive.busy_in_order(file, backend, threads, seconds), strict=True):
            found[name][threads].append(value)
        done()
    return found


def _cores(
    counts: Sequence[int],
    repeats: int,
    seconds: float,
    done: Callable[[str], None],
    lost: Callable[[float], None],
) -> dict[str, dict[int, list[float]]]:
    """Samples of everything but the drive, by name as in Rates and by threads.

    lost: told what share of its CPU time others took from each sample, the least disturbed one of up to _AGAIN more.
    """
    from hotset.tools import doctor, probe_kernels, probe_neurons

    found: dict[str, dict[int, list[float]]] = {}

    def net(way: Callable[..., float], besides: str) -> Callable[[int, float], float]:
        """Without what was measured just now of the same threads."""
        return lambda threads, seconds: way(models, threads, seconds, found[besides][threads][-1])

    with probe_neurons.neuron_models() as models:
        ways: dict[str, Callable[[int, float], float]] = {
            "memory_bytes_per_s": lambda threads, seconds: doctor.memory_rates([threads], seconds)[threads],
            "int8_gmac_per_s": probe_kernels.int8_gmac_per_s,
            "check_bytes_per_s": probe_kernels.check_bytes_per_s,
            "layer_s": partial(probe_neurons.layer_seconds, models),
            "vector_s": partial(probe_neurons.vector_seconds, models),
            "weight_bytes_per_s": net(probe_neurons.weight_bytes_per_s, "layer_s"),
            "neuron_bytes_per_s": net(probe_neurons.neuron_bytes_per_s, "vector_s"),
        }
        found |= {name: {n: [] for n in counts} for name in ways}
        for _ in range(repeats):  # in turn, so that what else the host does falls on all alike
            for name, way in ways.items():
                for threads in counts:
                    rate, disturbance = _least_disturbed(partial(way, threads, seconds), threads)
                    found[name][threads].append(rate)
                    lost(disturbance)
                    done(name.partition("_")[0])
    return found


def _least_disturbed(measure: Callable[[], float], threads: int) -> tuple[float, float]:
    """A sample from which others took little CPU time, or the best of a few; what they took."""
    best = 0.0, 2.0
    for _ in range(1 + _AGAIN):
        rates: list[float] = []
        share = disturbed(threads, lambda: rates.append(measure()))  # noqa: B023 - called at once
        best = min(best, (rates[0], share), key=lambda sample: sample[1])
        if share <= ENOUGH:
            break
    return best


class _Steps:
    """Turns measurements into progress."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._made, self._total, self._progress = 0, total, progress

    def done(self, what: str) -> None:
        self._made += 1
        self._progress(self._made, self._total, what)


def summary(cores: int, drive: Sequence[DriveSample], samples: Table, cache_bytes: int = 1) -> Rates:
    """The rates that the samples show: the best of each, as anything else that runs only takes away.

    drive: only those of the largest range count. samples: as _cores gives them; what the engine itself reaches is the
    median of its samples, because a plan tells what to expect and not what nothing can beat. A drive so slow that no
    read ended beside computing is not slowed by it, so it keeps the rate that it has alone.
    """
    whole, backend = _largest_range(drive), chosen_backend(drive)
    mine = [s for s in whole if s.backend == backend]
    best, deep = {}, {}
    for block in sorted({s.block_bytes for s in mine if s.random}):
        of_block = [s for s in mine if s.random and s.block_bytes == block]
        best[block] = max(of_block, key=lambda s: s.reads_per_s)
        enough = _GOOD_ENOUGH * best[block].reads_per_s
        deep[block] = min((s for s in of_block if s.reads_per_s >= enough), key=lambda s: s.depth)
    alone = max(s.bytes_per_s for s in mine if not s.random)
    return Rates(
        threads=cores,
        seq_bytes_per_s=alone,
        random_reads_per_s={block: sample.reads_per_s for block, sample in best.items()},
        best_depth={block: sample.depth for block, sample in deep.items()},
        cpu_us_per_read={block: sample.cpu_us_per_read for block, sample in deep.items()},
        memory_bytes_per_s=_each(max, _together(samples["memory_bytes_per_s"], samples["weight_bytes_per_s"])),
        int8_gmac_per_s=_each(max, samples["int8_gmac_per_s"]),
        weight_bytes_per_s=_each(median, samples["weight_bytes_per_s"]),
        neuron_bytes_per_s=_each(median, samples["neuron_bytes_per_s"]),
        check_bytes_per_s=_each(median, samples["check_bytes_per_s"]),
        layer_s=_each(median, samples["layer_s"]),
        vector_s=_each(median, samples["vector_s"]),
        placed_reads_per_s=_each(median, samples["placed_reads_per_s"]),
        busy_seq_bytes_per_s=_each(lambda rates: median(rates) or alone, samples["busy_seq_bytes_per_s"]),
        busy_work_share=_each(median, samples["busy_work_share"]),
        cache_bytes=max(cache_bytes, 1),
        backend=backend,
        direct=all(s.direct for s in mine),
    )


def _largest_range(drive: Sequence[DriveSample]) -> list[DriveSample]:
    largest = max(s.range_bytes for s in drive)
    return [s for s in drive if s.range_bytes == largest]


def chosen_backend(drive: Sequence[DriveSample]) -> str:
    """The faster one for the smallest random reads; the one that takes less CPU if they are about equal."""
    random = [s for s in _largest_range(drive) if s.random]
    samples = [s for s in random if s.block_bytes == min(s.block_bytes for s in random)]
    best = {s.backend: s for s in sorted(samples, key=lambda s: s.reads_per_s)}  # the last of each stays
    enough = _ABOUT_EQUAL * max(s.reads_per_s for s in best.values())
    return min((s for s in best.values() if s.reads_per_s >= enough), key=lambda s: s.cpu_us_per_read).backend


def _together(streamed: Samples, matrices: Samples) -> Samples:
    """What the memory gave at its best, by whatever read it: its pace may have changed between the two."""
    return {n: [*rates, *matrices.get(n, ())] for n, rates in streamed.items()}


def _each(choose: Callable[[Sequence[float]], float], samples: Samples) -> dict[int, float]:
    return {threads: choose(rates) for threads, rates in sorted(samples.items())}


def _write(path: Path, record: Json) -> None:
    partial = path.with_suffix(f".partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(record, indent=1), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):  # a read-only drive refuses that, too
            partial.unlink()
        raise storage_error(path, "cannot be written", error) from None
