// Vectors of single neurons (quant/neuron.h): dot products for gate and up, weighted sums for down.
//
// A block of 16 groups has the byte order of one group of 16 packed rows, so the traits D of the matrix
// kernels read its codes; only the activations differ per lane (D::lane_dot).
#pragma once

#include "kernels/generic/elementwise.h"
#include "quant/neuron.h"

namespace hotset::kernels::generic {

inline constexpr size_t kLaneGroups = quant::kLaneGroups;
inline constexpr size_t kBlockCols = kLaneGroups * quant::kGroup;

template <class D>
struct VectorBytes {
  static constexpr bool kBytes = D::kFormat == quant::Format::q8_0;
  static constexpr size_t kCodeVectors = kBytes ? 8 : 4;  // of 16 lanes * 4 codes (or pairs of codes)
  static constexpr size_t kScales = kLaneGroups * 2;
  static constexpr size_t kBlock = kScales + kCodeVectors * kLaneGroups * 4;
};

// Spreads a last block of n < 16 groups over 16 lanes; the others get scale 0.
template <class D>
HOTSET_INLINE void widen_block(const uint8_t* block, size_t n, uint8_t* wide) {
  using Bytes = VectorBytes<D>;
  __builtin_memset(wide, 0, Bytes::kBlock);
  __builtin_memcpy(wide, block, n * 2);
  for (size_t j = 0; j < Bytes::kCodeVectors; ++j)
    __builtin_memcpy(wide + Bytes::kScales + j * kLaneGroups * 4, block + n * 2 + j * n * 4, n * 4);
}

template <class V>
void quantize_lanes(const float* x, const LaneVector& v) {
  const size_t blocks = (v.cols + kBlockCols - 1) / kBlockCols;
  for (size_t g = 0; g < blocks * kLaneGroups; ++g) {
    float group[quant::kGroup];
    int8_t q[quant::kGroup];
    const size_t first = g * quant::kGroup;
    for (size_t i = 0; i < quant::kGroup; ++i) group[i] = first + i < v.cols ? x[first + i] : 0.0f;
    const Quantized quantized = quantize_absmax<V>(group, quant::kGroup, q);
    v.d[g] = quantized.scale;
    v.s[g] = quantized.sum;
    int8_t* lane = v.q + g / kLaneGroups * kBlockCols + g % kLaneGroups * 4;
    for (size_t i = 0; i < quant::kGroup; ++i) lane[i / 4 * kLaneGroups * 4 + i % 4] = q[i];
  }
}

// acc += scales * d * (codes . q - zero * s), lane by lane, for one block.
template <class D>
HOTSET_INLINE typename D::V::F dot_block(const uint8_t* block, const LaneVector& x, size_t b,
                                         typename D::V::F acc) {
  using V = typename D::V;
  constexpr int zero_shift = D::kZero == 8 ? 3 : D::kZero == 128 ? 7 : 0;
  static_assert(D::kZero == 0 || D::kZero == 1 << zero_shift);
#pragma GCC unroll 4
  for (size_t lane = 0; lane < kLaneGroups; lane += V::kLanes) {
    const size_t at = b * kLaneGroups + lane;
    typename V::I sums = V::zero_int();
    D::lane_dot(block + VectorBytes<D>::kScales + lane * 4, x.q + b * kBlockCols + lane * 4, sums);
    if constexpr (D::kZero != 0)
      sums = V::sub_int(sums, V::template shift_left<zero_shift>(V::load_int(x.s + at)));
    const typename V::F scale = V::load_f16(reinterpret_cast<const uint16_t*>(block) + lane);
    acc = V::fma(V::to_float(sums), V::mul(scale, V::load(x.d + at)), acc);
  }
  return acc;
}

// The next vector is elsewhere in memory, where no hardware prefetcher looks: fetch it while this one is
// computed.
template <class D>
void dot_neurons(const uint8_t* const* vectors, size_t n, const LaneVector& x, float* out) {
  using V = typename D::V;
  using Bytes = VectorBytes<D>;
  constexpr size_t ahead =
      2;  // vectors of 2.3 KB: about the latency of memory at one core's share of its rate
  const size_t groups = (x.cols + quant::kGroup - 1) / quant::kGroup;
  const size_t whole = groups / kLaneGroups, rest = groups % kLaneGroups;
  for (size_t i = 0; i < n; ++i) {
    const uint8_t* vector = vectors[i];
    const uint8_t* next = vectors[i + ahead < n ? i + ahead : n - 1];
    typename V::F acc = V::zero();
    for (size_t b = 0; b < whole; ++b) {
#pragma GCC unroll 16
      for (size_t line = 0; line < Bytes::kBlock; line += 64)
        __builtin_prefetch(next + b * Bytes::kBlock + line);
      acc = dot_block<D>(vector + b * Bytes::kBlock, x, b, acc);
    }
    if (rest > 0) {
      alignas(64) uint8_t wide[Bytes::kBlock];
      widen_block<D>(vector + whole * Bytes::kBlock, rest, wide);
      acc = dot_block<D>(wide, x, whole, acc);
    }
    out[i] = V::sum(acc);
  }
}

// Columns of one block in lane order while they are summed: [4 * j + b][group], column group*32 + 4*j + b.
struct BlockSum {
  float columns[quant::kGroup][kLaneGroups];
  float scales[kLaneGroups];  // sum of a * scale: what the zero point takes off every column of the group
};

// One code vector (lanes from `lane`) of up to kBatch neurons: the columns that its codes stand for.
template <class D, bool kHigh>
HOTSET_INLINE void sum_codes(const uint8_t* const* blocks, const float* a, size_t n, size_t lane, size_t j,
                             BlockSum& sum) {
  using V = typename D::V;
  using F = typename V::F;
  constexpr int bits = VectorBytes<D>::kBytes ? 8 : 4, high = kHigh ? 4 : 0;
  float (*rows)[kLaneGroups] = sum.columns + (kHigh ? 16 : 0) + j * 4;
  F acc[4];
#pragma GCC unroll 4
  for (int b = 0; b < 4; ++b) acc[b] = V::load(rows[b] + lane);
  for (size_t i = 0; i < n; ++i) {
    const F weight = V::mul(V::load_f16(reinterpret_cast<const uint16_t*>(blocks[i]) + lane), V::set(a[i]));
    int32_t words[V::kLanes];
    __builtin_memcpy(words, blocks[i] + VectorBytes<D>::kScales + j * kLaneGroups * 4 + lane * 4,
                     sizeof(words));
    const typename V::I codes = V::load_int(words);
    acc[0] = V::fma(V::template code<high, bits>(codes), weight, acc[0]);
    acc[1] = V::fma(V::template code<high + 8, bits>(codes), weight, acc[1]);
    acc[2] = V::fma(V::template code<high + 16, bits>(codes), weight, acc[2]);
    acc[3] = V::fma(V::template code<high + 24, bits>(codes), weight, acc[3]);
  }
#pragma GCC unroll 4
  for (int b = 0; b < 4; ++b) V::store(rows[b] + lane, acc[b]);
}

template <class D>
HOTSET_INLINE void sum_block(const uint8_t* const* blocks, const float* a, size_t n, BlockSum& sum) {
  using V = typename D::V;
  for (size_t lane = 0; lane < kLaneGroups; lane += V::kLanes) {
    typename V::F scales = V::load(sum.scales + lane);
    for (size_t i = 0; i < n; ++i)
      scales = V::fma(V::load_f16(reinterpret_cast<const uint16_t*>(blocks[i]) + lane), V::set(a[i]), scales);
    V::store(sum.scales + lane, scales);
    for (size_t j = 0; j < VectorBytes<D>::kCodeVectors; ++j) {
      sum_codes<D, false>(blocks, a, n, lane, j, sum);
      if constexpr (!VectorBytes<D>::kBytes) sum_codes<D, true>(blocks, a, n, lane, j, sum);
    }
  }
}

template <class D>
HOTSET_INLINE void store_block(const BlockSum& sum, size_t cols, float* y) {
  constexpr float zero = D::kFormat == quant::Format::q8_0 ? 128.0f : 8.0f;
  for (size_t c = 0; c < cols; ++c) {
    const size_t g = c / quant::kGroup;
    y[c] = sum.columns[c % quant::kGroup][g] - zero * sum.scales[g];
  }
}

// Neurons in batches, so that the sums are loaded and stored once a batch and few streams are open at a time.
template <class D>
void sum_neurons(const uint8_t* const* vectors, const float* a, size_t n, size_t cols, size_t begin,
                 size_t end, float* y) {
  using Bytes = VectorBytes<D>;
  constexpr size_t batch = 8, most = 8;  // 8 neurons; 8 blocks = 4096 columns, 17 KB of sums, in L1
  const size_t whole = cols / kBlockCols, rest = (cols % kBlockCols + quant::kGroup - 1) / quant::kGroup;
  alignas(64) BlockSum sums[most];
  alignas(64) uint8_t wide[batch][Bytes::kBlock];
  for (size_t first = begin; first < end; first += most) {
    const size_t last = end - first < most ? end : first + most;
    __builtin_memset(sums, 0, (last - first) * sizeof(BlockSum));
    for (size_t i = 0; i < n; i += batch) {
      const size_t count = n - i < batch ? n - i : batch;
      for (size_t b = first; b < last; ++b) {
        const uint8_t* blocks[batch];
        for (size_t k = 0; k < count; ++k) {
          blocks[k] = vectors[i + k] + b * Bytes::kBlock;
          if (b >= whole) {
            widen_block<D>(blocks[k], rest, wide[k]);
            blocks[k] = wide[k];
          }
          const uint8_t* next = vectors[i + batch + k < n ? i + batch + k : n - 1] + b * Bytes::kBlock;
#pragma GCC unroll 16
          for (size_t line = 0; line < Bytes::kBlock; line += 64) __builtin_prefetch(next + line);
        }
        sum_block<D>(blocks, a + i, count, sums[b - first]);
      }
    }
    for (size_t b = first; b < last; ++b) {
      const size_t left = cols - b * kBlockCols;
      store_block<D>(sums[b - first], left < kBlockCols ? left : kBlockCols, y + b * kBlockCols);
    }
  }
}

}  // namespace hotset::kernels::generic
