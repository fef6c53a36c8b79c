// Vectors of neurons to the packed layout of matrices (quant/format.h), for gates that stay in memory.
#pragma once

#include "kernels/generic/neuron.h"

namespace hotset::kernels::generic {

HOTSET_INLINE void copy4(uint8_t* to, const uint8_t* from) { __builtin_memcpy(to, from, 4); }

// One group of a vector: where its scale and codes are.
struct GroupPlace {
  const uint8_t *scale, *codes;
  size_t step;  // bytes from one group of four codes to the next
};

template <quant::Format f>
HOTSET_INLINE GroupPlace group_place(const uint8_t* vector, size_t group, size_t groups) {
  constexpr size_t group_bytes = f == quant::Format::q8_0 ? 34 : 18;
  const size_t first = group / kLaneGroups * kLaneGroups, lane = group - first;
  const size_t lanes = groups - first < kLaneGroups ? groups - first : kLaneGroups;
  const uint8_t* block = vector + first * group_bytes;
  return {block + lane * 2, block + lanes * 2 + lane * 4, lanes * 4};
}

// A template over D, not its format: an instance that ISAs shared could be the wrong one after linking
// (vec.h).
template <class D>
void interleave_neurons(const uint8_t* const* vectors, size_t n, size_t cols, uint8_t* row_block) {
  constexpr quant::Format f = D::kFormat;
  constexpr size_t code_vectors = f == quant::Format::q8_0 ? 8 : 4, row4 = quant::kRowBlock * 4;
  constexpr size_t scales = 2 * quant::kRowBlock * 2;
  const size_t groups = (cols + quant::kGroup - 1) / quant::kGroup;
  const size_t col_blocks = (cols + quant::kColBlock - 1) / quant::kColBlock;
  // Scale 0 makes what is not there decode to 0.
  __builtin_memset(row_block, 0, col_blocks * quant::col_block_bytes(f));
  for (size_t group = 0; group < groups; ++group) {
    uint8_t* block = row_block + group / 2 * quant::col_block_bytes(f);
    const size_t g = group % 2;
    uint8_t* codes = block + scales + g * code_vectors * row4;
    for (size_t r = 0; r < n; ++r) {
      const GroupPlace from = group_place<f>(vectors[r], group, groups);
      __builtin_memcpy(block + (g * quant::kRowBlock + r) * 2, from.scale, 2);
      for (size_t j = 0; j < code_vectors; ++j) copy4(codes + j * row4 + r * 4, from.codes + j * from.step);
    }
  }
}

}  // namespace hotset::kernels::generic
