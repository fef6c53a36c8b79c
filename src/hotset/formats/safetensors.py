"""Strict reader of safetensors headers and of folders of shards.

Source: README of github.com/huggingface/safetensors: u64 header length, JSON header, data. Tensors must lie one after
the other and fill the data exactly, so no byte is read twice and none is hidden.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotset.errors import FormatError
from hotset.formats.files import Json, file_bytes, is_count, parse_json, quoted, read_at, read_json

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
# 32 MiB describe 250,000 tensors; the reference allows 100 MB, which can grow to gigabytes of Python objects.
MAX_HEADER_BYTES = 32 << 20
MAX_DIMS = 8

DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of one file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file
    bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    entries: dict[str, Entry]  # in the order of their data
    metadata: dict[str, str]
    data_offset: int  # bytes from the start of the file to the first tensor


def read_header(path: Path) -> Header:
    """Reads and checks everything but the data itself.

    Raises: StorageError if the file cannot be read, FormatError naming what is wrong in it.
    """
    size = file_bytes(path)
    if size < 8:
        raise FormatError(f"{path} has {size} bytes; a safetensors file has at least 8")
    length = int.from_bytes(read_at(path, 0, 8), "little")
    if length > size - 8:
        raise FormatError(
            f"{path}: the header claims {length} bytes, the file has {size - 8} left; not safetensors, or cut"
        )
    if length > MAX_HEADER_BYTES:
        raise FormatError(f"{path}: the header claims {length} bytes; at most {MAX_HEADER_BYTES} are allowed")
    raw = read_at(path, 8, length)
    if not raw.startswith(b"{"):
        raise FormatError(f"{path}: the header starts with {raw[:1]!r}; '{{' was wanted; is this a safetensors file?")
    header = parse_json(raw, f"{path}: header")
    metadata = _metadata(path, header.pop("__metadata__", {}))
    entries = {name: _entry(path, name, value, 8 + length) for name, value in header.items()}
    return Header(_contiguous(path, entries, 8 + length, size), metadata, 8 + length)


def _metadata(path: Path, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise FormatError(f"{path}: __metadata__ must map text to text")
    return value


def _entry(path: Path, name: str, value: Any, data_offset: int) -> Entry:
    where = f"{path}: tensor {quoted(name)}"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{where}: the entry must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise FormatError(f"{where}: dtype {quoted(str(dtype))} is not one of {', '.join(DTYPE_BYTES)}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMS or not all(map(is_count, shape)):
        raise FormatError(f"{where}: shape {quoted(str(shape))} is not a list of at most {MAX_DIMS} sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_count, offsets)):
        raise FormatError(f"{where}: data_offsets {quoted(str(offsets))} are not two byte positions")
    begin, end = offsets
    wanted = math.prod(shape) * DTYPE_BYTES[dtype]
    if end - begin != wanted:
        raise FormatError(f"{where}: data_offsets span {end - begin} bytes; {dtype} {shape} takes {wanted}")
    return Entry(dtype, tuple(shape), data_offset + begin, wanted)


def _contiguous(path: Path, entries: dict[str, Entry], position: int, size: int) -> dict[str, Entry]:
    ordered = sorted(entries.items(), key=lambda item: (item[1].offset, item[1].bytes))
    for name, entry in ordered:
        if entry.offset != position:
            what = "overlaps the tensor before it" if entry.offset < position else "leaves a hole before it"
            raise FormatError(
                f"{path}: tensor {quoted(name)} starts at byte {entry.offset}, wanted {position}; it {what}"
            )
        position += entry.bytes
        if position > size:
            raise FormatError(
                f"{path}: tensor {quoted(name)} ends at byte {position}, the file has {size}; "
                "it is truncated: download or copy it again"
            )
    if position != size:
        raise FormatError(f"{path}: {size - position} bytes follow the last tensor; the header and the data disagree")
    return dict(ordered)


def read_folder(folder: Path) -> dict[str, tuple[Path, Entry]]:
    """All tensors of a checkpoint: of the shards in the index, else of model.safetensors, else of the only file.

    Raises: StorageError, FormatError (a shard that is missing, a tensor in two shards or not where the index says).
    """
    if (folder / INDEX_FILE).is_file():
        return _read_shards(folder, read_json(folder / INDEX_FILE))
    path = folder / SINGLE_FILE
    if not path.is_file():
        files = sorted(folder.glob("*.safetensors"))
        if len(files) != 1:
            raise FormatError(
                f"{folder} has {len(files)} .safetensors files and no {INDEX_FILE} that says how they belong together"
            )
        path = files[0]
    return {name: (path, entry) for name, entry in read_header(path).entries.items()}


def _read_shards(folder: Path, index: Json) -> dict[str, tuple[Path, Entry]]:
    where = folder / INDEX_FILE
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{where} has no weight_map from tensors to files")
    tensors: dict[str, tuple[Path, Entry]] = {}
    for file in dict.fromkeys(_shard_name(where, value) for value in weight_map.values()):
        for name, entry in read_header(folder / file).entries.items():
            if name in tensors:
                raise FormatError(f"tensor {quoted(name)} is in two shards: {tensors[name][0]} and {folder / file}")
            tensors[name] = (folder / file, entry)
    for name, file in weight_map.items():
        if name not in tensors or tensors[name][0].name != file:
            raise FormatError(f"{where} says tensor {quoted(name)} is in {file}; it is not")
    return tensors


def _shard_name(where: Path, value: Any) -> str:
    # A bare file name: an index must not reach outside its folder.
    if not isinstance(value, str) or not value.endswith(".safetensors") or Path(value).name != value or "\0" in value:
        raise FormatError(f"{where}: {quoted(str(value))} is not the name of a .safetensors file")
    return value
