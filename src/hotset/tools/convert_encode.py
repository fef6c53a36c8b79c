"""Packs one tensor after the other into a store's formats, in pieces of a few rows, so that memory stays small."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotset import _core
from hotset.errors import FormatError
from hotset.formats.files import quoted
from hotset.formats.gguf import TYPE_BLOCK
from hotset.models import row_order
from hotset.quant import FORMATS, ROW_BLOCK, packed_bytes
from hotset.tools.convert_source import Rows, SourceTensor

CHUNK_WEIGHTS = 4 << 20  # weights per piece: 16 MiB as f32, so a few buffers stay far below 1 GiB
_SCALES = {"Q4_0": 1, "Q4_1": 2, "Q8_0": 1}  # f16 numbers at the start of each block


@dataclass(slots=True)
class ErrorSums:
    """What packing lost, over the weights seen so far."""

    squared_error: float = 0.0
    squared_weight: float = 0.0

    def add(self, squared_error: float, squared_weight: float) -> None:
        self.squared_error += squared_error
        self.squared_weight += squared_weight

    @property
    def relative_rms(self) -> float:
        """Root of squared error over squared weight; 0 = lossless."""
        return math.sqrt(self.squared_error / self.squared_weight) if self.squared_weight else 0.0


def is_lossless(tensor: SourceTensor, fmt: str) -> bool:
    """Whether `fmt` holds the very values that the source has."""
    return tensor.shift == 0.0 and FORMATS[fmt].ggml_type == tensor.type


def pack(
    rows: Rows, tensor: SourceTensor, fmt: str, sums: ErrorSums, threads: int = 0
) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Pieces of `tensor` packed, in order, each with its bytes in the source; `sums` grows by what re-quantizing lost.

    Raises: FormatError naming tensor, row and column of a NaN or an infinity, or a weight too large for `fmt`.
    """
    step = chunk_rows(tensor)
    for begin in range(0, tensor.rows, step):
        raw = rows.read(tensor, begin, min(begin + step, tensor.rows))
        if tensor.heads:
            raw = raw[row_order(len(raw), len(raw) * tensor.heads // tensor.rows)]
        yield _pack_rows(tensor, fmt, raw, begin, sums, threads), raw.nbytes


def chunk_rows(tensor: SourceTensor) -> int:
    """Whole row blocks, and whole heads where rows change their order inside a head."""
    unit = math.lcm(ROW_BLOCK, tensor.rows // tensor.heads if tensor.heads else 1)
    return max(1, CHUNK_WEIGHTS // (unit * tensor.cols)) * unit


def _pack_rows(
    tensor: SourceTensor, fmt: str, raw: NDArray[np.uint8], begin: int, sums: ErrorSums, threads: int
) -> NDArray[np.uint8]:
    if is_lossless(tensor, fmt) and tensor.spec.cols:
        _check_scales(tensor, raw, begin)
        out = np.empty(packed_bytes(fmt, len(raw), tensor.cols), np.uint8)
        _core.repack_ggml(fmt, raw.reshape(-1), len(raw), tensor.cols, out, threads)
        return out
    weights = decode_rows(tensor.type, raw)
    weights += np.float32(tensor.shift)
    _check_finite(tensor, weights, begin)
    if not tensor.spec.cols:
        return weights.reshape(-1).view(np.uint8)
    out = np.empty(packed_bytes(fmt, *weights.shape), np.uint8)
    try:
        squared_error, squared_weight, _ = _core.encode(fmt, weights, out, threads)
    except FormatError as error:
        rows_from = f", counting rows from {begin}" if begin else ""
        raise FormatError(f"{_where(tensor)}{rows_from}: {error}; choose a weight format of wider range") from None
    sums.add(squared_error, squared_weight)
    return out


def decode_rows(kind: str, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Rows of GGUF type `kind`, bytes [rows, row_bytes], as new float32 [rows, cols].

    Raises: FormatError for a type without real numbers, or one that the gguf library cannot decode.
    """
    if kind == "F32":
        return raw.view("<f4").astype(np.float32)
    if kind in ("F16", "F64"):
        with np.errstate(over="ignore"):
            return raw.view("<f2" if kind == "F16" else "<f8").astype(np.float32)
    if kind == "BF16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        values: NDArray[np.float32] = dequantize(raw, GGMLQuantizationType[kind])
    except (KeyError, NotImplementedError):
        raise FormatError(f"GGUF type {kind} cannot be decoded; take the model in another type") from None
    return values


def _check_finite(tensor: SourceTensor, weights: NDArray[np.float32], begin: int) -> None:
    finite = np.isfinite(weights)
    if not finite.all():
        row, col = np.unravel_index(int(np.argmin(finite)), weights.shape)
        _refuse(tensor, begin + int(row), int(col), float(weights[row, col]))


def _check_scales(tensor: SourceTensor, raw: NDArray[np.uint8], begin: int) -> None:
    """Blocks are finite exactly if their scales are."""
    if tensor.type not in _SCALES:
        return _check_finite(tensor, decode_rows(tensor.type, raw), begin)
    elements, size = TYPE_BLOCK[tensor.type]
    blocks = raw.reshape(len(raw), -1, size)[:, :, : 2 * _SCALES[tensor.type]]
    finite = np.isfinite(np.ascontiguousarray(blocks).view("<f2"))
    if not finite.all():
        row, block, _ = np.unravel_index(int(np.argmin(finite)), finite.shape)
        _refuse(tensor, begin + int(row), int(block) * elements, math.nan)
    return None


def _refuse(tensor: SourceTensor, row: int, col: int, value: float) -> None:
    raise FormatError(
        f"{_where(tensor)} holds {value} at row {row}, column {col}; the weights are damaged: download or export them "
        "again"
    )


def _where(tensor: SourceTensor) -> str:
    part = f", part of {quoted(tensor.spec.source_name)}," if tensor.spec.fused else ""
    return f"{tensor.path}: tensor {quoted(tensor.spec.name)}{part}"
