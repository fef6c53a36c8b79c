"""One weight file of a store, written front to back with its checksums."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hotset.formats.store import ALIGNMENT, BLOCK_BYTES, FORMAT_VERSION, FileSum, tensor_bytes


@dataclass(frozen=True, slots=True)
class StoreTensor:
    """A tensor to be written."""

    name: str
    fmt: str
    rows: int
    cols: int  # 0: an array
    neurons: bool  # goes to neurons.safetensors

    @property
    def bytes(self) -> int:
        return tensor_bytes(self.fmt, self.rows, self.cols)

    @property
    def padded_bytes(self) -> int:
        return -(-self.bytes // ALIGNMENT) * ALIGNMENT


class BlockSums:
    """CRC-32C of every MiB of bytes that come in pieces of any size."""

    def __init__(self) -> None:
        self._sums: list[int] = []
        self._used = 0  # bytes of the block that is not full yet
        self._crc = 0

    def add(self, data: memoryview) -> None:
        from hotset._core import crc32c

        while data:
            part = data[: BLOCK_BYTES - self._used]
            self._crc = crc32c(part, self._crc)
            self._used += len(part)
            if self._used == BLOCK_BYTES:
                self._sums.append(self._crc)
                self._used = self._crc = 0
            data = data[len(part) :]

    def sums(self) -> tuple[int, ...]:
        return tuple(self._sums + [self._crc] * (self._used > 0))


class WeightFile:
    """Header first, then every tensor in the order given; resumable. Raises OSError when the drive does."""

    def __init__(self, path: Path, tensors: Sequence[StoreTensor], metadata: Mapping[str, str] | None = None) -> None:
        header = _header(tensors, metadata or {})
        self._total = len(header) + sum(t.padded_bytes for t in tensors)
        self._position = 0  # everything before it is final
        self._sums = BlockSums()
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b", buffering=0)
        try:
            self.write(memoryview(header))
        except BaseException:
            self.abandon()
            raise

    @property
    def bytes_left(self) -> int:
        return self._total - self._position

    def write(self, data: memoryview) -> None:
        self._sums.add(data)
        while data:
            count = os.pwrite(self._file.fileno(), data, self._position)
            self._position += count
            data = data[count:]

    def accept(self, tensor: StoreTensor, crc: object) -> bool:
        """Moves past a tensor written earlier if all its bytes are there and have that checksum."""
        if self._crc_at(self._position, tensor.bytes) != crc:
            return False
        end = self._position + tensor.padded_bytes
        if os.fstat(self._file.fileno()).st_size < end:
            return False
        while self._position < end:
            part = os.pread(self._file.fileno(), min(BLOCK_BYTES, end - self._position), self._position)
            self._sums.add(memoryview(part))
            self._position += len(part)
        return True

    def truncate(self) -> None:
        """Cuts off whatever follows the last tensor accepted or written."""
        self._file.truncate(self._position)

    def close(self) -> FileSum:
        """Makes the finished file durable."""
        assert self.bytes_left == 0
        os.fsync(self._file.fileno())
        self._file.close()
        return FileSum(self._total, self._sums.sums())

    def abandon(self) -> None:
        self._file.close()

    def _crc_at(self, offset: int, count: int) -> int:
        from hotset._core import crc32c

        crc = 0
        while count > 0:
            part = os.pread(self._file.fileno(), min(BLOCK_BYTES, count), offset)
            if not part:
                return -1
            crc = crc32c(part, crc)
            offset += len(part)
            count -= len(part)
        return crc


def _header(tensors: Sequence[StoreTensor], metadata: Mapping[str, str]) -> bytes:
    """The safetensors header, padded so that data starts at a multiple of ALIGNMENT; metadata: more of it."""
    described = {
        t.name: {"format": t.fmt, "shape": [t.rows, t.cols] if t.cols else [t.rows], "bytes": t.bytes} for t in tensors
    }
    section = json.dumps({"format_version": FORMAT_VERSION, "tensors": described}, separators=(",", ":"))
    header: dict[str, object] = {"__metadata__": {**metadata, "hotset": section}}
    position = 0
    for t in tensors:
        end = position + t.padded_bytes
        header[t.name] = {"dtype": "U8", "shape": [t.padded_bytes], "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    padded = -(-(8 + len(text)) // ALIGNMENT) * ALIGNMENT
    return (padded - 8).to_bytes(8, "little") + text.ljust(padded - 8)
