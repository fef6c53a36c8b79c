"""Writes GGUF files, version 3, little endian, tensor by tensor."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from hotset.formats.files import storage_error
from hotset.formats.gguf import DEFAULT_ALIGNMENT, MAGIC, TYPE_BLOCK, TYPES

_TYPE_ID = {name: number for number, (name, _, _) in TYPES.items()}
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY, _INT64 = 4, 5, 6, 7, 8, 9, 11


@dataclass(frozen=True, slots=True)
class NewTensor:
    name: str
    type: str  # "Q4_0", ...
    shape: tuple[int, ...]  # outermost first

    @property
    def bytes(self) -> int:
        elements, size = TYPE_BLOCK[self.type]
        return math.prod(self.shape) // elements * size


class GgufWriter:
    """Writes the header, then each tensor's bytes in the order given; the file appears at `path` when it is whole.

    A context manager; leaving it with an exception removes what was written. Raises StorageError.
    """

    def __init__(self, path: Path, metadata: Mapping[str, Any], tensors: Sequence[NewTensor]) -> None:
        self._path, self._partial = path, path.with_name(f"{path.name}.partial")
        self._left = [t.bytes for t in tensors]
        self._header = header(metadata, tensors)
        self._file: BinaryIO

    def __enter__(self) -> GgufWriter:
        try:
            self._partial.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._partial.open("wb")
        except OSError as error:
            raise storage_error(self._partial, "cannot be written", error) from None
        try:
            self._file.write(self._header)
        except OSError as error:
            self.__exit__(type(error), error, None)
            raise storage_error(self._partial, "cannot be written", error) from None
        return self

    def write(self, chunks: Iterable[Any]) -> None:
        """The next tensor, in pieces that have a buffer."""
        wanted, written = self._left.pop(0), 0
        try:
            for chunk in chunks:
                written += self._file.write(chunk)
            self._file.write(bytes(-wanted % DEFAULT_ALIGNMENT))
        except OSError as error:
            raise storage_error(self._partial, "cannot be written", error) from None
        assert written == wanted, f"{written} bytes written, {wanted} announced"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()  # writes what is buffered, also what could not be written before
            if kind is None and not self._left:
                self._partial.replace(self._path)
        except OSError as failed:
            if kind is None:
                raise storage_error(self._partial, "cannot be written", failed) from None
        finally:
            with suppress(OSError):  # the error that ended it is the one to tell
                self._partial.unlink(missing_ok=True)  # not there if it has its name


def header(metadata: Mapping[str, Any], tensors: Sequence[NewTensor]) -> bytes:
    """Everything before the data, padded to the alignment."""
    parts = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_text(key), _value(value)]
    position = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        parts.append(_text(tensor.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
        parts.append(struct.pack("<IQ", _TYPE_ID[tensor.type], position))
        position += -(-tensor.bytes // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT
    raw = b"".join(parts)
    return raw + bytes(-len(raw) % DEFAULT_ALIGNMENT)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    kind, raw = _encoded(value)
    return struct.pack("<I", kind) + raw


def _encoded(value: Any) -> tuple[int, bytes]:
    """Type id and bytes; Python's types choose GGUF's, integers 32 bits where they fit."""
    if isinstance(value, bool):
        return _BOOL, struct.pack("<B", value)
    if isinstance(value, str):
        return _STRING, _text(value)
    if isinstance(value, float):
        return _FLOAT32, struct.pack("<f", value)
    if isinstance(value, int):
        return (_UINT32, struct.pack("<I", value)) if 0 <= value < 1 << 32 else (_INT64, struct.pack("<q", value))
    kind = _encoded(value[0])[0] if value else _STRING
    if kind == _UINT32:  # llama.cpp wants its arrays of integers signed
        return _ARRAY, struct.pack(f"<IQ{len(value)}i", _INT32, len(value), *value)
    return _ARRAY, struct.pack("<IQ", kind, len(value)) + b"".join(_encoded(item)[1] for item in value)
