"""What an evaluation has found so far, on the drive, so that it goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import IO

from hotset.formats.files import Json, storage_error
from hotset.tools.evaluate_tasks import as_key


class Journal:
    """What was found for each item, a line of JSON each, so that a run that was stopped goes on."""

    def __init__(self, folder: Path, key: object, *, fresh: bool = False) -> None:
        self.path = folder / f"{hashlib.sha256(as_key(key).encode()).hexdigest()[:16]}.jsonl"
        self._found: dict[int, Json] = {}
        self._file: IO[str] | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not fresh and self.path.exists():
                self._load()
            self._file = self.path.open("w" if fresh else "a", encoding="utf-8")
        except OSError as error:
            raise storage_error(self.path, "cannot be written", error) from None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Raises StorageError, unless there is an error already: closing tries again to write what could not be."""
        assert self._file is not None
        try:
            self._file.close()
        except OSError as error:
            if kind is None:
                raise storage_error(self.path, "cannot be written", error) from None

    def get(self, index: int) -> Json | None:
        return self._found.get(index)

    def put(self, index: int, found: Json) -> Json:
        self._found[index] = found
        assert self._file is not None
        try:
            print(json.dumps({"item": index, **found}), file=self._file, flush=True)
        except OSError as error:
            raise storage_error(self.path, "cannot be written", error) from None
        return found

    def _load(self) -> None:
        """Lines that are whole; a last one that is cut off is found anew."""
        for line in self.path.read_text(encoding="utf-8").split("\n"):
            try:
                entry = json.loads(line)
                self._found[entry.pop("item")] = entry
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
