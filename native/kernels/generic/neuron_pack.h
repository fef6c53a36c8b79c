// Vectors of neurons to the packed layout of matrices (quant/format.h): what a prompt's many tokens pay for.
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

// Decodes one block: out[c][lane] = weight of column lane*32 + c.
template <class D>
HOTSET_INLINE void decode_block(const uint8_t* block, float (*out)[kLaneGroups]) {
  using V = typename D::V;
  using Bytes = VectorBytes<D>;
  constexpr int bits = Bytes::kBytes ? 8 : 4;
  const typename V::F zero = V::set(Bytes::kBytes ? 128.0f : 8.0f);
  for (size_t lane = 0; lane < kLaneGroups; lane += V::kLanes) {
    const typename V::F scale = V::load_f16(reinterpret_cast<const uint16_t*>(block) + lane);
    const auto put = [&](size_t c, typename V::F code) {
      V::store(out[c] + lane, V::mul(V::sub(code, zero), scale));
    };
    for (size_t j = 0; j < Bytes::kCodeVectors; ++j) {
      int32_t words[V::kLanes];
      __builtin_memcpy(words, block + Bytes::kScales + j * kLaneGroups * 4 + lane * 4, sizeof(words));
      const typename V::I v = V::load_int(words);
      put(j * 4 + 0, V::template code<0, bits>(v));
      put(j * 4 + 1, V::template code<8, bits>(v));
      put(j * 4 + 2, V::template code<16, bits>(v));
      put(j * 4 + 3, V::template code<24, bits>(v));
      if constexpr (!Bytes::kBytes) {
        put(16 + j * 4 + 0, V::template code<4, bits>(v));
        put(16 + j * 4 + 1, V::template code<12, bits>(v));
        put(16 + j * 4 + 2, V::template code<20, bits>(v));
        put(16 + j * 4 + 3, V::template code<28, bits>(v));
      }
    }
  }
}

// The stored scale may be a little smaller than absmax / 127.
template <class V>
HOTSET_INLINE typename V::F clamp127(typename V::F x) {
  return V::max(V::min(x, V::set(127.0f)), V::set(-127.0f));
}

// Scales of one group of neurons for 16 lanes of rows: absmax / 127, as f16.
template <class V>
HOTSET_INLINE void group_scales(const float* rows, size_t stride, uint16_t* scales, float* inverse) {
  using F = typename V::F;
  for (size_t lane = 0; lane < kLaneGroups; lane += V::kLanes) {
    F top = V::zero();
    for (size_t i = 0; i < quant::kGroup; ++i) {
      const F w = V::load(rows + i * stride + lane);
      top = V::max(top, V::max(w, V::sub(V::zero(), w)));
    }
    V::store_f16(scales + lane, V::mul(top, V::set(1.0f / 127.0f)));
    const F stored = V::load_f16(scales + lane);
    V::store(inverse + lane, V::less(V::zero(), stored, V::div(V::set(1.0f), stored), V::zero()));
  }
}

// In a decoded block the lanes of line c are columns c, 32 + c, ...: hidden rows that are 32 apart. A row
// block wants 16 neighbours, so codes are made line by line and scattered to their row's byte.
template <class D>
void transpose_neurons(const uint8_t* const* vectors, size_t n, size_t cols, size_t block, uint8_t* out,
                       size_t stride) {
  using V = typename D::V;
  constexpr size_t row4 = quant::kRowBlock * 4, scale_bytes = 2 * quant::kRowBlock * 2;
  const size_t groups = (cols + quant::kGroup - 1) / quant::kGroup, first = block * kLaneGroups;
  const size_t lanes = groups - first < kLaneGroups ? groups - first : kLaneGroups;
  const size_t used = cols - block * kBlockCols < kBlockCols ? cols - block * kBlockCols : kBlockCols;
  const size_t row_blocks = (used + quant::kRowBlock - 1) / quant::kRowBlock;
  alignas(64) float weights[quant::kGroup][quant::kGroup][kLaneGroups];  // [neuron][c][lane]
  for (size_t i = 0; i < row_blocks; ++i) __builtin_memset(out + i * stride, 0, scale_bytes);
  for (size_t g = 0; g < 2; ++g) {
    const size_t from = g * quant::kGroup, count = n < from                   ? 0
                                                   : n - from < quant::kGroup ? n - from
                                                                              : quant::kGroup;
    for (size_t i = 0; i < quant::kGroup; ++i) {
      if (i >= count) {
        __builtin_memset(weights[i], 0, sizeof(weights[i]));
        continue;
      }
      const uint8_t* bytes = vectors[from + i] + block * VectorBytes<D>::kBlock;
      alignas(64) uint8_t wide[VectorBytes<D>::kBlock];
      if (lanes < kLaneGroups) {
        widen_block<D>(bytes, lanes, wide);
        bytes = wide;
      }
      decode_block<D>(bytes, weights[i]);
    }
    for (size_t c = 0; c < quant::kGroup; ++c) {
      uint16_t scales[kLaneGroups];
      float inverse[kLaneGroups];
      group_scales<V>(&weights[0][c][0], quant::kGroup * kLaneGroups, scales, inverse);
      for (size_t lane = 0; lane < lanes; ++lane) {
        const size_t row = lane * quant::kGroup + c;
        if (row < row_blocks * quant::kRowBlock)
          __builtin_memcpy(out + row / 16 * stride + (g * 16 + row % 16) * 2, &scales[lane], 2);
      }
      for (size_t i = 0; i < quant::kGroup; ++i) {
        int8_t codes[kLaneGroups];
        for (size_t lane = 0; lane < kLaneGroups; lane += V::kLanes)
          V::store_i8(codes + lane,
                      clamp127<V>(V::mul(V::load(weights[i][c] + lane), V::load(inverse + lane))));
        for (size_t lane = 0; lane < lanes; ++lane) {
          const size_t row = lane * quant::kGroup + c;
          if (row >= row_blocks * quant::kRowBlock) continue;
          uint8_t* to = out + row / 16 * stride + scale_bytes + (g * 8 + i / 4) * row4 + row % 16 * 4 + i % 4;
          *to = static_cast<uint8_t>(codes[lane] ^ 0x80);
        }
      }
    }
  }
}

}  // namespace hotset::kernels::generic
