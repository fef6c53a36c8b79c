// Down: weighted sums of single neurons' vectors.
//
// Sums are kept in lane order while neurons are added: block b of n groups is [32][n], column g*32 + c of the
// block at [c][g], so that a code vector adds to whole registers. Every column adds its neurons in the order
// of the list, one multiply-add each, so neither batches nor columns nor pieces of the list change a bit.
#pragma once

#include "kernels/generic/neuron.h"

namespace hotset::kernels::generic {

// The code at bit kAt of each lane, minus the one that stands for 0, exactly: its bits become the last ones
// of a float of 2^(23 - kAt), which is then taken off. No conversion, and the additions run on ports that the
// multiply-adds leave free.
template <class D, int kAt>
HOTSET_INLINE typename D::V::F signed_code(typename D::V::I codes) {
  using V = typename D::V;
  constexpr bool bytes = VectorBytes<D>::kBytes;
  constexpr int32_t exponent = (127 + 23 - kAt) << 23;
  constexpr float zero = static_cast<float>(1 << (23 - kAt)) + (bytes ? 128.0f : 8.0f);
  return V::sub(V::as_float(V::bits(codes, (bytes ? 255 : 15) << kAt, exponent)), V::set(zero));
}

// Code vector j (lanes from `lane`) of n vectors: sums[column of the code] += code * weights[i].
template <class D>
HOTSET_INLINE void sum_codes(const uint8_t* const* blocks, const float (*weights)[kLaneGroups], size_t n,
                             size_t lane, size_t j, float (*sums)[kLaneGroups]) {
  using V = typename D::V;
  using F = typename V::F;
  constexpr int kHalves =
      VectorBytes<D>::kBytes ? 1 : 2;  // a byte is one code, or one of each half of a group
  float (*rows)[kLaneGroups] = sums + j * 4;
  F acc[kHalves][4];
#pragma GCC unroll 8
  for (int k = 0; k < kHalves * 4; ++k) acc[k / 4][k % 4] = V::load(rows[k / 4 * 16 + k % 4] + lane);
  for (size_t i = 0; i < n; ++i) {
    const F weight = V::load(weights[i] + lane);
    int32_t words[V::kLanes];
    __builtin_memcpy(words, blocks[i] + VectorBytes<D>::kScales + j * kLaneGroups * 4 + lane * 4,
                     sizeof(words));
    const typename V::I low = V::load_int(words), high = V::template shift_right<16>(low);
    acc[0][0] = V::fma(signed_code<D, 0>(low), weight, acc[0][0]);
    acc[0][1] = V::fma(signed_code<D, 8>(low), weight, acc[0][1]);
    acc[0][2] = V::fma(signed_code<D, 0>(high), weight, acc[0][2]);
    acc[0][3] = V::fma(signed_code<D, 8>(high), weight, acc[0][3]);
    if constexpr (kHalves == 2) {
      acc[1][0] = V::fma(signed_code<D, 4>(low), weight, acc[1][0]);
      acc[1][1] = V::fma(signed_code<D, 12>(low), weight, acc[1][1]);
      acc[1][2] = V::fma(signed_code<D, 4>(high), weight, acc[1][2]);
      acc[1][3] = V::fma(signed_code<D, 12>(high), weight, acc[1][3]);
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < kHalves * 4; ++k) V::store(rows[k / 4 * 16 + k % 4] + lane, acc[k / 4][k % 4]);
}

inline constexpr size_t kBatch = 4;  // vectors that are added between a load and a store of the sums

// sums += a[i] * block i.
template <class D>
HOTSET_INLINE void sum_block(const uint8_t* const* blocks, const float* a, size_t n,
                             float (*sums)[kLaneGroups]) {
  using V = typename D::V;
  alignas(64) float weights[kBatch][kLaneGroups];
  for (size_t lane = 0; lane < kLaneGroups; lane += V::kLanes) {
    for (size_t i = 0; i < n; ++i)
      V::store(weights[i] + lane,
               V::mul(V::load_f16(reinterpret_cast<const uint16_t*>(blocks[i]) + lane), V::set(a[i])));
    for (size_t j = 0; j < VectorBytes<D>::kCodeVectors; ++j) sum_codes<D>(blocks, weights, n, lane, j, sums);
  }
}

// Sums of a block of `lanes` groups to 16 lanes and back.
HOTSET_INLINE void copy_lanes(const float* from, size_t from_lanes, float* to, size_t to_lanes) {
  const size_t lanes = from_lanes < to_lanes ? from_lanes : to_lanes;
  for (size_t c = 0; c < quant::kGroup; ++c)
    __builtin_memcpy(to + c * to_lanes, from + c * from_lanes, lanes * sizeof(float));
}

// Blocks [begin, end) for all vectors; `sums` is where block `begin` is.
template <class D>
HOTSET_INLINE void add_blocks(const uint8_t* const* vectors, const float* a, size_t n, size_t cols,
                              size_t begin, size_t end, float* sums) {
  BlockWalk<D, kBatch> walk(vectors, n, cols, begin, end);
  const BlockCount count(cols);
  for (size_t i = 0; i < n; i += kBatch) {
    const size_t batch = walk.size(i);
    for (size_t b = begin; b < end; ++b) {
      walk.take(i, b);
      float* block = sums + (b - begin) * kBlockCols;
      if (b < count.whole) {
        sum_block<D>(walk.at, a + i, batch, reinterpret_cast<float (*)[kLaneGroups]>(block));
        continue;
      }
      alignas(64) float wide[quant::kGroup][kLaneGroups] = {};
      copy_lanes(block, count.rest, wide[0], kLaneGroups);
      sum_block<D>(walk.at, a + i, batch, wide);
      copy_lanes(wide[0], kLaneGroups, block, count.rest);
    }
  }
}

inline constexpr size_t kSumBlocks = 8;  // 16 KB of sums, in L1 beside the codes

template <class D>
void add_neurons(const uint8_t* const* vectors, const float* a, size_t n, size_t cols, size_t begin,
                 size_t end, float* sums) {
  for (size_t first = begin; first < end; first += kSumBlocks) {
    const size_t last = end - first < kSumBlocks ? end : first + kSumBlocks;
    add_blocks<D>(vectors, a, n, cols, first, last, sums + first * kBlockCols);
  }
}

// A block of `lanes` groups in column order, as far as `cols` reach.
HOTSET_INLINE void order_block(const float* sums, size_t lanes, size_t cols, float* y) {
  for (size_t g = 0; g < lanes; ++g, y += quant::kGroup) {
    const size_t used = cols < (g + 1) * quant::kGroup ? cols - g * quant::kGroup : quant::kGroup;
    for (size_t c = 0; c < used; ++c) y[c] = sums[c * lanes + g];
  }
}

// A template over V for internal linkage (vec.h); it moves floats only.
template <class V>
void order_sums(size_t cols, size_t begin, size_t end, float* sums) {
  const BlockCount count(cols);
  for (size_t b = begin; b < end; ++b) {
    float block[kBlockCols];
    float* y = sums + b * kBlockCols;
    const size_t bytes = count.lanes(b) * quant::kGroup * sizeof(float);
    __builtin_memcpy(block, y, bytes);
    __builtin_memset(y, 0, bytes);
    order_block(block, count.lanes(b), cols - b * kBlockCols, y);
  }
}

template <class D>
void sum_neurons(const uint8_t* const* vectors, const float* a, size_t n, size_t cols, size_t begin,
                 size_t end, float* y) {
  const BlockCount count(cols);
  alignas(64) float sums[kSumBlocks * kBlockCols];
  for (size_t first = begin; first < end; first += kSumBlocks) {
    const size_t last = end - first < kSumBlocks ? end : first + kSumBlocks;
    __builtin_memset(sums, 0, (last - first) * kBlockCols * sizeof(float));
    add_blocks<D>(vectors, a, n, cols, first, last, sums);
    for (size_t b = first; b < last; ++b)
      order_block(sums + (b - first) * kBlockCols, count.lanes(b), cols - b * kBlockCols, y + b * kBlockCols);
  }
}

}  // namespace hotset::kernels::generic
