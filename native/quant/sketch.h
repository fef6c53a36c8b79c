// Sketches: copies of matrices in 2 or 3 bits, from which a product is only guessed (predictor/sketch.h).
//
// Laid out as q8_0 matrices (format.h): row blocks of 16 rows, column blocks of 64 columns,
//   f16 scale[g][r]                                     64 B   w ~ scale * (2 * code - (2^bits - 1))
//   u8  low[256]    byte k: bits 0-1 of codes k, k + 256, k + 512, k + 768, first in its lowest bits
//   u8  high[128]   3 bits only; byte k: bit 2 of codes k, k + 128, ..., k + 896
// where code number [g][8][16][4] of q8_0 is meant. No code is 0: at so few bits a level between -1 and 1
// would cost more than it gives. Groups with scale 0 are 0.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/format.h"

namespace hotset::quant {

inline constexpr size_t kSketchScales = 64, kSketchLow = 256, kSketchHigh = 128;  // bytes in a column block

constexpr size_t sketch_block_bytes(unsigned bits) {
  return kSketchScales + kSketchLow + (bits == 3 ? kSketchHigh : 0);
}
constexpr size_t sketch_row_block_bytes(unsigned bits, size_t cols) {
  return col_blocks(cols) * sketch_block_bytes(bits);
}
constexpr size_t sketch_bytes(unsigned bits, size_t rows, size_t cols) {
  return row_blocks(rows) * sketch_row_block_bytes(bits, cols);
}

// Encodes f32 `w` [rows, cols], row-major. Scales minimize the sum of importance[col] * error^2 over each
// group: those tried lie around the largest magnitude, each refined by least squares. importance [cols], > 0:
// such as the mean square of the input there. Throws InvalidWeight for a weight that is not finite.
void encode_sketch(unsigned bits, const float* w, size_t rows, size_t cols, const float* importance,
                   uint8_t* out);

// The weights [rows, cols] that a sketch stands for.
void decode_sketch(unsigned bits, const uint8_t* sketch, size_t rows, size_t cols, float* out);

}  // namespace hotset::quant
