"""Text from datasets of the Hugging Face hub, streamed with its own library: hf:OWNER/NAME[/CONFIG][:SPLIT]."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotset.errors import DownloadError, HostError, InputError, UsageError

_PREFIX = "hf:"


@dataclass(frozen=True, slots=True)
class Dataset:
    """What is asked of the hub."""

    name: str  # owner/name, or a bare name of the hub's first years
    config: str | None  # of datasets that have several
    split: str

    @staticmethod
    def parse(text: str) -> Dataset:
        """'hf:Salesforce/wikitext/wikitext-2-raw-v1:test'; the split is train if none is given. Raises UsageError."""
        names, _, split = text.removeprefix(_PREFIX).partition(":")
        parts = names.split("/")
        if len(parts) > 3 or not all(parts) or ":" in split:
            raise UsageError(f"{text[:80]!r} names no dataset; want hf:OWNER/NAME[/CONFIG][:SPLIT]")
        return Dataset("/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split or "train")


def is_dataset(path: Path) -> bool:
    """Whether it is no file but the name of a dataset."""
    return str(path).startswith(_PREFIX)


def dataset_texts(path: Path) -> Iterator[str]:
    """The column `text`, row by row, fetched as it is read.

    Raises: UsageError, HostError (the library `datasets` is not installed), DownloadError, InputError (no such column).
    """
    for row in _rows(path, Dataset.parse(str(path))):
        if not isinstance(row.get("text"), str):
            columns = ", ".join(sorted(row)[:10])
            raise InputError(f"{path} has no text in a column 'text'; its columns are {columns}")
        yield row["text"]


def _rows(path: Path, wanted: Dataset) -> Iterator[dict[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise HostError(f"reading {path} needs datasets, which is not installed: pip install 'hotset[train]'") from None
    try:
        yield from load_dataset(wanted.name, wanted.config, split=wanted.split, streaming=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:  # what the library and those below it raise
        why = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DownloadError(
            f"{path} cannot be read: {why[:300]}. Check its name, config and split, the network and HF_TOKEN"
        ) from None
