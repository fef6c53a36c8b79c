// Sketches: copies of gate and up in 2 or 3 bits, from which a product is only guessed (predictor/sketch.h).
//
// A neuron's weights are one vector, so that any of them can be taken alone:
//   f16 scale[groups]         of 32 columns each; w ~ scale * (2 * code - (2^bits - 1))
//   codes of blocks of n = min(16, groups left) groups, whose lanes are groups as in quant/neuron.h:
//     u8  low[2][n][4]        byte [j][g][b]: bits 0-1 of the codes of columns g*32 + 4*(j + 2p) + b, p =
//     0..3,
//                             that of p in its bits 2p and 2p + 1
//     u8  high[n][4]          3 bits only; byte [g][b]: bit 2 of column g*32 + 4*j + b in its bit j, j = 0..7
// No code is 0: at so few bits a level between -1 and 1 would cost more than it gives. Groups with scale 0
// are 0.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/neuron.h"

namespace hotset::quant {

constexpr size_t sketch_group_bytes(unsigned bits) { return 2 + kGroup * bits / 8; }
constexpr size_t sketch_vector_bytes(unsigned bits, size_t cols) {
  return (cols + kGroup - 1) / kGroup * sketch_group_bytes(bits);
}

// Encodes f32 `w` [rows, cols], row-major, into vectors one behind the other. Scales minimize the sum of
// importance[col] * error^2 over each group: those tried lie around the largest magnitude, each refined by
// least squares. importance [cols], > 0: such as the mean square of the input there. Throws InvalidWeight for
// a weight that is not finite.
void encode_sketch(unsigned bits, const float* w, size_t rows, size_t cols, const float* importance,
                   uint8_t* out);

// The weights [rows, cols] that a sketch stands for.
void decode_sketch(unsigned bits, const uint8_t* sketch, size_t rows, size_t cols, float* out);

}  // namespace hotset::quant
