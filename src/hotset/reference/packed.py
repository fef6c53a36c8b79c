"""Decodes the packed weight layout of native/quant/format.h, index by index as that page describes it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotset.quant.formats import COL_BLOCK, FORMATS, ROW_BLOCK, packed_bytes
from hotset.reference.arithmetic import Array

GROUP = 32


def decode(fmt: str, packed: NDArray[np.uint8], rows: int, cols: int) -> NDArray[np.float64]:
    """Packed matrix (bytes) -> [rows, cols], the exact values the kernels compute with."""
    if packed.size != packed_bytes(fmt, rows, cols):
        raise ValueError(f"{fmt} [{rows}, {cols}] packs into {packed_bytes(fmt, rows, cols)} bytes, got {packed.size}")
    blocks = packed.reshape(-(-rows // ROW_BLOCK), -(-cols // COL_BLOCK), FORMATS[fmt].col_block_bytes)
    out = np.empty((blocks.shape[0] * ROW_BLOCK, blocks.shape[1] * COL_BLOCK))
    for i in range(blocks.shape[0]):
        for j in range(blocks.shape[1]):
            decoded = _BLOCKS[fmt](blocks[i, j].tobytes())
            out[i * ROW_BLOCK : (i + 1) * ROW_BLOCK, j * COL_BLOCK : (j + 1) * COL_BLOCK] = decoded
    return out[:rows, :cols]


def _plain(dtype: str) -> Any:
    """w[64][16], column-major inside the block."""
    return lambda block: np.frombuffer(block, dtype).reshape(COL_BLOCK, ROW_BLOCK).T.astype(np.float64)


def _bf16(block: bytes) -> Array:
    """bf16 is the upper half of a float32."""
    upper = np.frombuffer(block, "<u2").astype(np.uint32) << 16
    return upper.view(np.float32).reshape(COL_BLOCK, ROW_BLOCK).T.astype(np.float64)


def _q8_0(block: bytes) -> Array:
    scale, codes = _halves(block, 0), np.frombuffer(block, np.uint8, offset=64).reshape(2, 8, ROW_BLOCK, 4)
    out = np.empty((ROW_BLOCK, COL_BLOCK))
    for g, j, r, b in np.ndindex(codes.shape):
        out[r, g * GROUP + 4 * j + b] = scale[g, r] * (int(codes[g, j, r, b]) - 128)
    return out


def _q4_0(block: bytes) -> Array:
    scale, codes = _halves(block, 0), _nibbles(block, 64)
    return np.repeat(scale.T, GROUP, axis=1) * (codes - 8)


def _q4_1(block: bytes) -> Array:
    scale, offset, codes = _halves(block, 0), _halves(block, 64), _nibbles(block, 128)
    return np.repeat(scale.T, GROUP, axis=1) * codes + np.repeat(offset.T, GROUP, axis=1)


def _halves(block: bytes, start: int) -> Array:
    """f16 [group][row]."""
    return np.frombuffer(block, "<f2", count=2 * ROW_BLOCK, offset=start).reshape(2, ROW_BLOCK).astype(np.float64)


def _nibbles(block: bytes, start: int) -> Array:
    """4-bit codes [row, column] of u8 [g][j][r][b]: low nibble column g*32 + 4j + b, high nibble 16 further."""
    codes = np.frombuffer(block, np.uint8, offset=start).reshape(2, 4, ROW_BLOCK, 4)
    out = np.empty((ROW_BLOCK, COL_BLOCK))
    for g, j, r, b in np.ndindex(codes.shape):
        column = g * GROUP + 4 * j + b
        out[r, column], out[r, column + 16] = codes[g, j, r, b] & 15, codes[g, j, r, b] >> 4
    return out


_BLOCKS = {"f32": _plain("<f4"), "f16": _plain("<f2"), "bf16": _bf16, "q8_0": _q8_0, "q4_0": _q4_0, "q4_1": _q4_1}
