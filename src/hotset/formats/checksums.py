"""CRC-32C of everything in a safetensors file beside a store, kept in its own metadata.

`crc32c` there is JSON: for every tensor the checksum of its bytes, padding included, and for every other entry of the
metadata that of its text, eight hex digits each. Files written before there were checksums are taken as they are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from hotset.errors import FormatError, StorageError
from hotset.formats.files import Json, parse_json, storage_error
from hotset.formats.safetensors import Entry, Header, read_header

SUMS = "crc32c"
_PIECE = 1 << 20  # bytes read at a time


def reserved(names: Iterable[str]) -> str:
    """What stands under SUMS until `seal` knows the checksums of these tensors and entries of the metadata."""
    return json.dumps(dict.fromkeys(names, "0" * 8))


def seal(path: Path) -> None:
    """Fills the checksums of a finished file in, where `reserved` keeps their place. Raises OSError, StorageError."""
    header = read_header(path)
    empty = header.metadata[SUMS]
    sums = json.dumps({name: _sum(path, header, name) for name in json.loads(empty)})
    with path.open("r+b") as file:
        raw = file.read(header.data_offset)
        file.seek(0)
        file.write(raw.replace(json.dumps(empty).encode(), json.dumps(sums).encode()))
        os.fsync(file.fileno())


@contextmanager
def sealed(path: Path) -> Iterator[BinaryIO]:
    """A file to write, header and all: at `path` with its checksums in the end, or not at all. Raises StorageError."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        seal(partial)
        partial.replace(path)
    except OSError as error:
        raise storage_error(path, "cannot be written", error) from None
    finally:
        partial.unlink(missing_ok=True)


def verify(path: Path, header: Header, again: str, wanted: Callable[[str], bool] = lambda name: True) -> None:
    """Compares with their checksums the tensors and the metadata whose names are `wanted`.

    again: what makes the file anew, for messages. Raises: StorageError naming file, tensor, offset, what was got and
    wanted; FormatError if the checksums are not those of this file's contents.
    """
    if SUMS not in header.metadata:
        return
    for name, expected in _sums(path, header, again).items():
        if wanted(name) and (got := _sum(path, header, name)) != expected:
            entry = header.entries.get(name)
            where = f"tensor {name} at offset {entry.offset}" if entry else f"metadata '{name}'"
            raise StorageError(
                f"{path}: {where} has checksum {got}, wanted {expected}; the drive or the copy is damaged: {again}"
            )


def _sums(path: Path, header: Header, again: str) -> Mapping[str, str]:
    found: Json = parse_json(header.metadata[SUMS].encode(errors="replace"), f"{path}: metadata '{SUMS}'")
    if found.keys() != {*header.entries, *header.metadata} - {SUMS}:
        raise FormatError(f"{path}: metadata '{SUMS}' must have a checksum for each of its tensors; {again}")
    return found


def _sum(path: Path, header: Header, name: str) -> str:
    from hotset._core import crc32c

    entry = header.entries.get(name)
    crc = crc32c(header.metadata[name].encode(errors="replace")) if entry is None else _sum_of_data(path, entry)
    return f"{crc:08x}"


def _sum_of_data(path: Path, entry: Entry) -> int:
    """Leaves nothing in the page cache, which a budget does not have room for."""
    from hotset._core import crc32c

    crc = 0
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(entry.offset)
            while data := file.read(min(_PIECE, entry.offset + entry.bytes - file.tell())):
                crc = crc32c(data, crc)
                os.posix_fadvise(file.fileno(), entry.offset, file.tell() - entry.offset, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        raise storage_error(path, f"cannot be read at offset {entry.offset}", error) from None
    return crc
