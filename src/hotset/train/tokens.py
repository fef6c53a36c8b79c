"""A text as one file of token ids, mapped into memory: encoded once, in a stream, then read at any place."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hotset.errors import InputError
from hotset.formats.datasets import is_dataset
from hotset.formats.files import storage_error
from hotset.formats.progress import Progress, silent
from hotset.formats.text import documents, files_of
from hotset.tokenizer import Tokenizer

_BATCH = 1 << 20  # characters encoded at once, by all cores


@dataclass(frozen=True, slots=True)
class TokenFile:
    """Documents of one source one after the other, each closed by the end-of-text token."""

    path: Path
    ids: NDArray[np.uint32]  # [tokens], mapped
    fingerprint: str  # of the ids


@dataclass(frozen=True, slots=True)
class Encoder:
    """A tokenizer with what the model it is for can take."""

    tokenizer: Tokenizer
    vocab: int  # rows of the embedding
    digest: str  # of the tokenizer's files

    @staticmethod
    def load(folder: Path, vocab: int) -> Encoder:
        """Raises: ModelError, FormatError as Tokenizer.load."""
        names = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "tokenizer_config.json")
        parts = [path.read_bytes() for name in names if (path := folder / name).is_file()]
        return Encoder(Tokenizer.load(folder), vocab, hashlib.sha256(b"\0".join(parts)).hexdigest())

    def encode(self, texts: list[str], path: Path) -> NDArray[np.uint32]:
        """Ids of all texts. Raises InputError if the model has no row for one of them."""
        ends = sorted(self.tokenizer.eos_ids)[:1]
        found = [i for ids in self.tokenizer.encode_all(texts) if ids for i in (*ids, *ends)]
        ids = np.array(found, np.uint32)
        if ids.size and int(ids.max()) >= self.vocab:
            raise InputError(
                f"{path}: the tokenizer gives id {ids.max()}, but the model has rows for {self.vocab}; "
                "the tokenizer in the model's folder belongs to another model"
            )
        return ids


def token_file(source: Path, encoder: Encoder, folder: Path, most: int, progress: Progress = silent) -> TokenFile:
    """The tokens of a file, a folder of text or a dataset, encoded into `folder` unless they lie there already.

    most: tokens after which a dataset is read no further, as it may be larger than any drive; files are read whole.
    Raises: InputError (no text, not UTF-8, ids that the model lacks), StorageError, and what dataset_texts raises.
    """
    files = files_of(source)
    path = folder / f"{source.stem[:40]}-{_key(files, encoder, most)}.tokens"
    about = path.with_suffix(".json")
    if not (path.is_file() and about.is_file()):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _forget_parts(folder)
            _write(path, about, files, encoder, most if is_dataset(source) else None, progress)
        except OSError as error:
            raise storage_error(path, "cannot be written", error) from None
    fingerprint = str(json.loads(about.read_text())["sha256"])
    return TokenFile(path, np.memmap(path, np.uint32, mode="r"), fingerprint)


def _forget_parts(folder: Path) -> None:
    """Removes what processes that were killed had encoded so far."""
    for part in folder.glob("*.part"):
        owner = part.suffixes[-2].removeprefix(".") if len(part.suffixes) > 1 else ""
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            part.unlink(missing_ok=True)


def _key(files: list[Path], encoder: Encoder, most: int) -> str:
    if is_dataset(files[0]):
        states = [(str(files[0]), most, 0)]
    else:
        states = [(str(p.resolve()), s.st_size, s.st_mtime_ns) for p in files if (s := p.stat())]
    return hashlib.sha256(json.dumps([states, encoder.digest, encoder.vocab]).encode()).hexdigest()[:12]


def _write(path: Path, about: Path, files: list[Path], encoder: Encoder, most: int | None, progress: Progress) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # processes of one run may encode at the same time
    digest, size = hashlib.sha256(), 0
    total = most or sum(p.stat().st_size for p in files)
    try:
        with part.open("wb") as out:
            for file, done in _with_bytes_before(files):
                for texts in _batches(documents(file)):
                    ids = encoder.encode(texts, file)
                    out.write(ids.tobytes())
                    digest.update(ids.tobytes())
                    size += ids.size
                    progress(size if most else done, total, f"encoding {file.name}")
                    if most and size >= most:
                        break
            out.flush()
            os.fsync(out.fileno())
        if not size:
            raise InputError(f"{files[0] if len(files) == 1 else files[0].parent} gives no tokens; it holds no text")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    meta = about.with_name(f"{about.name}.{os.getpid()}.part")
    meta.write_text(json.dumps({"sha256": digest.hexdigest(), "tokens": size}))
    meta.replace(about)


def _with_bytes_before(files: list[Path]) -> Iterator[tuple[Path, int]]:
    done = 0
    for file in files:
        yield file, done
        done += 0 if is_dataset(file) else file.stat().st_size


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    held = 0
    for text in texts:
        batch.append(text)
        held += len(text)
        if held >= _BATCH:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch
