"""Writes a store so that it is either whole or not there.

Everything goes into a folder `DEST.partial-KEY` beside the destination, which is renamed at the end. `journal.jsonl` in
it gets one line with a checksum for each finished tensor, so a conversion that was stopped goes on after the last
tensor that is whole; it goes only when the store has its name.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from hotset.errors import FormatError, StorageError, UsageError
from hotset.formats.files import Json, parse_json, storage_error
from hotset.formats.store import FORMAT_VERSION, MANIFEST, NEURONS, RESIDENT, WEIGHT_FILES, FileSum, manifest_json
from hotset.formats.store_file import StoreTensor, WeightFile

JOURNAL = "journal.jsonl"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)  # another drive, or no hard links


def partial_folder(dest: Path, key: str) -> Path:
    """Where a conversion into `dest` keeps its unfinished work: beside it, so that renaming is atomic."""
    return dest.with_name(f"{dest.name}.partial-{hashlib.sha256(key.encode()).hexdigest()[:8]}")


@dataclass(frozen=True, slots=True)
class TakenFile:
    """A finished weight file of another store."""

    path: Path
    sums: FileSum


class StoreWriter:
    """One conversion into one destination; a context manager.

    Tensors are written in the order given: `begin`, `append` as often as needed, `finish`; then `commit`. Leaving the
    context without commit keeps the partial folder, unless the disk was full: then it is removed.

    Args:
        dest: folder that the store will be; its parent is made.
        tensors: all tensors, in the order in which they will be written.
        key: what the contents depend on (source and options); a partial folder is resumed only under the same key.
        taken: weight files that another store has already, by name; they are linked, or copied to another drive.
    Raises: StorageError: not enough free space, another process at work, a write that failed.
    """

    def __init__(
        self, dest: Path, tensors: Sequence[StoreTensor], key: str, taken: Mapping[str, TakenFile] | None = None
    ) -> None:
        self.dest, self.folder = dest, partial_folder(dest, key)
        self.done: dict[str, Json] = {}  # finished tensors and the notes given to `finish`
        self._tensors = {t.name: t for t in tensors}
        self._files: dict[str, WeightFile] = {}
        self._taken = dict(taken or {})
        self._journal = -1  # file descriptor
        self._journal_end = 0  # bytes of it that hold
        self._written = self._crc = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lines = self._open_journal(key)
            for name in (file for file in WEIGHT_FILES if file not in self._taken):
                self._files[name] = WeightFile(self.folder / name, [t for t in tensors if _file_of(t) == name])
            self._resume(lines)
            self._check_space()
        except OSError as error:
            self._fail(error)
        except BaseException:  # Ctrl-C: the lock must not outlive the object
            self.close()
            raise

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, name: str) -> None:
        self._current, self._written, self._crc = self._tensors[name], 0, 0

    def append(self, data: NDArray[np.uint8]) -> None:
        """Appends packed bytes of the tensor begun."""
        from hotset._core import crc32c

        self._crc = crc32c(data, self._crc)
        self._written += data.nbytes
        self._write(data.data)

    def finish(self, note: Mapping[str, Any]) -> None:
        """Pads the tensor and enters it in the journal together with `note` (JSON)."""
        tensor = self._current
        assert self._written == tensor.bytes, f"{tensor.name}: {self._written} bytes written, {tensor.bytes} announced"
        self._write(memoryview(bytes(tensor.padded_bytes - tensor.bytes)))
        self._enter({"tensor": tensor.name, "crc32c": self._crc, "note": dict(note)})
        self.done[tensor.name] = dict(note)

    def commit(self, files: Mapping[str, bytes], *, replace: bool = False) -> None:
        """Adds the small files and the manifest and gives the folder its final name.

        Raises: StorageError; UsageError if the destination has come into being and `replace` is false.
        """
        assert self.done.keys() == self._tensors.keys(), "tensors are missing"
        try:
            sums = {name: FileSum(len(data), None) for name, data in files.items()}
            sums |= {name: file.close() for name, file in self._files.items()}
            for name, taken in self._taken.items():
                _link_or_copy(taken.path, self.folder / name)
                sums[name] = taken.sums
            for name, data in (*files.items(), (MANIFEST, manifest_json(sums))):
                _write_file(self.folder / name, data)
            self._rename(replace)
        except OSError as error:
            self._fail(error)

    def close(self) -> None:
        """Lets go of the files; what is written stays."""
        for file in self._files.values():
            file.abandon()
        if self._journal >= 0:
            os.close(self._journal)
            self._journal = -1

    def discard(self) -> None:
        """Removes everything written."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _open_journal(self, key: str) -> list[tuple[Json, int]]:
        """Takes the lock; returns what was finished before under the same key, each line with its end in the file."""
        path = self.folder / JOURNAL
        self._journal = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(f"another conversion is writing {self.folder}; wait for it, or end it") from None
        lines = _journal_lines(path.read_bytes())
        if not lines or lines[0][0].get("key") != key:
            os.ftruncate(self._journal, 0)
            self._enter({"key": key, "format_version": FORMAT_VERSION})
            lines = [({}, os.fstat(self._journal).st_size)]
        self._journal_end = lines[0][1]
        return lines[1:]

    def _resume(self, lines: list[tuple[Json, int]]) -> None:
        for (line, end), tensor in zip(lines, self._tensors.values(), strict=False):
            file = self._files[_file_of(tensor)]
            if line.get("tensor") != tensor.name or not file.accept(tensor, line.get("crc32c")):
                break
            self.done[tensor.name] = line["note"]
            self._journal_end = end
        os.ftruncate(self._journal, self._journal_end)
        for file in self._files.values():
            file.truncate()

    def _check_space(self) -> None:
        wanted = sum(file.bytes_left for file in self._files.values())
        drive = self.folder.stat().st_dev
        wanted += sum(taken.sums.bytes for taken in self._taken.values() if taken.path.stat().st_dev != drive)
        free = shutil.disk_usage(self.folder).free
        if wanted > free:
            self.discard()
            raise StorageError(
                f"{self.folder.parent} has {free} bytes free; the store takes {wanted}: free some space, choose "
                "another destination or a smaller weight format"
            )

    def _enter(self, line: Json) -> None:
        try:
            os.write(self._journal, json.dumps(line).encode() + b"\n")
        except OSError as error:
            self._fail(error)

    def _write(self, data: memoryview) -> None:
        try:
            self._files[_file_of(self._current)].write(data)
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> NoReturn:
        if isinstance(error, StorageError):
            self.close()
            raise error
        if error.errno not in _FULL:
            self.close()
            raise storage_error(self.folder, "cannot be written; what is finished is kept", error) from None
        self.discard()
        raise StorageError(
            f"the disk of {self.dest} is full; the unfinished store was removed: free some space and run it again"
        ) from None

    def _rename(self, replace: bool) -> None:
        old = self.folder.with_name(f"{self.folder.name}.old")
        if self.dest.is_symlink() or (self.dest.exists() and not _is_empty_folder(self.dest)):
            if not replace:
                raise UsageError(f"{self.dest} has come into being meanwhile; the finished store is in {self.folder}")
            _remove(old)
            self.dest.rename(old)
        _sync_folder(self.folder)
        self.folder.rename(self.dest)
        _sync_folder(self.dest.parent)
        remove_journal(self.dest)
        _remove(old)


def remove_journal(store: Path) -> None:
    """Removes the journal of a finished store, if a kill just after the renaming left it there; no reader minds it."""
    with suppress(OSError):
        (store / JOURNAL).unlink(missing_ok=True)


def _file_of(tensor: StoreTensor) -> str:
    return NEURONS if tensor.neurons else RESIDENT


def _journal_lines(data: bytes) -> list[tuple[Json, int]]:
    """The lines up to the first that is not whole, each with the position of its end."""
    lines: list[tuple[Json, int]] = []
    end = 0
    for raw in data.split(b"\n")[:-1]:
        end += len(raw) + 1
        try:
            lines.append((parse_json(raw, "journal"), end))
        except FormatError:
            break
    return lines


def _link_or_copy(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())


def _write_file(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
