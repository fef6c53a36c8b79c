"""What a model is: config, tensors, formats, sizes, and the memory that a context of it takes. Reads no weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotset.config import ModelConfig
from hotset.errors import UsageError
from hotset.models import resolve


@dataclass(frozen=True, slots=True)
class TensorInfo:
    name: str
    format: str
    shape: tuple[int, ...]
    bytes: int
    file: str


@dataclass(frozen=True, slots=True)
class ModelInfo:
    path: Path
    kind: str  # store | gguf | huggingface
    family: str
    config: ModelConfig
    tensors: tuple[TensorInfo, ...]
    parameters: int  # weights counted once, a tied embedding too

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)

    def bytes_by_format(self) -> dict[str, int]:
        totals: Counter[str] = Counter()
        for tensor in self.tensors:
            totals[tensor.format] += tensor.bytes
        return dict(totals.most_common())


def inspect(path: Path, *, ignore_keys: Collection[str] = ()) -> ModelInfo:
    """Reads the headers of a store, a GGUF file or a Hugging Face folder.

    Raises: UsageError (none of these), FormatError, StorageError, ModelError.
    """
    from hotset.formats.store import is_store

    kind = "gguf" if path.is_file() else "store" if is_store(path) else "huggingface"
    if kind == "huggingface" and not (path / "config.json").is_file():
        raise UsageError(f"{path} is neither a store nor a Hugging Face folder: it has no config.json")
    config, tensors = {"store": _read_store, "gguf": _read_gguf, "huggingface": _read_huggingface}[kind](path)
    model = resolve(config, ignore_keys=ignore_keys)
    parameters = sum(math.prod(spec.shape) for spec in model.tensors)
    return ModelInfo(path, kind, model.family, model.config, tuple(tensors), parameters)


def _read_store(path: Path) -> tuple[dict[str, Any], list[TensorInfo]]:
    from hotset.formats.store import open_store

    store = open_store(path)
    return store.config, [
        TensorInfo(name, e.fmt, (e.rows, e.cols) if e.cols else (e.rows,), e.bytes, Path(e.path).name)
        for name, e in store.entries.items()
    ]


def _read_gguf(path: Path) -> tuple[dict[str, Any], list[TensorInfo]]:
    from hotset.formats.gguf import read
    from hotset.models import from_gguf

    file = read(path)
    imported = from_gguf(file.metadata, {name: tensor.shape for name, tensor in file.tensors.items()})
    return imported.config, [TensorInfo(name, t.type, t.shape, t.bytes, path.name) for name, t in file.tensors.items()]


def _read_huggingface(path: Path) -> tuple[dict[str, Any], list[TensorInfo]]:
    from hotset.formats.files import read_json
    from hotset.formats.safetensors import read_folder

    tensors = [
        TensorInfo(name, entry.dtype, entry.shape, entry.bytes, file.name)
        for name, (file, entry) in read_folder(path).items()
    ]
    return read_json(path / "config.json"), tensors
