// Encode to and decode from the packed layout of format.h. Not on the token path, except decode_row.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/format.h"

namespace hotset::quant {

struct ErrorSums {  // over the real (unpadded) weights, in double
  double squared_error = 0, squared_weight = 0, max_abs_error = 0;
};

// Encodes `rows` rows of f32 `w` [rows, cols] (row-major, finite) into packed row blocks at `out`
// (packed_bytes(f, rows, cols) bytes). 4-bit and 8-bit scales minimize the squared error of each group
// (search over scales around the max-abs one, each refined by least squares), not max-abs alone.
// A NaN or infinite weight throws InvalidWeight naming row and column.
ErrorSums encode(Format f, const float* w, size_t rows, size_t cols, uint8_t* out);

// Re-orders rows of GGUF blocks (row-major; Q4_0 18 B, Q4_1 20 B, Q8_0 34 B per 32 columns; plain
// arrays for f16, bf16, f32) into the packed layout without changing any value. cols % 32 == 0 for the
// quantized ones. Non-finite scales or weights throw InvalidWeight.
void repack_ggml(Format f, const uint8_t* src, size_t rows, size_t cols, uint8_t* out);

// Decodes one row (index from the matrix start) of a packed matrix into out[cols].
void decode_row(Format f, const uint8_t* packed, size_t row, size_t cols, float* out);

}  // namespace hotset::quant
