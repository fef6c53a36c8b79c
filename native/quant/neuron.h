// One neuron's weights as the drive and the cache hold them: gate row, up row and down column side by side.
//
// A bundle is read and computed alone, so its lanes are not rows (format.h) but groups of columns: a vector
// is a sequence of blocks of 16 groups (512 columns); in a block, lane = group, so that eight dot-product
// instructions sum 512 columns without leaving their lane and one multiply-add applies all 16 scales.
//
//   bundle (layout.stride bytes) = up vector, down vector, gate vector (gated FFNs), zero padding
// so that where gates are in memory for prediction the rest is one read from the bundle's start.
//   vector of `cols` weights, G = ceil(cols / 32) groups, blocks of n = min(16, groups left) groups:
//     q4_0   f16 scale[n], u8 codes[4][n][4]   18 B a group   w = scale * (code - 8)
//     q8_0   f16 scale[n], u8 codes[8][n][4]   34 B a group   w = scale * (code - 128)
//   4-bit codes: byte [j][g][b] holds column g*32 + 4*j + b of the block in its low nibble and column
//   g*32 + 16 + 4*j + b in its high nibble. 8-bit codes: [j][g][b] holds column g*32 + 4*j + b.
// The down vector's groups run over hidden columns of one neuron: each neuron can be read alone.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/codec.h"
#include "quant/format.h"

namespace hotset::quant {

inline constexpr size_t kLaneGroups = 16;  // groups per block: int32 lanes of a 512-bit register

constexpr size_t vector_bytes(Format f, size_t cols) {
  const size_t groups = (cols + kGroup - 1) / kGroup;
  return groups * (f == Format::q4_0 ? 18 : 34);
}

struct NeuronLayout {
  Format format = Format::q4_0;  // q4_0 or q8_0
  size_t hidden = 0;
  bool gated = true;
  size_t stride = 0;  // bytes from one bundle to the next; a multiple of what direct I/O asks for

  size_t vector() const { return vector_bytes(format, hidden); }
  size_t down_offset() const { return vector(); }
  size_t gate_offset() const { return 2 * vector(); }
  size_t bytes() const { return (gated ? 3 : 2) * vector(); }  // without the padding
};

// Encodes w[cols] into one vector, scales as in codec.h. A NaN, infinite or too large weight throws
// InvalidWeight naming the column.
ErrorSums encode_vector(Format f, const float* w, size_t cols, uint8_t* out);
void decode_vector(Format f, const uint8_t* vector, size_t cols, float* out);

}  // namespace hotset::quant
