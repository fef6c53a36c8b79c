"""Text files as windows of tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hotset.errors import InputError
from hotset.formats.files import storage_error
from hotset.formats.text import documents
from hotset.tokenizer import Tokenizer

Window = NDArray[np.int32]
LEAST_WINDOW = 32  # tokens; shorter rests are left out: too few come before a token to stand for running text


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
