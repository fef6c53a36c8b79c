// Products of low-bit copies of neurons' vectors (quant/sketch.h) with tokens. A block's codes are taken
// apart in registers, doubled, so that a weight is scale * (code - top), and all that comes from memory is
// their bits.
#pragma once

#include "kernels/generic/neuron.h"
#include "quant/sketch.h"

namespace hotset::kernels::generic {

// Vectors whose like blocks are fetched before they are needed. Scattered ones take half the time where they
// go to L2 first (docs/decisions/log.md).
inline constexpr size_t kSketchAhead = 8;

template <unsigned kBits>
struct SketchBytes {
  static constexpr size_t kScales = kLaneGroups * 2, kPlane = kLaneGroups * 4, kPlanes = kBits * kPlane;
};

template <class V, int kBy>
HOTSET_INLINE typename V::I shifted(typename V::I v) {
  if constexpr (kBy > 0) return V::template shift_right<kBy>(v);
  if constexpr (kBy < 0) return V::template shift_left<-kBy>(v);
  return v;
}

// Twice the codes of columns 4j..4j+3 of a lane's group, from the two low planes and the high one.
template <class V, unsigned kBits, int j>
HOTSET_INLINE typename V::I sketch_code(const typename V::I* planes) {
  const typename V::I low = shifted<V, j / 2 * 2 - 1>(planes[j % 2]);
  if constexpr (kBits == 2) return V::bits(low, 0x06060606, 0);
  return V::bits(low, 0x06060606, V::bits(shifted<V, j - 3>(planes[2]), 0x08080808, 0));
}

template <class V, unsigned kBits>
struct SketchCodes {
  typename V::I v[8];

  HOTSET_INLINE explicit SketchCodes(const uint8_t* planes) {
    typename V::I p[kBits];
#pragma GCC unroll 3
    for (unsigned i = 0; i < kBits; ++i) {
      p[i] = V::load_int(planes + i * SketchBytes<kBits>::kPlane);
    }
    v[0] = sketch_code<V, kBits, 0>(p), v[1] = sketch_code<V, kBits, 1>(p);
    v[2] = sketch_code<V, kBits, 2>(p), v[3] = sketch_code<V, kBits, 3>(p);
    v[4] = sketch_code<V, kBits, 4>(p), v[5] = sketch_code<V, kBits, 5>(p);
    v[6] = sketch_code<V, kBits, 6>(p), v[7] = sketch_code<V, kBits, 7>(p);
  }
};

// sums[t] += scales * d * (codes . q - top * s), lane by lane, of one block and tokens [first, first + T).
template <class V, unsigned kBits, size_t T>
HOTSET_INLINE void sketch_block(const uint8_t* scales, const uint8_t* planes, const LaneVector& x, size_t b,
                                size_t first, typename V::F* sums) {
#pragma GCC unroll 4
  for (size_t lane = 0; lane < kLaneGroups; lane += V::kLanes) {
    const typename V::F scale = V::load_f16(reinterpret_cast<const uint16_t*>(scales) + lane);
    const SketchCodes<V, kBits> codes(planes + lane * 4);
#pragma GCC unroll 4
    for (size_t t = 0; t < T; ++t) {
      const size_t at = b * x.stride + first + t;
      const typename V::I s = V::load_int(x.s + at * kLaneGroups + lane);
      const typename V::I start = V::sub_int(s, V::template shift_left<static_cast<int>(kBits)>(s));
      const typename V::I dots = V::dot_codes(codes.v, x.q + at * kBlockCols + lane * 4, start);
      const typename V::F d = V::load(x.d + at * kLaneGroups + lane);
      sums[t] = V::fma(V::to_float(dots), V::mul(scale, d), sums[t]);
    }
  }
}

// A last block of n < 16 groups as one of 16, of which the others have scale 0.
template <unsigned kBits>
struct WideSketch {
  using Bytes = SketchBytes<kBits>;
  alignas(64) uint8_t planes[Bytes::kPlanes] = {}, scales[Bytes::kScales] = {};

  HOTSET_INLINE WideSketch(const uint8_t* from_scales, const uint8_t* from_planes, size_t n) {
    __builtin_memcpy(scales, from_scales, n * 2);
    for (size_t i = 0; i < kBits; ++i)
      __builtin_memcpy(planes + i * Bytes::kPlane, from_planes + i * n * 4, n * 4);
  }
};

// One vector and tokens [first, first + T) of all blocks; `next` is fetched meanwhile.
template <class V, unsigned kBits, size_t T, Cache kTo>
HOTSET_INLINE void sketch_vector(const uint8_t* vector, const uint8_t* next, const LaneVector& x,
                                 size_t first, float* out) {
  using Bytes = SketchBytes<kBits>;
  constexpr size_t kShare = Bytes::kScales + Bytes::kPlanes;
  const BlockCount blocks(x.cols);
  const size_t scale_bytes = (blocks.whole * kLaneGroups + blocks.rest) * 2;
  const uint8_t* planes = vector + scale_bytes;
  typename V::F sums[T];
#pragma GCC unroll 4
  for (size_t t = 0; t < T; ++t) sums[t] = V::zero();
  for (size_t b = 0; b < blocks.whole; ++b) {
    prefetch<kShare, kTo>(next + b * kShare);
    sketch_block<V, kBits, T>(vector + b * Bytes::kScales, planes + b * Bytes::kPlanes, x, b, first, sums);
  }
  if (blocks.rest) {
    const WideSketch<kBits> wide(vector + blocks.whole * Bytes::kScales,
                                 planes + blocks.whole * Bytes::kPlanes, blocks.rest);
    sketch_block<V, kBits, T>(wide.scales, wide.planes, x, blocks.whole, first, sums);
  }
#pragma GCC unroll 4
  for (size_t t = 0; t < T; ++t) out[first + t] = V::sum(sums[t]);
}

template <class V, unsigned kBits, Cache kTo>
void sketch_vectors(const uint8_t* const* vectors, size_t n, const LaneVector& x, size_t tokens, float* out) {
  for (size_t i = 0; i < n; ++i, out += tokens) {
    const uint8_t* next = vectors[i + kSketchAhead < n ? i + kSketchAhead : n - 1];
    size_t t = 0;
    for (; t + 4 <= tokens; t += 4) sketch_vector<V, kBits, 4, kTo>(vectors[i], next, x, t, out);
    for (; t < tokens; ++t) sketch_vector<V, kBits, 1, kTo>(vectors[i], next, x, t, out);
  }
}

template <class V, unsigned kBits>
void dot_sketch(const uint8_t* const* vectors, size_t n, const LaneVector& x, size_t tokens, float* out) {
  kStreamToL2 ? sketch_vectors<V, kBits, kL2>(vectors, n, x, tokens, out)
              : sketch_vectors<V, kBits, kL1>(vectors, n, x, tokens, out);
}

}  // namespace hotset::kernels::generic
