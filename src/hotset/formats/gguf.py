"""Strict reader of GGUF files, versions 2 and 3, little endian.

Source: the format as docs/gguf.md of github.com/ggml-org/ggml describes it. Every count and length is checked against
the bytes that remain before anything is made of it, so hostile files cost no more time or memory than honest ones.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from hotset.errors import FormatError
from hotset.formats.files import file_bytes, quoted, storage_error

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 16
MAX_HEADER_BYTES = 256 << 20  # metadata and tensor list; the largest vocabularies take 20 MB
MAX_ARRAY_ELEMENTS = 1 << 23  # in all arrays together
MAX_NAME_BYTES = 1 << 16
MAX_DIMS = 4

# Type id: name, elements of a block, bytes of a block.
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
TYPE_BLOCK: dict[str, tuple[int, int]] = {name: (elements, size) for name, elements, size in TYPES.values()}

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    type: str  # "Q4_0", "F32", ...
    shape: tuple[int, ...]  # outermost first, as NumPy and Hugging Face have it; GGUF itself lists the innermost first
    offset: int  # bytes from the start of the file
    bytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    path: Path
    metadata: dict[str, Any]  # numbers, text, booleans, or lists of them
    tensors: dict[str, GgufTensor]
    data_offset: int


def read(path: Path) -> GgufFile:
    """Reads and checks everything but the weights.

    Raises: StorageError if the file cannot be read, FormatError naming what is wrong in it and where.
    """
    if (size := file_bytes(path)) < 24:
        raise FormatError(f"{path} has {size} bytes; a GGUF file has at least 24")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(_Cursor(path, data))
    except OSError as error:
        raise storage_error(path, "cannot be read", error) from None


class _Cursor:
    """A position in the header; every step forward is checked."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size = path, data, len(data)
        self.end = min(self.size, MAX_HEADER_BYTES)
        self.position = 0
        self.elements_left = MAX_ARRAY_ELEMENTS

    def error(self, what: str) -> FormatError:
        return FormatError(f"{self.path}: at byte {self.position}: {what}")

    def need(self, count: int, what: str) -> None:
        if count > self.end - self.position:
            raise self.error(f"{what} takes {count} bytes, {self.end - self.position} are left; truncated or corrupt")

    def scalar(self, code: str, what: str) -> Any:
        return self.scalars(code, 1, what)[0]

    def scalars(self, code: str, count: int, what: str) -> tuple[Any, ...]:
        layout = f"<{count}{code}"
        self.need(struct.calcsize(f"<{code}") * count, what)
        values = struct.unpack_from(layout, self.data, self.position)
        self.position += struct.calcsize(layout)
        return values

    def text(self, what: str, limit: int = MAX_HEADER_BYTES) -> str:
        length = self.scalar("Q", f"the length of {what}")
        if length > limit:
            raise self.error(f"{what} claims {length} bytes; at most {limit} are allowed")
        self.need(length, what)
        raw = self.data[self.position : self.position + length]
        try:
            value = raw.decode()
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8: {error.reason} at byte {error.start}") from None
        self.position += length
        return value

    def texts(self, count: int, what: str) -> list[str]:
        """`text` `count` times, with the checks in one flat loop: vocabularies have 10^5 entries."""
        data, position, end = self.data, self.position, self.end
        unpack = struct.Struct("<Q").unpack_from
        values: list[str] = []
        try:
            for _ in range(count):
                start = position + 8
                position = start + unpack(data, position)[0] if start <= end else end + 1
                if position > end:
                    raise self.error(f"entry {len(values)} of {what} ends after the {end} bytes there are")
                values.append(data[start:position].decode())
        except UnicodeDecodeError as error:
            raise self.error(f"entry {len(values)} of {what} is not UTF-8: {error.reason}") from None
        self.position = position
        return values


def _parse(cursor: _Cursor) -> GgufFile:
    magic = bytes(cursor.scalars("B", 4, "the magic"))
    if magic != MAGIC:
        raise FormatError(f"{cursor.path} starts with {magic!r}; {MAGIC!r} was wanted: not a GGUF file")
    version, tensor_count, pair_count = cursor.scalar("I", "the version"), *cursor.scalars("Q", 2, "the counts")
    if version not in (2, 3):
        if version in (2 << 24, 3 << 24):
            raise FormatError(f"{cursor.path} is a big-endian GGUF; only little-endian ones can be read")
        raise FormatError(f"{cursor.path} is GGUF version {version}; versions 2 and 3 can be read: convert it anew")
    # A pair has at least a length, a type and one byte; a tensor a length, dimensions, a type and an offset.
    for count, least, what in ((pair_count, 13, "metadata pairs"), (tensor_count, 32, "tensors")):
        if count > cursor.end // least:
            raise cursor.error(f"the file claims {count} {what}; its {cursor.size} bytes cannot hold them")
    metadata = _metadata(cursor, pair_count)
    alignment = _alignment(cursor, metadata)
    infos = _tensor_infos(cursor, tensor_count)
    data_offset = -(-cursor.position // alignment) * alignment
    return GgufFile(cursor.path, metadata, _place(cursor, infos, data_offset, alignment), data_offset)


def _metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.text("a metadata key", MAX_NAME_BYTES)
        if key in metadata:
            raise cursor.error(f"metadata key {quoted(key)} stands twice")
        metadata[key] = _value(cursor, cursor.scalar("I", "a value type"), quoted(key))
    return metadata


def _value(cursor: _Cursor, kind: int, what: str) -> Any:
    if kind == _STRING:
        return cursor.text(what)
    if kind != _ARRAY:
        return _numbers(cursor, kind, 1, what)[0]
    kind, count = cursor.scalar("I", f"the element type of {what}"), cursor.scalar("Q", f"the length of {what}")
    if count > cursor.elements_left:
        raise cursor.error(f"{what} claims {count} elements; at most {MAX_ARRAY_ELEMENTS} are allowed in all")
    cursor.elements_left -= count
    if kind == _STRING:
        return cursor.texts(count, what)
    return _numbers(cursor, kind, count, what)


def _numbers(cursor: _Cursor, kind: int, count: int, what: str) -> list[Any]:
    if kind not in _SCALARS:
        raise cursor.error(f"{what} has value type {kind}; there are 0 to 12, and arrays hold no arrays")
    values = list(cursor.scalars(_SCALARS[kind], count, what))
    if kind != _BOOL:
        return values
    if any(v > 1 for v in values):
        raise cursor.error(f"{what} is a boolean other than 0 and 1")
    return [v == 1 for v in values]


def _alignment(cursor: _Cursor, metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or not 8 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise cursor.error(
            f"general.alignment is {quoted(str(value))}; a power of two from 8 to {MAX_ALIGNMENT} was wanted"
        )
    return value


def _tensor_infos(cursor: _Cursor, count: int) -> dict[str, GgufTensor]:
    infos: dict[str, GgufTensor] = {}
    for _ in range(count):
        name = cursor.text("a tensor name", MAX_NAME_BYTES)
        where = f"tensor {quoted(name)}"
        if name in infos:
            raise cursor.error(f"{where} stands twice")
        dims = cursor.scalar("I", f"the dimensions of {where}")
        if not 1 <= dims <= MAX_DIMS:
            raise cursor.error(f"{where} has {dims} dimensions; 1 to {MAX_DIMS} were wanted")
        shape = cursor.scalars("Q", dims, f"the shape of {where}")[::-1]
        type_id, offset = cursor.scalar("I", f"the type of {where}"), cursor.scalar("Q", f"the offset of {where}")
        if type_id not in TYPES:
            raise cursor.error(f"{where} has type {type_id}, which is unknown; re-make the file in a known type")
        infos[name] = _info(cursor, where, TYPES[type_id], shape, offset)
    return infos


def _info(cursor: _Cursor, where: str, kind: tuple[str, int, int], shape: tuple[int, ...], offset: int) -> GgufTensor:
    name, elements, size = kind
    if 0 in shape or shape[-1] % elements:
        raise cursor.error(f"{where} has shape {list(shape)}; {name} rows are multiples of {elements} long, none empty")
    total = math.prod(shape) // elements * size
    if total > cursor.size or offset > cursor.size:
        raise cursor.error(
            f"{where} claims {total} bytes at {offset}, the file has {cursor.size}; truncated or corrupt"
        )
    return GgufTensor(name, shape, offset, total)


def _place(cursor: _Cursor, infos: dict[str, GgufTensor], data_offset: int, alignment: int) -> dict[str, GgufTensor]:
    """Offsets from the start of the file, checked to lie inside it, aligned, without overlap."""
    placed: dict[str, GgufTensor] = {}
    for name, info in infos.items():
        begin = data_offset + info.offset
        if info.offset % alignment:
            raise cursor.error(f"tensor {quoted(name)} starts at {info.offset}, not a multiple of {alignment}")
        if begin + info.bytes > cursor.size:
            raise cursor.error(
                f"tensor {quoted(name)} ends at byte {begin + info.bytes}, the file has {cursor.size}; "
                "it is truncated: download or copy it again"
            )
        placed[name] = GgufTensor(info.type, info.shape, begin, info.bytes)
    ordered = sorted(placed.items(), key=lambda item: item[1].offset)
    for (first, a), (second, b) in pairwise(ordered):
        if a.offset + a.bytes > b.offset:
            raise cursor.error(f"tensors {quoted(first)} and {quoted(second)} overlap at byte {b.offset}")
    return placed
