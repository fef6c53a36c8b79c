"""Turns one layer's FFN, stored by rows, into bundles of neurons, in pieces of a few thousand rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hotset import _core
from hotset.errors import FormatError
from hotset.formats.files import read_at
from hotset.formats.store import Store, StoreEntry
from hotset.quant import COL_BLOCK, ROW_BLOCK, NeuronLayout, packed_bytes
from hotset.quant.neurons import GROUP, LANE_GROUPS
from hotset.tools.convert_encode import ErrorSums

CHUNK_WEIGHTS = 2 << 20  # per piece and thread: 8 MiB as f32, and as much again while down is transposed
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Layer:
    """The FFN matrices of one layer of a dense store, by role: tensor names."""

    store: Store
    names: Mapping[str, str]

    def vectors(self, role: str, begin: int, end: int, layout: NeuronLayout) -> tuple[Bytes, float, float]:
        """Vectors [n, vector_bytes] of neurons [begin, end), squared error and squared weight; begin % 64 is 0."""
        entry = self.store.entries[self.names[role]]
        if role != "down" and entry.fmt == layout.fmt:
            return transposed(_rows(entry, begin, end), entry.fmt, end - begin, entry.cols), 0.0, 0.0
        vectors = np.empty((end - begin, layout.vector_bytes), np.uint8)
        try:
            squared_error, squared_weight, _ = _core.encode_vectors(layout.fmt, self.read(role, begin, end), vectors)
        except FormatError as error:
            raise FormatError(f"{self.names[role]}, neurons {begin} to {end - 1}: {error}") from None
        return vectors, squared_error, squared_weight

    def read(self, role: str, begin: int, end: int) -> Floats:
        """The weights of neurons [begin, end) as [n, hidden]; begin is a multiple of 64."""
        entry = self.store.entries[self.names[role]]
        if role != "down":
            return _core.decode(entry.fmt, _rows(entry, begin, end), end - begin, entry.cols)
        columns = _core.decode(entry.fmt, _columns(entry, begin, end), entry.rows, end - begin)
        return np.ascontiguousarray(columns.T)


def _rows(entry: StoreEntry, begin: int, end: int) -> Bytes:
    """Packed rows [begin, end)."""
    skipped, size = packed_bytes(entry.fmt, begin, entry.cols), packed_bytes(entry.fmt, end - begin, entry.cols)
    return np.frombuffer(read_at(Path(entry.path), entry.offset + skipped, size), np.uint8)


def _columns(entry: StoreEntry, begin: int, end: int) -> Bytes:
    """Packed columns [begin, end): of every row block a few column blocks."""
    row_block, col_block = packed_bytes(entry.fmt, 1, entry.cols), packed_bytes(entry.fmt, 1, 1)
    first, size = entry.offset + begin // COL_BLOCK * col_block, -(-(end - begin) // COL_BLOCK) * col_block
    blocks = range(-(-entry.rows // ROW_BLOCK))
    return np.frombuffer(b"".join(read_at(Path(entry.path), first + i * row_block, size) for i in blocks), np.uint8)


def transposed(packed: Bytes, fmt: str, rows: int, cols: int) -> Bytes:
    """Packed rows of a matrix as vectors [rows, vector_bytes], every value kept: both have groups of 32 along the row.

    Scales [block][block][group][row] and codes [block][block][group][j][row][b] of native/quant/format.h become
    scales [row][group] and codes [row][j][group][b] of native/quant/neuron.h, there in blocks of 16 groups.
    """
    row_blocks, steps = -(-rows // ROW_BLOCK), {"q4_0": 4, "q8_0": 8}[fmt]
    blocks, groups = packed.reshape(row_blocks, -(-cols // COL_BLOCK), -1), -(-cols // GROUP)
    scale_bytes = COL_BLOCK // GROUP * ROW_BLOCK * 2
    scales = blocks[:, :, :scale_bytes].reshape(*blocks.shape[:2], -1, ROW_BLOCK, 2)
    codes = blocks[:, :, scale_bytes:].reshape(*blocks.shape[:2], -1, steps, ROW_BLOCK, 4)
    by_row = scales.transpose(0, 3, 1, 2, 4).reshape(row_blocks * ROW_BLOCK, -1, 2)[:rows, :groups]
    codes_by_row = codes.transpose(0, 4, 3, 1, 2, 5).reshape(row_blocks * ROW_BLOCK, steps, -1, 4)[:rows, :, :groups]
    parts = []
    for first in range(0, groups, LANE_GROUPS):
        lanes = slice(first, first + LANE_GROUPS)
        parts += [by_row[:, lanes].reshape(rows, -1), codes_by_row[:, :, lanes].reshape(rows, -1)]
    return np.concatenate(parts, axis=1)


def make_bundles(
    layer: Layer,
    layout: NeuronLayout,
    stride: int,
    order: NDArray[np.int32],
    *,
    threads: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Bytes, dict[str, ErrorSums]]:
    """Bundles [ffn, stride] in stored order, and by role what re-quantizing lost.

    Args:
        order: [ffn], the model's own index of the k-th neuron to be stored.
        progress: called with the bytes of bundles done.
    Raises: FormatError naming tensor and neurons of a weight that the format cannot hold.
    """
    for name in layer.names.values():
        layer.store.verify_tensor(name)
    bundles = np.zeros((len(order), stride), np.uint8)
    position = np.empty(len(order), np.int64)  # of the model's neurons in the file
    position[order] = np.arange(len(order))
    sums = {role: ErrorSums() for role in layout.roles}

    def encode(role: str, begin: int, end: int) -> tuple[str, float, float]:
        vectors, squared_error, squared_weight = layer.vectors(role, begin, end, layout)
        offset = layout.roles.index(role) * layout.vector_bytes
        bundles[position[begin:end], offset : offset + layout.vector_bytes] = vectors
        return role, squared_error, squared_weight

    pieces = [(role, begin, end) for begin, end in _pieces(len(order), layout.hidden) for role in layout.roles]
    done = 0
    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        tasks = [pool.submit(encode, *piece) for piece in pieces]
        try:
            for task, (_, begin, end) in zip(tasks, pieces, strict=True):
                role, squared_error, squared_weight = task.result()
                sums[role].add(squared_error, squared_weight)
                done += (end - begin) * layout.vector_bytes
                progress(done)
        except BaseException:  # Ctrl-C must not wait for the rest of the layer
            pool.shutdown(cancel_futures=True)
            raise
    return bundles, sums


def _pieces(neurons: int, hidden: int) -> Iterator[tuple[int, int]]:
    """Ranges of neurons that begin with whole row and column blocks."""
    step = max(1, CHUNK_WEIGHTS // (hidden * COL_BLOCK)) * COL_BLOCK
    for begin in range(0, neurons, step):
        yield begin, min(begin + step, neurons)


def checksums(bundles: Bytes, size: int) -> NDArray[np.uint32]:
    """CRC-32C of the first `size` bytes of each bundle, [ffn]."""
    return np.array([_core.crc32c(bundle[:size]) for bundle in bundles], np.uint32)
