"""Writes `predictors.safetensors`; hotset.formats.predictors reads it and says what is in it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hotset.errors import StorageError
from hotset.formats.checksums import SUMS, reserved, seal
from hotset.formats.files import read_at, storage_error
from hotset.formats.neurons import NeuronInfo
from hotset.formats.predictors import (
    DRAFTED,
    MEASURED,
    OLD,
    PREDICTORS_FILE,
    TABLES,
    map_name,
    order_crc32c,
    vector_name,
)
from hotset.formats.safetensors import read_header
from hotset.formats.store import ALIGNMENT, read_weights
from hotset.formats.store_file import StoreTensor, WeightFile
from hotset.formats.thresholds import Thresholds


def write_predictors(
    folder: Path,
    neurons: NeuronInfo,
    maps: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]],
    tables: Thresholds,
    measured: Sequence[tuple[float, float]],
    facts: Mapping[str, bool | float],
    fmt: str = "q8_0",
    drafts: Sequence[tuple[float, float]] = (),
) -> Path:
    """Writes predictors beside a packed store, whole or not at all.

    maps: of each layer down [rank, hidden] and up [ffn, rank], rows in the model's own order of neurons.
    measured, drafts, facts (relu, ahead, active, energy, perplexity_change, fetch): as in Predictors.
    Raises: FormatError (a weight that is no number), StorageError.
    """
    tensors = [
        StoreTensor(map_name(i, part), fmt, matrix.shape[0], matrix.shape[1], neurons=False)
        for i, both in enumerate(maps)
        for part, matrix in zip(("down", "up"), both, strict=True)
    ]
    vectors = {name: getattr(tables, name).ravel() for name in TABLES}
    vectors |= dict(zip(MEASURED, np.array(measured, np.float32).T, strict=True))
    vectors |= _as_vectors(drafts)
    about = json.dumps({**facts, "order_crc32c": order_crc32c(neurons)})
    packed = (
        _packed(fmt, matrix)
        for layer, (down, up) in enumerate(maps)
        for matrix in (down, up[neurons.read_order(layer)])
    )
    return _write(folder, [*tensors, *_described(vectors)], about, chain(packed, map(_bytes, vectors.values())))


def write_drafts(folder: Path, drafts: Sequence[tuple[float, float]]) -> Path:
    """Puts what is known of drafts into the predictors of a packed store, whole or not at all; the rest stays as it is.

    drafts: as in Predictors. Raises: FormatError, StorageError.
    """
    path, vectors = folder / PREDICTORS_FILE, _as_vectors(drafts)
    left_out = {vector_name(name) for name in (*DRAFTED, OLD)}
    kept = {name: entry for name, entry in read_weights(path).items() if name not in left_out}
    tensors = [StoreTensor(name, e.fmt, e.rows, e.cols, neurons=False) for name, e in kept.items()]
    data = (np.frombuffer(read_at(path, e.offset, e.bytes), np.uint8) for e in kept.values())
    about = read_header(path).metadata["predictor"]
    return _write(folder, [*tensors, *_described(vectors)], about, chain(data, map(_bytes, vectors.values())))


def _as_vectors(drafts: Sequence[tuple[float, float]]) -> dict[str, NDArray[np.float32]]:
    return dict(zip(DRAFTED, np.array(drafts, np.float32).T, strict=True)) if drafts else {}


def _described(vectors: Mapping[str, NDArray[np.float32]]) -> list[StoreTensor]:
    return [StoreTensor(vector_name(name), "f32", len(values), 0, neurons=False) for name, values in vectors.items()]


def _write(folder: Path, tensors: Sequence[StoreTensor], about: str, data: Iterable[NDArray[np.uint8]]) -> Path:
    """data: of the tensors, in their order."""
    path, partial = folder / PREDICTORS_FILE, folder / f".{PREDICTORS_FILE}.partial"
    try:
        partial.unlink(missing_ok=True)
        _write_partial(partial, tensors, about, data)
        return partial.replace(path)
    except StorageError:  # says already which file, perhaps one that was read
        raise
    except OSError as error:
        raise storage_error(path, "cannot be written", error) from None
    finally:
        with suppress(OSError):  # the error that ended it is the one to tell
            partial.unlink(missing_ok=True)


def _write_partial(path: Path, tensors: Sequence[StoreTensor], about: str, data: Iterable[NDArray[np.uint8]]) -> None:
    names = ["predictor", "hotset", *(tensor.name for tensor in tensors)]
    file = WeightFile(path, tensors, {"predictor": about, SUMS: reserved(names)})
    try:
        for part in data:
            _append(file, part)
        file.close()
    finally:
        file.abandon()
    seal(path)


def _bytes(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.array(values, "<f4").view(np.uint8)


def _packed(fmt: str, matrix: NDArray[np.float32]) -> NDArray[np.uint8]:
    from hotset import _core

    out = np.zeros(_core.packed_bytes(fmt, *matrix.shape), np.uint8)
    _core.encode(fmt, np.ascontiguousarray(matrix, np.float32), out)
    return out


def _append(file: WeightFile, data: NDArray[np.uint8]) -> None:
    file.write(data.data)
    file.write(memoryview(bytes(-data.nbytes % ALIGNMENT)))
