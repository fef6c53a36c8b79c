"""Reading files whose contents are not trusted."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NoReturn

from hotset.errors import FormatError, StorageError

Json = dict[str, Any]


def quoted(text: str, limit: int = 80) -> str:
    """Text from a file, safe to print and short."""
    shown = ascii(text[:limit]) if not text.isprintable() else repr(text[:limit])
    return shown if len(text) <= limit else f"{shown}…"


def file_bytes(path: Path) -> int:
    """Size of a regular file. Raises StorageError if there is none."""
    try:
        if path.is_dir():
            raise StorageError(f"{path} is a folder; a file was wanted")
        return path.stat().st_size
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise storage_error(path, "cannot be opened", error) from None


def read_at(path: Path, offset: int, count: int) -> bytes:
    """Exactly `count` bytes from `offset`. Raises StorageError on a failed or short read."""
    try:
        with path.open("rb", buffering=0) as file:
            data = _read_fully(file.fileno(), offset, count)
    except OSError as error:
        raise storage_error(path, f"cannot be read at offset {offset}", error) from None
    if len(data) != count:
        raise StorageError(f"{path}: read {len(data)} bytes at offset {offset}, wanted {count}; the file is truncated")
    return data


def read_whole(path: Path) -> bytes:
    """A small file. Raises StorageError."""
    return read_at(path, 0, file_bytes(path))


def _read_fully(fd: int, offset: int, count: int) -> bytes:
    parts: list[bytes] = []
    while count > 0:
        part = os.pread(fd, min(count, 1 << 30), offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
        count -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def sha256(path: Path) -> str:
    """Of a file of any size, which is read in pieces. Raises StorageError."""
    try:
        with path.open("rb", buffering=0) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise storage_error(path, "cannot be read", error) from None


def storage_error(path: Path | str, what: str, error: OSError) -> StorageError:
    return StorageError(f"{path} {what}: {error.strerror or error}")


def parse_json(data: bytes, what: str) -> Json:
    """A JSON object in UTF-8 without duplicate keys, NaN or Infinity. `what` names it in the FormatError."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise FormatError(f"{what} is not usable JSON: nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, a number of too many digits
        raise FormatError(f"{what} is not valid JSON: {_brief(error)}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{what} holds a JSON {type(value).__name__}; an object was wanted")
    return value


def read_json(path: Path, limit: int = 64 << 20) -> Json:
    """The JSON object in a file of at most `limit` bytes."""
    size = file_bytes(path)
    if size > limit:
        raise FormatError(f"{path} has {size} bytes; at most {limit} are sensible for this file")
    return parse_json(read_at(path, 0, size), str(path))


def is_count(value: object) -> bool:
    """A JSON integer from 0 to 2^63 - 1 (true and 1.0 are none)."""
    return type(value) is int and 0 <= value < 1 << 63


def _brief(error: ValueError) -> str:
    return str(error).partition("\n")[0][:160]


def _unique(pairs: list[tuple[str, Any]]) -> Json:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {quoted(key)} stands twice")
            seen.add(key)
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
