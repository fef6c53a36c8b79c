// Gate and up: dot products of single neurons' vectors with one token or several.
//
// A few vectors go through the columns side by side, block by block. A block's codes are expanded once for up
// to kDotTokens tokens, whose activations of that block (10 KB) stay in L1 for all of them.
#pragma once

#include "kernels/generic/neuron.h"

namespace hotset::kernels::generic {

inline constexpr size_t kDotTokens = 16;

// Vectors side by side and blocks fetched ahead of them. With few tokens what comes from memory bounds, with
// more the activations, which come from L2 once for every set of vectors; measured on a 7B's layers.
inline constexpr size_t kFewTokens = 12, kFewVectors = 4, kFewAhead = 6, kManyVectors = 32, kManyAhead = 1;
inline constexpr size_t kFewPairs = 3;  // of a vector, on average

template <class V, size_t kSet>
struct DotSums {
  alignas(64) float lanes[kSet][kDotTokens][V::kLanes];
};

// sums[i][t] += scales * d * (codes . q - zero * s), lane by lane, of N vectors' block b and token token(t).
template <class D, int N, class Token>
HOTSET_INLINE void dot_block(const uint8_t* const* blocks, const LaneVector& x, size_t b, size_t n,
                             Token token, float (*sums)[kDotTokens][D::V::kLanes]) {
  using V = typename D::V;
  constexpr int zero_shift = D::kZero == 8 ? 3 : D::kZero == 128 ? 7 : 0;
  static_assert(D::kZero == 0 || D::kZero == 1 << zero_shift);
#pragma GCC unroll 4
  for (size_t lane = 0; lane < kLaneGroups; lane += V::kLanes) {
    typename V::F scale[N];
    typename D::LaneWeights weights[N];
#pragma GCC unroll 2
    for (int i = 0; i < N; ++i) {
      scale[i] = V::load_f16(reinterpret_cast<const uint16_t*>(blocks[i]) + lane);
      weights[i] = D::lane_load(blocks[i] + VectorBytes<D>::kScales + lane * 4);
    }
    for (size_t t = 0; t < n; ++t) {
      const size_t at = b * x.stride + token(t);
      typename V::I start = V::zero_int(), dots[N];
      if constexpr (D::kZero != 0)
        start =
            V::sub_int(start, V::template shift_left<zero_shift>(V::load_int(x.s + at * kLaneGroups + lane)));
#pragma GCC unroll 2
      for (int i = 0; i < N; ++i) dots[i] = start;
      D::template lane_dot<N>(weights, x.q + at * kBlockCols + lane * 4, dots);
      const typename V::F d = V::load(x.d + at * kLaneGroups + lane);
#pragma GCC unroll 2
      for (int i = 0; i < N; ++i)
        V::store(sums[i][t], V::fma(V::to_float(dots[i]), V::mul(scale[i], d), V::load(sums[i][t])));
    }
  }
}

HOTSET_INLINE size_t at_most(size_t n, size_t most) { return n < most ? n : most; }

// Tokens [first, first + count) for all blocks of the vectors from `vector` on, two at a time: what is loaded
// of a token serves both.
template <class D, class Walk, class Sums>
HOTSET_INLINE void dot_set(Walk& walk, size_t vector, const LaneVector& x, size_t first, size_t count,
                           Sums& sums) {
  const size_t n = walk.size(vector);
  const auto token = [=](size_t t) { return first + t; };
  for (size_t b = 0; b < BlockCount(x.cols).all(); ++b) {
    walk.take(vector, b);
    size_t i = 0;
    for (; i + 2 <= n; i += 2) dot_block<D, 2>(walk.at + i, x, b, count, token, sums.lanes + i);
    if (i < n) dot_block<D, 1>(walk.at + i, x, b, count, token, sums.lanes + i);
  }
}

template <class D, size_t kSet, size_t kAhead>
HOTSET_INLINE void dot_sets(const uint8_t* const* vectors, size_t n, const LaneVector& x, size_t tokens,
                            float* out) {
  using V = typename D::V;
  DotSums<V, kSet> sums;
  BlockWalk<D, kSet, kAhead> walk(vectors, n, x.cols, 0, BlockCount(x.cols).all());
  for (size_t i = 0; i < n; i += kSet) {
    for (size_t first = 0; first < tokens; first += kDotTokens) {
      const size_t count = at_most(tokens - first, kDotTokens);
      for (size_t k = 0; k < walk.size(i); ++k)
        __builtin_memset(sums.lanes[k], 0, count * sizeof(sums.lanes[k][0]));
      dot_set<D>(walk, i, x, first, count, sums);
      for (size_t k = 0; k < walk.size(i); ++k)
        for (size_t t = 0; t < count; ++t)
          out[(i + k) * tokens + first + t] = V::sum(V::load(sums.lanes[k][t]));
    }
  }
}

template <class D>
void dot_neurons(const uint8_t* const* vectors, size_t n, const LaneVector& x, size_t tokens, float* out) {
  if (tokens <= kFewTokens)
    dot_sets<D, kFewVectors, kFewAhead>(vectors, n, x, tokens, out);
  else
    dot_sets<D, kManyVectors, kManyAhead>(vectors, n, x, tokens, out);
}

template <class D, size_t kSet, size_t kAhead>
HOTSET_INLINE void pair_sets(const uint8_t* const* vectors, size_t n, const LaneVector& x,
                             const uint32_t* first, const uint16_t* tokens, float* out) {
  using V = typename D::V;
  DotSums<V, kSet> sums;
  BlockWalk<D, kSet, kAhead> walk(vectors, n, x.cols, 0, BlockCount(x.cols).all());
  for (size_t i = 0; i < n; i += kSet) {
    const size_t set = walk.size(i);
    for (size_t done = 0, longest = 1; done < longest; done += kDotTokens) {
      size_t count[kSet];
      for (size_t k = 0; k < set; ++k) {
        const size_t all = first[i + k + 1] - first[i + k];
        count[k] = all < done ? 0 : at_most(all - done, kDotTokens);
        if (all > longest) longest = all;
        __builtin_memset(sums.lanes[k], 0, count[k] * sizeof(sums.lanes[k][0]));
      }
      for (size_t b = 0; b < BlockCount(x.cols).all(); ++b) {
        walk.take(i, b);
        for (size_t k = 0; k < set; ++k) {
          const uint16_t* list = tokens + first[i + k] + done;
          dot_block<D, 1>(
              walk.at + k, x, b, count[k], [=](size_t t) { return size_t{list[t]}; }, sums.lanes + k);
        }
      }
      for (size_t k = 0; k < set; ++k)
        for (size_t t = 0; t < count[k]; ++t)
          out[first[i + k] + done + t] = V::sum(V::load(sums.lanes[k][t]));
    }
  }
}

template <class D>
void dot_pairs(const uint8_t* const* vectors, size_t n, const LaneVector& x, const uint32_t* first,
               const uint16_t* tokens, float* out) {
  if (first[n] <= kFewPairs * n)
    pair_sets<D, kFewVectors, kFewAhead>(vectors, n, x, first, tokens, out);
  else
    pair_sets<D, kManyVectors, kManyAhead>(vectors, n, x, first, tokens, out);
}

}  // namespace hotset::kernels::generic
