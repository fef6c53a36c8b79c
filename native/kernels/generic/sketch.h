// Sketches (quant/sketch.h) expanded to q8_0, whose product of matrices then reads them. Loops of constant
// length that the compiler turns into the vectors of each ISA.
#pragma once

#include "kernels/generic/vec.h"
#include "quant/sketch.h"

namespace hotset::kernels::generic {

// V: makes an instance of its own for every ISA (vec.h).
template <class V, unsigned kBits>
HOTSET_INLINE void expand_block(const uint8_t* __restrict sketch, uint8_t* __restrict q8_0) {
  constexpr size_t kPlane = quant::kSketchHigh;
  constexpr int kZero = 128 - ((1 << kBits) - 1);
  const uint8_t *low = sketch + quant::kSketchScales, *high = low + quant::kSketchLow;
  __builtin_memcpy(q8_0, sketch, quant::kSketchScales);
  uint8_t* codes = q8_0 + quant::kSketchScales;
  for (unsigned j = 0; j < 8; ++j) {  // 128 codes each
    for (size_t k = 0; k < kPlane; ++k) {
      int code = low[j % 2 * kPlane + k] >> j / 2 * 2 & 3;
      if constexpr (kBits == 3) code |= (high[k] >> j & 1) << 2;
      codes[j * kPlane + k] = static_cast<uint8_t>(2 * code + kZero);
    }
  }
}

template <class V, unsigned kBits>
HOTSET_INLINE void expand_blocks(const uint8_t* sketch, size_t blocks, uint8_t* q8_0) {
  constexpr size_t kIn = quant::sketch_block_bytes(kBits), kOut = quant::col_block_bytes(quant::Format::q8_0);
  for (size_t b = 0; b < blocks; ++b) expand_block<V, kBits>(sketch + b * kIn, q8_0 + b * kOut);
}

template <class V>
void expand_sketch(const uint8_t* sketch, unsigned bits, size_t blocks, uint8_t* q8_0) {
  bits == 2 ? expand_blocks<V, 2>(sketch, blocks, q8_0) : expand_blocks<V, 3>(sketch, blocks, q8_0);
}

}  // namespace hotset::kernels::generic
