"""Sizes of the weight formats. The layout itself is described in native/quant/format.h, which this mirrors."""

from __future__ import annotations

from dataclasses import dataclass

from hotset.errors import UsageError

ROW_BLOCK = 16  # rows that are packed together
COL_BLOCK = 64  # columns in one column block


@dataclass(frozen=True, slots=True)
class Format:
    """One weight format of the store."""

    name: str
    col_block_bytes: int  # 16 rows x 64 columns
    ggml_type: str  # the GGUF type whose values it holds without loss
    quantized: bool

    @property
    def bits_per_weight(self) -> float:
        """Scales and offsets included."""
        return self.col_block_bytes * 8 / (ROW_BLOCK * COL_BLOCK)


_ALL = (
    Format("f32", 4096, "F32", quantized=False),
    Format("f16", 2048, "F16", quantized=False),
    Format("bf16", 2048, "BF16", quantized=False),
    Format("q8_0", 1088, "Q8_0", quantized=True),
    Format("q4_0", 576, "Q4_0", quantized=True),
    Format("q4_1", 640, "Q4_1", quantized=True),
)
FORMATS: dict[str, Format] = {f.name: f for f in _ALL}
GGML_TYPES: dict[str, Format] = {f.ggml_type: f for f in _ALL}


def format_named(name: str) -> Format:
    """The format of that name; UsageError with the closest one if there is none."""
    if name in FORMATS:
        return FORMATS[name]
    from difflib import get_close_matches

    close = get_close_matches(name.lower(), FORMATS, n=1, cutoff=0.3)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UsageError(f"unknown weight format {name[:40]!r}; there are {', '.join(FORMATS)}{hint}")


def packed_bytes(fmt: str, rows: int, cols: int) -> int:
    """Bytes of a packed matrix [rows, cols], or of a plain f32 vector [rows] where cols is 0."""
    if cols == 0:
        return rows * 4
    return -(-rows // ROW_BLOCK) * -(-cols // COL_BLOCK) * format_named(fmt).col_block_bytes
