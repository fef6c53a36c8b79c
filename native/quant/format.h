// Weight formats and the one packed layout that all kernels read.
//
// A matrix W of `rows` x `cols` (row i dots with the input; out = W x) is stored as row blocks of 16
// rows; inside a row block the columns come in column blocks, so that one SIMD lane is one row, no
// kernel needs a horizontal sum, and every ISA from 128 to 512 bits reads the same bytes.
// Rows are padded to a multiple of 16 and columns to a multiple of 64 with weights that decode to 0 (in q4_1,
// those that share a group with a real column decode to its offset: activations are zero there, so nothing
// changes).
//
//   packed matrix = row_block[ceil(rows/16)], row_block = col_block[ceil(cols/64)]
//   col_block (16 rows x 64 columns; g = group of 32 columns, 0 or 1; r = row in block, 0..15)
//     q4_0   f16 scale[g][r]                    64 B   w = scale * (code - 8)
//            u8  codes[g][4][16][4]            512 B   see below
//     q4_1   f16 scale[g][r], f16 offset[g][r] 128 B   w = scale * code + offset
//            u8  codes[g][4][16][4]            512 B
//     q8_0   f16 scale[g][r]                    64 B   w = scale * (code - 128)
//            u8  codes[g][8][16][4]           1024 B
//     f16    f16  w[64][16]    2048 B   column-major inside the block
//     bf16   bf16 w[64][16]    2048 B
//     f32    f32  w[64][16]    4096 B
//   4-bit codes: byte [g][j][r][b] (j 0..3, b 0..3) holds column g*32 + 4*j + b in its low nibble and
//   column g*32 + 16 + 4*j + b in its high nibble. 8-bit codes: [g][j][r][b] holds column g*32 + 4*j + b.
// All multi-byte values are little endian. Sizes of blocks are multiples of 64 bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace hotset::quant {

enum class Format : uint8_t { f32, f16, bf16, q8_0, q4_0, q4_1 };

inline constexpr size_t kRowBlock = 16;  // rows per row block: int32 lanes of a 512-bit register
inline constexpr size_t kColBlock = 64;  // columns per column block: two groups
inline constexpr size_t kGroup = 32;     // columns that share a scale, as in GGUF's Q4_0, Q4_1, Q8_0

constexpr size_t col_block_bytes(Format f) {
  switch (f) {
    case Format::f32:
      return 4096;
    case Format::f16:
    case Format::bf16:
      return 2048;
    case Format::q8_0:
      return 1088;
    case Format::q4_0:
      return 576;
    case Format::q4_1:
      return 640;
  }
  return 0;
}
constexpr size_t row_blocks(size_t rows) { return (rows + kRowBlock - 1) / kRowBlock; }
constexpr size_t col_blocks(size_t cols) { return (cols + kColBlock - 1) / kColBlock; }
constexpr size_t row_block_bytes(Format f, size_t cols) { return col_blocks(cols) * col_block_bytes(f); }
constexpr size_t packed_bytes(Format f, size_t rows, size_t cols) {
  return row_blocks(rows) * row_block_bytes(f, cols);
}
constexpr bool is_quantized(Format f) { return f >= Format::q8_0; }

std::string_view name(Format f);  // "q4_0", ...
std::optional<Format> parse_format(std::string_view s);

}  // namespace hotset::quant
