// Gate and up: dot products of single neurons' vectors with one token or several.
//
// A few vectors go through the columns side by side, block by block. A block's codes are expanded once for up
// to kDotTokens tokens, whose activations of that block (10 KB) stay in L1 for all of them.
#pragma once

#include "kernels/generic/neuron.h"

namespace hotset::kernels::generic {

inline constexpr size_t kDotTokens = 16;

template <class V>
struct DotSums {
  alignas(64) float lanes[kTogether][kDotTokens][V::kLanes];
};

// sums[t] += scales * d * (codes . q - zero * s), lane by lane, of block b and token token(t).
template <class D, class Token>
HOTSET_INLINE void dot_block(const uint8_t* block, const LaneVector& x, size_t b, size_t n, Token token,
                             float (*sums)[D::V::kLanes]) {
  using V = typename D::V;
  constexpr int zero_shift = D::kZero == 8 ? 3 : D::kZero == 128 ? 7 : 0;
  static_assert(D::kZero == 0 || D::kZero == 1 << zero_shift);
#pragma GCC unroll 4
  for (size_t lane = 0; lane < kLaneGroups; lane += V::kLanes) {
    const typename V::F scale = V::load_f16(reinterpret_cast<const uint16_t*>(block) + lane);
    const auto weights = D::lane_load(block + VectorBytes<D>::kScales + lane * 4);
    for (size_t t = 0; t < n; ++t) {
      const size_t at = b * x.stride + token(t);
      typename V::I dots = V::zero_int();
      if constexpr (D::kZero != 0)
        dots =
            V::sub_int(dots, V::template shift_left<zero_shift>(V::load_int(x.s + at * kLaneGroups + lane)));
      D::lane_dot(weights, x.q + at * kBlockCols + lane * 4, dots);
      const typename V::F d = V::load(x.d + at * kLaneGroups + lane);
      V::store(sums[t], V::fma(V::to_float(dots), V::mul(scale, d), V::load(sums[t])));
    }
  }
}

// Adds all blocks of the vectors from `first` on: vector i of them with tokens token(i, 0..count(i)).
template <class D, class Count, class Token>
HOTSET_INLINE void dot_set(BlockWalk<D>& walk, size_t first, const LaneVector& x, Count count, Token token,
                           DotSums<typename D::V>& sums) {
  for (size_t b = 0; b < BlockCount(x.cols).all(); ++b) {
    walk.take(first, b);
    for (size_t i = 0; i < walk.size(first); ++i)
      dot_block<D>(walk.at[i], x, b, count(i), [&](size_t t) { return token(i, t); }, sums.lanes[i]);
  }
}

HOTSET_INLINE size_t at_most(size_t n, size_t most) { return n < most ? n : most; }

template <class D>
void dot_neurons(const uint8_t* const* vectors, size_t n, const LaneVector& x, size_t tokens, float* out) {
  using V = typename D::V;
  DotSums<V> sums;
  BlockWalk<D> walk(vectors, n, x.cols, 0, BlockCount(x.cols).all());
  for (size_t i = 0; i < n; i += kTogether) {
    const size_t set = walk.size(i);
    for (size_t first = 0; first < tokens; first += kDotTokens) {
      const size_t count = at_most(tokens - first, kDotTokens);
      for (size_t k = 0; k < set; ++k) __builtin_memset(sums.lanes[k], 0, count * sizeof(sums.lanes[k][0]));
      dot_set<D>(
          walk, i, x, [=](size_t) { return count; }, [=](size_t, size_t t) { return first + t; }, sums);
      for (size_t k = 0; k < set; ++k)
        for (size_t t = 0; t < count; ++t)
          out[(i + k) * tokens + first + t] = V::sum(V::load(sums.lanes[k][t]));
    }
  }
}

template <class D>
void dot_pairs(const uint8_t* const* vectors, size_t n, const LaneVector& x, const uint32_t* first,
               const uint16_t* tokens, float* out) {
  using V = typename D::V;
  DotSums<V> sums;
  BlockWalk<D> walk(vectors, n, x.cols, 0, BlockCount(x.cols).all());
  for (size_t i = 0; i < n; i += kTogether) {
    const size_t set = walk.size(i);
    for (size_t done = 0, longest = 1; done < longest; done += kDotTokens) {
      size_t count[kTogether];
      for (size_t k = 0; k < set; ++k) {
        const size_t all = first[i + k + 1] - first[i + k];
        count[k] = all < done ? 0 : at_most(all - done, kDotTokens);
        if (all > longest) longest = all;
        __builtin_memset(sums.lanes[k], 0, count[k] * sizeof(sums.lanes[k][0]));
      }
      dot_set<D>(
          walk, i, x, [&](size_t k) { return count[k]; },
          [&](size_t k, size_t t) { return size_t{tokens[first[i + k] + done + t]}; }, sums);
      for (size_t k = 0; k < set; ++k)
        for (size_t t = 0; t < count[k]; ++t)
          out[first[i + k] + done + t] = V::sum(V::load(sums.lanes[k][t]));
    }
  }
}

}  // namespace hotset::kernels::generic
