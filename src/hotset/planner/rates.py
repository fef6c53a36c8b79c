"""What a host can do, as `hotset probe` measured it; the plan reads it. File: docs/reference/commands/probe.md."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hotset.errors import FormatError, StorageError

FORMAT_VERSION = 4
_MOST_BYTES = 1 << 20  # of the file; a full probe takes some ten KB
_LARGE = 1 << 20  # bytes of a read in order, as probed
_OPTIONAL = (
    "weight_bytes_per_s", "neuron_bytes_per_s", "check_bytes_per_s", "placed_reads_per_s", "busy_seq_bytes_per_s",
    "busy_work_share", "layer_s", "vector_s",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates of one host and one file system. Tables ascend by key."""

    threads: int  # CPUs this process may use
    seq_bytes_per_s: float  # large reads in rising order, best depth
    random_reads_per_s: Mapping[int, float]  # by block bytes, each at its best depth
    best_depth: Mapping[int, int]  # by block bytes: the least depth within 5 % of the best
    cpu_us_per_read: Mapping[int, float]  # by block bytes: user and kernel time of a random read at the best depth
    memory_bytes_per_s: Mapping[int, float]  # by threads, streaming
    int8_gmac_per_s: Mapping[int, float]  # by threads: 4-bit weights, 8-bit activations, 16 tokens at once
    backend: str = "pread"  # the faster one: "io_uring" or "pread"
    direct: bool = True  # False: no direct I/O here, so what was measured is the page cache
    # What decode of one sequence gets through, by threads; empty: not measured.
    weight_bytes_per_s: Mapping[int, float] = field(default_factory=dict)  # matrices of 4-bit weights
    neuron_bytes_per_s: Mapping[int, float] = field(default_factory=dict)  # 4-bit vectors of neurons that lie apart
    check_bytes_per_s: Mapping[int, float] = field(default_factory=dict)  # checksums of what was read
    # By block bytes: random reads into more memory than the caches hold, as neurons go to it; empty: not measured.
    placed_reads_per_s: Mapping[int, float] = field(default_factory=dict)
    # Reads in order beside so many computing threads, one of which sends and takes them; what is left of their speed.
    busy_seq_bytes_per_s: Mapping[int, float] = field(default_factory=dict)
    busy_work_share: Mapping[int, float] = field(default_factory=dict)
    # Of one sequence, by threads: of a layer besides its weights, of a neuron's vector besides its bytes.
    layer_s: Mapping[int, float] = field(default_factory=dict)
    vector_s: Mapping[int, float] = field(default_factory=dict)
    cache_bytes: int = 1  # of the last level: what is no larger need not come from memory for every token

    def reads_per_s(self, block_bytes: int) -> float:
        """Random reads of a size that need not be in the table.

        Between two sizes the time of a read is taken as linear in its bytes; beyond the largest, bytes/s stay.
        """
        return _between(self.random_reads_per_s, block_bytes)

    def read_seconds(self, block_bytes: int) -> float:
        """The drive's share of its time that a read of this size takes, others beside it."""
        return 1 / self.reads_per_s(block_bytes)

    def drive_seconds(self, requests: float, read_bytes: float) -> float:
        """That so many requests take, each taken as one of the mean size, into memory that no cache holds."""
        table = self.placed_reads_per_s or self.random_reads_per_s
        return requests / _between(table, round(read_bytes / requests)) if requests else 0.0

    def least_drive_seconds(self, requests: float, read_bytes: float, least: int) -> float:
        """Less than which no mix of so many requests takes, none of which is smaller than `least` bytes.

        Of all mixes of one mean size the fastest is on the lower convex hull of time over size.
        """
        if not requests:
            return 0.0
        sizes = [least, *(size for size in self.random_reads_per_s if size > least)]
        times = [
            (size, 1 / max(self.reads_per_s(size), self.seq_bytes_per_s / size * (size >= _LARGE))) for size in sizes
        ]
        size = max(read_bytes / requests, float(least))
        if size >= times[-1][0]:
            return requests * times[-1][1] * size / times[-1][0]
        return requests * min(
            low_s + (high_s - low_s) * (size - low) / (high - low)
            for low, low_s in times
            for high, high_s in times
            if low <= size < high
        )

    def read_cpu_s(self, requests: float, read_bytes: float) -> float:
        """Of cores, to issue and take so many requests: those of the nearest size that was measured."""
        if not requests:
            return 0.0
        nearest = min(self.cpu_us_per_read, key=lambda size: abs(size - read_bytes / requests))
        return requests * self.cpu_us_per_read[nearest] * 1e-6

    def in_order_seconds(self, read_bytes: float, work_s: float, threads: int) -> float:
        """That reads in order take beside `work_s` seconds of computing: both slowed until one of them ends.

        They go into memory that no cache holds.
        """
        alone = self.seq_bytes_per_s
        if self.placed_reads_per_s:
            alone = min(alone, _between(self.placed_reads_per_s, _LARGE) * _LARGE)
        together = self.busy_rate(threads)
        share = _at(self.busy_work_share, threads) if self.busy_work_share else 1.0
        shared_s = min(read_bytes / together, work_s / share)
        left_s = max((read_bytes - shared_s * together) / alone, work_s - shared_s * share)
        return shared_s + max(left_s, 0.0)

    def busy_rate(self, threads: int) -> float:
        """Bytes/s of reads in order beside computing."""
        return _at(self.busy_seq_bytes_per_s, threads) if self.busy_seq_bytes_per_s else self.seq_bytes_per_s

    def memory_rate(self, threads: int) -> float:
        """Bytes/s that `threads` threads stream; the nearest lower number measured, else the least."""
        return _at(self.memory_bytes_per_s, threads)

    def weight_rate(self, threads: int) -> float:
        """Bytes/s of matrices that decode streams; where not measured, what the memory gives."""
        return _at(self.weight_bytes_per_s or self.memory_bytes_per_s, threads)

    def neuron_rate(self, threads: int) -> float:
        """Bytes/s of neurons in memory that `threads` threads compute; where not measured, what the memory gives."""
        return _at(self.neuron_bytes_per_s or self.memory_bytes_per_s, threads)

    def check_rate(self, threads: int) -> float:
        """Bytes/s of checksums; where not measured, what the memory gives."""
        return _at(self.check_bytes_per_s or self.memory_bytes_per_s, threads)

    def layer_seconds(self, threads: int) -> float:
        """Of a layer besides its weights; where not measured, none."""
        return _at(self.layer_s, threads) if self.layer_s else 0.0

    def vector_seconds(self, threads: int) -> float:
        """Of a neuron's vector besides its bytes; where not measured, none."""
        return _at(self.vector_s, threads) if self.vector_s else 0.0

    def gmac_rate(self, threads: int) -> float:
        """10^9 multiply-adds/s of `threads` threads; the nearest lower number measured, else the least."""
        return _at(self.int8_gmac_per_s, threads)

    def as_json(self) -> dict[str, Any]:
        return {
            f.name: {str(k): v for k, v in value.items()} if isinstance(value, Mapping) else value
            for f in fields(self)
            for value in [getattr(self, f.name)]
        }


def _between(reads_per_s: Mapping[int, float], block_bytes: int) -> float:
    sizes = list(reads_per_s)
    at = bisect_left(sizes, block_bytes)
    if at == 0:
        return reads_per_s[sizes[0]]
    if at == len(sizes):
        return reads_per_s[sizes[-1]] * sizes[-1] / block_bytes
    low, high = sizes[at - 1], sizes[at]
    share = (block_bytes - low) / (high - low)
    return 1 / ((1 - share) / reads_per_s[low] + share / reads_per_s[high])


def _at(table: Mapping[int, float], threads: int) -> float:
    return table[max((n for n in table if n <= threads), default=min(table))]


def load_rates(path: Path) -> Rates:
    """The rates in a probe's result.

    Raises: StorageError if the file cannot be read; FormatError if it is no probe of this version.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise FormatError(f"{path} has {path.stat().st_size} bytes; a probe has at most {_MOST_BYTES}")
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}; run `hotset probe`") from None
    except (ValueError, RecursionError):
        raise FormatError(f"{path} is no JSON; remove it and run `hotset probe`") from None
    version = data.get("format_version") if isinstance(data, dict) else None
    if type(version) is not int or version != FORMAT_VERSION:
        raise FormatError(f"{path} is a probe of version {version!a:.40}, wanted {FORMAT_VERSION}; run `hotset probe`")
    return rates_from_json(data.get("rates"), str(path))


def rates_from_json(value: object, source: str) -> Rates:
    """What `Rates.as_json` gave. Raises FormatError naming the field that cannot be."""
    wanted = {f.name: f.type for f in fields(Rates)}
    if not isinstance(value, dict) or value.keys() != wanted.keys():
        raise FormatError(f"{source}: 'rates' must have exactly {', '.join(wanted)}; run `hotset probe --refresh`")
    return Rates(
        **{
            name: _parsed(value[name], str(kind), f"{source}: {name}", name in _OPTIONAL)
            for name, kind in wanted.items()
        }
    )


def _parsed(value: object, kind: str, where: str, optional: bool) -> Any:
    if not kind.startswith("Mapping"):
        return _number(value, kind, where)
    if not isinstance(value, dict) or not (value or optional) or not all(k.isdecimal() and len(k) < 16 for k in value):
        raise FormatError(f"{where} must map whole numbers to rates; run `hotset probe --refresh`")
    of = "int" if kind.endswith("int]") else "float"
    return {int(k): _number(value[k], of, f"{where}[{k}]") for k in sorted(value, key=int)}


def _number(value: object, kind: str, where: str) -> Any:
    if kind in ("bool", "str"):
        fine = type(value).__name__ == kind
    else:
        numeric = type(value) is int or (kind == "float" and type(value) is float)
        fine = numeric and isinstance(value, (int, float)) and 0 < value < 1e18
    if not fine:
        raise FormatError(f"{where} is {value!a:.60}, wanted a {kind}; run `hotset probe --refresh`")
    return float(value) if kind == "float" and isinstance(value, int) else value
