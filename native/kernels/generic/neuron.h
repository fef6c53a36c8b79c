// Vectors of single neurons (quant/neuron.h): what dot products and weighted sums share, and tokens in their
// order.
//
// A block of 16 groups has the byte order of one group of 16 packed rows, so ISAs read its codes as they read
// those of matrices; only the activations differ per lane (D::lane_dot).
#pragma once

#include "kernels/generic/elementwise.h"
#include "kernels/generic/prefetch.h"
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

// A vector of `cols` weights in blocks: `whole` ones, and one of `rest` groups if that is not 0.
struct BlockCount {
  size_t whole, rest;
  explicit BlockCount(size_t cols)
      : whole(cols / kBlockCols), rest((cols % kBlockCols + quant::kGroup - 1) / quant::kGroup) {}
  size_t all() const { return whole + (rest > 0); }
  size_t lanes(size_t b) const { return b < whole ? kLaneGroups : rest; }
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

// Blocks [begin, end) of sets of kSet vectors, one after another, a last short block spread over 16 lanes;
// those kAhead steps away are fetched, or ten steps away into L2 and two into L1. Vectors lie anywhere in
// gigabytes: with several at once several page walks and DRAM rows are under way. Best of 1 to 16 vectors and
// 1 to 16 steps (docs/decisions/log.md): more at once or further ahead is thrown out of L1 again, as bundles
// a multiple of 1 KiB apart compete for few of its sets.
template <class D, size_t kSet = 4, size_t kAhead = 6>
class BlockWalk {
 public:
  HOTSET_INLINE BlockWalk(const uint8_t* const* vectors, size_t n, size_t cols, size_t begin, size_t end)
      : vectors_(vectors), n_(n), count_(cols), begin_(begin), end_(end) {
    for (size_t i = 0; i < ahead(); ++i) to_l2() ? fetch<kL2>(0, i) : fetch<kL1>(0, i);
  }

  // Block b of the vectors from `first` on, in at[0..size(first)); fetches what comes.
  HOTSET_INLINE void take(size_t first, size_t b) {
    if (to_l2()) fetch<kL2>(first, b - begin_ + ahead());
    fetch<kL1>(first, b - begin_ + (to_l2() ? kNear : kAhead));
    for (size_t i = 0; i < size(first); ++i) {
      at[i] = vectors_[first + i] + b * VectorBytes<D>::kBlock;
      if (b < count_.whole) continue;
      widen_block<D>(at[i], count_.rest, wide_[i]);
      at[i] = wide_[i];
    }
  }
  size_t size(size_t first) const { return n_ - first < kSet ? n_ - first : kSet; }
  const uint8_t* at[kSet];

 private:
  static constexpr size_t kNear = 2, kAheadToL2 = 10;
  static bool to_l2() { return kAhead > kNear && kStreamToL2; }
  static size_t ahead() { return to_l2() ? kAheadToL2 : kAhead; }
  // What is `steps` blocks behind the first one of the vectors from `first` on.
  template <Cache kTo>
  HOTSET_INLINE void fetch(size_t first, size_t steps) const {
    const size_t width = end_ - begin_, b = begin_ + steps % width;
    first += steps / width * kSet;
    for (size_t i = first; i < n_ && i < first + kSet; ++i)
      prefetch<VectorBytes<D>::kBlock, kTo>(vectors_[i] + b * VectorBytes<D>::kBlock);
  }
  const uint8_t* const* vectors_;
  size_t n_;
  BlockCount count_;
  size_t begin_, end_;
  alignas(64) uint8_t wide_[kSet][VectorBytes<D>::kBlock];
};

template <class V>
void quantize_lanes(const float* x, const LaneVector& v) {
  static_assert(kLaneGroups == kBatch);
  const PaddedGroups groups(x, v.cols);
  for (size_t b = 0; b < BlockCount(v.cols).all(); ++b) {
    int8_t q[kLaneGroups * quant::kGroup];
    const size_t block = b * v.stride, at = block * kLaneGroups;
    quantize_batch<V>(groups, b * kLaneGroups, kLaneGroups, 1, q, v.d + at, v.s + at);
    for (size_t lane = 0; lane < kLaneGroups; ++lane)
      for (size_t j = 0; j < quant::kGroup; j += 4)
        __builtin_memcpy(v.q + block * kBlockCols + j * kLaneGroups + lane * 4, q + lane * quant::kGroup + j,
                         4);
  }
}

}  // namespace hotset::kernels::generic
