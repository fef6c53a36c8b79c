"""Text files as windows of tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from hotset.errors import InputError, StorageError
from hotset.formats.files import quoted, storage_error
from hotset.tokenizer import Tokenizer

Window = NDArray[np.int32]
LEAST_WINDOW = 32  # tokens; shorter rests are left out: too few come before a token to stand for running text
_PIECE = 1 << 16  # characters encoded at once


def windows(files: Sequence[Path], tokenizer: Tokenizer, size: int, tokens: int) -> list[Window]:
    """Windows of at most `size` tokens, each of one document, until `tokens` of them count.

    A window's first token has nothing before it and does not count; it is BOS where the model's texts begin with it.
    Raises: InputError (no text at all, not UTF-8, JSONL without texts), StorageError.
    """
    starts = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
    found: list[Window] = []
    left = tokens
    for document in (d for path in files for d in documents(path)):
        ids = tokenizer.encode(document, add_special=False)
        step = size - len(starts)
        for at in range(0, len(ids), step):
            window = [*starts, *ids[at : at + step]][: left + 1]
            if len(window) < min(LEAST_WINDOW, left + 1):
                break
            found.append(np.array(window, np.int32))
            left -= len(window) - 1
            if left == 0:
                return found
    if not found:
        names = ", ".join(map(str, files))
        raise InputError(f"{names}: no text of at least {LEAST_WINDOW} tokens in one piece; give more text")
    return found


def documents(path: Path) -> Iterator[str]:
    """Texts of a .jsonl file, one a line under the key `text`; of any other file, pieces of it that end with a line."""
    try:
        with path.open(encoding="utf-8", errors="strict") as file:
            yield from _jsonl(path, file) if path.suffix in (".jsonl", ".ndjson") else _pieces(file)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason}); convert it first, for example with iconv") from None
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise storage_error(path, "cannot be read", error) from None


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


def digest(files: Sequence[Path]) -> str:
    """SHA-256 over the files, one after another. Raises StorageError."""
    total = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise storage_error(path, "cannot be read", error) from None
    return total.hexdigest()
