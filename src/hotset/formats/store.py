"""Opens a store (docs/reference/store.md) and checks it.

Opening reads config, manifest and the two headers and compares sizes, but no weight: it stands in the way of the first
token. `Store.verify` reads everything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hotset.errors import FormatError, StorageError
from hotset.formats.files import Json, file_bytes, is_count, parse_json, quoted, read_at, read_json
from hotset.formats.neurons import BUNDLES, ORDER, SUMS, NeuronInfo, neuron_info
from hotset.formats.progress import Progress, silent
from hotset.formats.safetensors import Entry, Header, read_header
from hotset.quant import FORMATS, packed_bytes

FORMAT_VERSION = 1
ALIGNMENT = 4096  # of the data and of each tensor: the largest block that direct I/O asks for
BLOCK_BYTES = 1 << 20  # one checksum each
CONFIG, MANIFEST = "config.json", "manifest.json"
RESIDENT, NEURONS = "resident.safetensors", "neurons.safetensors"
WEIGHT_FILES = (RESIDENT, NEURONS)
STORED = (*FORMATS, BUNDLES, ORDER, SUMS)
ARRAYS = ("f32", ORDER, SUMS)  # plain little-endian arrays of 4-byte numbers, [n]
_PUBLISHED = re.compile(r"hotset\.layers\.\d+\.predictor_(in|out)")


@dataclass(frozen=True, slots=True)
class StoreEntry:
    """Where one tensor lies."""

    path: str
    offset: int  # bytes from the start of the file; a multiple of 4096
    bytes: int  # without the padding
    fmt: str
    rows: int
    cols: int  # 0: an array


def tensor_bytes(fmt: str, rows: int, cols: int) -> int:
    """Bytes of a tensor in the store: bundles [neurons, stride], an array [rows] (cols 0) or a packed matrix."""
    return rows * cols if fmt == BUNDLES else packed_bytes(fmt, rows, cols)


@dataclass(frozen=True, slots=True)
class FileSum:
    """What the manifest says about one file."""

    bytes: int
    crc32c: tuple[int, ...] | None  # one for each MiB; None where only the size is kept


@dataclass(frozen=True, slots=True)
class Store:
    path: Path
    config: Json
    entries: dict[str, StoreEntry]  # by Hugging Face tensor name
    files: dict[str, FileSum]
    neurons: NeuronInfo | None = None  # of a packed store: it has bundles in place of the FFN matrices
    published: Mapping[str, StoreEntry] = field(
        default_factory=dict
    )  # a checkpoint's own predictors; no run reads them

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors that a run may read, padding to 4 KiB left out."""
        return sum(entry.bytes for entry in self.entries.values())

    @property
    def info(self) -> Json:
        """The section that hotset added to config.json: format_version, source, options, quant."""
        section: Json = self.config["hotset"]
        return section

    def verify(self, progress: Progress = silent) -> None:
        """Reads every file and compares it with the manifest.

        Raises: StorageError naming file, offset, got and wanted of the first difference.
        """
        total, done = sum(file.bytes for file in self.files.values()), 0
        for name, wanted in self.files.items():
            path = self.path / name
            _check_size(path, wanted.bytes)
            if wanted.crc32c is not None:
                _check_blocks(path, wanted, progress, done, total)
            done += wanted.bytes
            progress(done, total, name)

    def verify_tensor(self, name: str) -> None:
        """Reads the blocks in which a tensor lies and compares them with the manifest. Raises StorageError."""
        entry = self.published.get(name) or self.entries[name]
        path = Path(entry.path)
        for index in range(entry.offset // BLOCK_BYTES, -(-(entry.offset + entry.bytes) // BLOCK_BYTES)):
            _check_block(path, self.files[path.name], index)


def is_store(path: Path) -> bool:
    """Whether a folder looks like a store; opening it may still find it damaged."""
    return (path / MANIFEST).is_file() and (path / RESIDENT).is_file()


def open_store(path: Path | str) -> Store:
    """Opens a store without reading weights.

    Raises: StorageError (no folder, a file missing or of the wrong size), FormatError (contents that cannot be right).
    """
    path = Path(path)
    if not path.is_dir():
        raise StorageError(f"{path} is not a folder; a store was wanted: make one with `hotset convert SOURCE {path}`")
    if not (path / MANIFEST).is_file():
        raise StorageError(f"{path} has no {MANIFEST}, so it is not a finished store; run `hotset convert` (again)")
    files = _read_manifest(path / MANIFEST)
    config = read_json(path / CONFIG)
    section = config.get("hotset")
    if not isinstance(section, dict):
        raise FormatError(f"{path / CONFIG} has no section 'hotset'; it was replaced after conversion: convert again")
    _check_version(path / CONFIG, section)
    entries: dict[str, StoreEntry] = {}
    published: dict[str, StoreEntry] = {}
    for name in WEIGHT_FILES:
        _check_size(path / name, files[name].bytes)
        for tensor, entry in read_weights(path / name).items():
            if tensor in entries or tensor in published:
                raise FormatError(f"tensor {quoted(tensor)} is in both weight files of {path}")
            (published if _PUBLISHED.fullmatch(tensor) else entries)[tensor] = entry
    return Store(path, config, entries, files, neuron_info(path, section, entries), published)


def manifest_json(files: dict[str, FileSum]) -> bytes:
    """The text of manifest.json."""
    listed = {
        name: {"bytes": file.bytes} | ({} if file.crc32c is None else {"crc32c": list(file.crc32c)})
        for name, file in files.items()
    }
    manifest = {"format_version": FORMAT_VERSION, "block_bytes": BLOCK_BYTES, "files": listed}
    return json.dumps(manifest).encode() + b"\n"


def _check_version(path: Path, section: Json) -> None:
    version = section.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise FormatError(
            f"{path} says store format version {quoted(str(version))}; this hotset reads {FORMAT_VERSION}: convert it "
            "again"
        )


def _check_size(path: Path, wanted: int) -> None:
    if (got := file_bytes(path)) != wanted:
        raise StorageError(f"{path} has {got} bytes, the manifest says {wanted}; copy it again or convert again")


def _read_manifest(path: Path) -> dict[str, FileSum]:
    manifest = read_json(path)
    _check_version(path, manifest)
    if manifest.get("block_bytes") != BLOCK_BYTES:
        raise FormatError(f"{path}: block_bytes is {quoted(str(manifest.get('block_bytes')))}, wanted {BLOCK_BYTES}")
    listed = manifest.get("files")
    if not isinstance(listed, dict):
        raise FormatError(f"{path} has no list of files")
    files = {name: _file_sum(path, name, value) for name, value in listed.items()}
    for name in WEIGHT_FILES:
        if name not in files or files[name].crc32c is None:
            raise FormatError(f"{path} does not list {name} with its checksums")
    return files


def _file_sum(path: Path, name: str, value: Any) -> FileSum:
    if Path(name).name != name or "\0" in name:
        raise FormatError(f"{path}: {quoted(name)} is not a file name")
    if not isinstance(value, dict) or not is_count(value.get("bytes")):
        raise FormatError(f"{path}: the entry of {quoted(name)} has no size")
    size, sums = value["bytes"], value.get("crc32c")
    if sums is None:
        return FileSum(size, None)
    blocks = -(-size // BLOCK_BYTES)
    if not isinstance(sums, list) or len(sums) != blocks or not all(is_count(s) and s < 1 << 32 for s in sums):
        raise FormatError(f"{path}: {quoted(name)} needs {blocks} checksums, one for each MiB of {size} bytes")
    return FileSum(size, tuple(sums))


def read_weights(path: Path) -> dict[str, StoreEntry]:
    """The tensors of one weight file. Raises StorageError, FormatError."""
    header = read_header(path)
    if header.data_offset % ALIGNMENT:
        raise FormatError(f"{path}: data starts at byte {header.data_offset}, not a multiple of {ALIGNMENT}")
    described = _described(path, header)
    if described.keys() != header.entries.keys():
        odd = sorted(described.keys() ^ header.entries.keys())[0]
        raise FormatError(f"{path}: tensor {quoted(odd)} is described but not stored, or stored but not described")
    return {name: _store_entry(path, name, entry, described[name]) for name, entry in header.entries.items()}


def _described(path: Path, header: Header) -> Json:
    if "hotset" not in header.metadata:
        raise FormatError(f"{path} is a safetensors file, but not one of a store: its metadata has no 'hotset'")
    section = parse_json(header.metadata["hotset"].encode(errors="replace"), f"{path}: metadata 'hotset'")
    _check_version(path, section)
    tensors = section.get("tensors")
    if not isinstance(tensors, dict):
        raise FormatError(f"{path}: metadata 'hotset' has no 'tensors'")
    return tensors


def _store_entry(path: Path, name: str, entry: Entry, described: Any) -> StoreEntry:
    where = f"{path}: tensor {quoted(name)}"
    if not isinstance(described, dict) or described.keys() != {"format", "shape", "bytes"}:
        raise FormatError(f"{where}: the description must have exactly format, shape and bytes")
    fmt, shape, size = described["format"], described["shape"], described["bytes"]
    if not isinstance(fmt, str) or fmt not in STORED:
        raise FormatError(f"{where}: format {quoted(str(fmt))} is not one of {', '.join(STORED)}")
    if not isinstance(shape, list) or len(shape) not in (1, 2) or not all(is_count(n) and n > 0 for n in shape):
        raise FormatError(f"{where}: shape {quoted(str(shape))} is neither [n] nor [rows, cols]")
    rows, cols = (*shape, 0)[:2]
    if cols == 0 and fmt not in ARRAYS:
        raise FormatError(f"{where}: a vector of format {fmt}; vectors are f32")
    if cols and fmt in (ORDER, SUMS):
        raise FormatError(f"{where}: {fmt} {shape}; such tensors have one dimension")
    wanted = tensor_bytes(fmt, rows, cols)
    padded = -(-wanted // ALIGNMENT) * ALIGNMENT
    if size != wanted or isinstance(size, bool) or (entry.dtype, entry.shape) != ("U8", (padded,)):
        raise FormatError(
            f"{where}: {entry.dtype} {list(entry.shape)} with {quoted(str(size))} bytes in use; "
            f"{fmt} {shape} takes U8 [{padded}] with {wanted}"
        )
    return StoreEntry(str(path), entry.offset, wanted, fmt, rows, cols)


def _check_blocks(path: Path, wanted: FileSum, progress: Progress, done: int, total: int) -> None:
    assert wanted.crc32c is not None
    for index in range(len(wanted.crc32c)):
        _check_block(path, wanted, index)
        progress(done + index * BLOCK_BYTES, total, path.name)


def _check_block(path: Path, wanted: FileSum, index: int) -> None:
    from hotset._core import crc32c

    assert wanted.crc32c is not None
    offset, expected = index * BLOCK_BYTES, wanted.crc32c[index]
    got = crc32c(read_at(path, offset, min(BLOCK_BYTES, wanted.bytes - offset)))
    if got != expected:
        raise StorageError(
            f"{path}: the block at offset {offset} has checksum {got:08x}, wanted {expected:08x}; the drive or the "
            "copy is damaged: copy the store again or convert again"
        )
