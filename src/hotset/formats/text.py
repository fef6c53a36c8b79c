"""Documents of text files, streamed: plain, JSONL or Parquet, compressed or not."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from hotset.errors import HostError, InputError, StorageError
from hotset.formats.datasets import dataset_texts, is_dataset
from hotset.formats.files import quoted, storage_error

_PIECE = 1 << 16  # characters of plain text that make one document, up to the next end of a line
_WRAPPERS = (".zst", ".gz")


def files_of(path: Path) -> list[Path]:
    """The file itself, a dataset's name, or all text files below a folder. Raises StorageError, InputError."""
    if is_dataset(path):
        return [path]
    if not path.is_dir():
        if not path.exists():
            raise StorageError(f"{path} does not exist; give a file of text or a folder of such files to --data")
        return [path]
    known = (".txt", ".md", ".jsonl", ".ndjson", ".parquet")
    found = sorted(p for p in path.rglob("*") if p.is_file() and _kind(p) in known)
    if not found:
        raise InputError(f"{path} holds no text; wanted files named *.txt, *.md, *.jsonl or *.parquet (also .zst, .gz)")
    return found


def documents(path: Path) -> Iterator[str]:
    """Texts of one file, in order: the key or column `text` of JSONL and Parquet, else pieces that end with a line.

    Raises: InputError (not UTF-8, no texts), StorageError, HostError (a reader that is not installed), and for
        datasets what dataset_texts raises.
    """
    if is_dataset(path):
        yield from dataset_texts(path)
        return
    try:
        if _kind(path) == ".parquet":
            yield from _parquet(path)
            return
        with _opened(path) as file:
            yield from _jsonl(path, file) if _kind(path) in (".jsonl", ".ndjson") else _pieces(file)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason}); convert it first, for example with iconv") from None
    except (EOFError, gzip.BadGzipFile) as error:
        raise InputError(f"{path} cannot be unpacked: {error}; it may be cut short, so fetch it again") from None
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise storage_error(path, "cannot be read", error) from None


def _kind(path: Path) -> str:
    """Suffix of the text below any compression."""
    return Path(path.stem).suffix if path.suffix in _WRAPPERS else path.suffix


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    if path.suffix == ".zst":
        zstandard = _library("zstandard", path)
        with path.open("rb") as raw:  # archives made with --long need a window above the default
            stream = zstandard.ZstdDecompressor(max_window_size=1 << 31).stream_reader(raw)
            try:
                yield io.TextIOWrapper(stream, encoding="utf-8")
            except zstandard.ZstdError as error:
                raise InputError(f"{path} cannot be unpacked: {error}") from None
    elif path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8") as file:
            yield file
    else:
        with path.open(encoding="utf-8") as file:
            yield file


def _jsonl(path: Path, file: IO[str]) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(f"{path}, line {number} is not JSON; wanted one object with a key 'text' a line") from None
        text = value.get("text") if isinstance(value, dict) else None
        if not isinstance(text, str):
            raise InputError(f"{path}, line {number} has no text under the key 'text': {quoted(line.strip(), 60)}")
        yield text


def _pieces(file: IO[str]) -> Iterator[str]:
    while piece := file.read(_PIECE):
        yield piece + file.readline(_PIECE)


def _parquet(path: Path) -> Iterator[str]:
    arrow = _library("pyarrow.parquet", path)
    try:
        table = arrow.ParquetFile(path)
    except ValueError as error:  # ArrowInvalid is one
        raise InputError(f"{path} is no Parquet file: {str(error).splitlines()[0]}") from None
    if "text" not in table.schema_arrow.names:
        columns = ", ".join(table.schema_arrow.names[:10])
        raise InputError(f"{path} has no column 'text'; its columns are {columns}. Rename the one that holds the text")
    for batch in table.iter_batches(batch_size=1024, columns=["text"]):
        yield from (text for text in batch.column(0).to_pylist() if text is not None)


def _library(name: str, path: Path) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        raise HostError(
            f"reading {path} needs {name.partition('.')[0]}, which is not installed: pip install 'hotset[train]'"
        ) from None
