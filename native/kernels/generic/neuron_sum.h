// Down: weighted sums of single neurons' vectors, a window of neurons at a time.
//
// Neuron i of a window weighs a[i] * scale in a group of columns. These weights become integers of 15 bits
// with one unit a window and group, so that two neurons' codes and weights are one product of pairs of int16
// into int32, which is exact, whatever the order. Once a window the sums become f32: they are what is carried
// on, in window order, so neither blocks nor threads nor what else is in memory change a bit.
//
// f32 arithmetic takes three operations for a register of codes, this one and a quarter for q4_0: on Zen 4,
// whose 512-bit operations are two, 12.5 cycles for 64 bytes against 5.
//
// Sums are in lane order: block b of n groups is [32][n], column g*32 + c of the block at [c][g].
#pragma once

#include "kernels/generic/neuron.h"

namespace hotset::kernels::generic {

// |sum| <= 512 * 16383 * 255 < 2^31, for 4-bit codes with 15 * 16 instead of 255.
inline constexpr float kMostWeight = 16383.0f;
inline constexpr float kRounder =
    12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to even, an integer
inline constexpr int32_t kRounderBits = 0x4b400000;

// A window as one call sees it: pointers to block `begin`, the last one twice if their number is odd.
struct WindowVectors {
  const uint8_t* at[kSumWindow + 1];
  size_t n;
  float not_finite = 0.0f;  // 0, or NaN if a weight is infinite or NaN

  HOTSET_INLINE WindowVectors(const SumWindow& w, size_t offset) : n(w.n) {
    for (size_t i = 0; i < n; ++i) {
      at[i] = w.vectors[i] + offset;
      not_finite += w.a[i] * 0.0f;
    }
    at[n] = n ? at[n - 1] : nullptr;
  }
};

// Lines of the next window's vectors that one pass over this one fetches.
struct NextLines {
  const uint8_t* const* vectors;
  size_t n, begin, end;  // bytes from each vector's start

  HOTSET_INLINE void fetch(size_t i) const {
    if (i < n)
      for (size_t at = begin; at < end; at += 64) __builtin_prefetch(vectors[i] + at, 0, kL2);
  }
};

// Weights of a window in V::kLanes groups.
template <class V>
struct WindowWeights {
  typename V::Words pairs[kSumWindow / 2];
  typename V::F unit;
  typename V::I sum;
};

// count <= V::kLanes values behind p, the other lanes 0.
template <class V, bool kWhole>
HOTSET_INLINE typename V::I load_words(const uint8_t* p, size_t count) {
  int32_t words[V::kLanes];
  if constexpr (kWhole) {
    __builtin_memcpy(words, p, sizeof(words));
  } else {
    for (size_t k = 0; k < V::kLanes; ++k) words[k] = 0;
    for (size_t k = 0; k < count; ++k) __builtin_memcpy(words + k, p + k * 4, 4);
  }
  return V::load_int(words);
}

template <class V, bool kWhole>
HOTSET_INLINE typename V::F load_scales(const uint8_t* p, size_t count) {
  if constexpr (kWhole) return V::load_f16(reinterpret_cast<const uint16_t*>(p));
  uint16_t scales[V::kLanes] = {};
  for (size_t k = 0; k < count; ++k) __builtin_memcpy(scales + k, p + k * 2, 2);
  return V::load_f16(scales);
}

// Of the groups whose scales are `offset` behind each vector's pointer.
template <class V, bool kWhole>
HOTSET_INLINE void weigh(const WindowVectors& v, const float* a, size_t offset, size_t count,
                         WindowWeights<V>& out) {
  using F = typename V::F;
  using I = typename V::I;
  const auto weight = [&](size_t i) {
    return V::mul(load_scales<V, kWhole>(v.at[i] + offset, count), V::set(a[i]));
  };
  F most = V::set(1e-30f), least = V::set(-1e-30f);  // never 0: what follows divides by it
  for (size_t i = 0; i < v.n; ++i) {
    const F w = weight(i);
    most = V::max(w, most);
    least = V::min(w, least);
  }
  most = V::max(most, V::sub(V::zero(), least));
  const F per_weight = V::div(V::set(kMostWeight), most);
  I minus = V::zero_int();
  const auto whole = [&](size_t i) {
    const I w = V::as_int(V::add(V::mul(weight(i), per_weight), V::set(kRounder)));
    minus = V::sub_int(minus, V::sub_int(w, V::set_int(kRounderBits)));
    return w;
  };
  for (size_t i = 0; i < v.n; i += 2) {
    const I first = whole(i);
    out.pairs[i / 2] = V::pair_weights(first, i + 1 < v.n ? whole(i + 1) : V::zero_int());
  }
  out.sum = V::sub_int(V::zero_int(), minus);
  out.unit = V::add(V::mul(most, V::set(1.0f / kMostWeight)), V::set(v.not_finite));
}

// Pairs of int16 hold bytes 0 and 2, shifted by a byte 1 and 3, of four columns. Nibbles above the lowest
// stay where they are, as 16 times their value.
template <class D>
struct CodeParts {
  static constexpr bool kBytes = VectorBytes<D>::kBytes;
  static constexpr int kCount = kBytes ? 2 : 4;
  static constexpr int column(int part) { return kBytes ? part : part / 2 + part % 2 * 16; }
  static constexpr bool times16(int part) { return !kBytes && part % 2; }
  template <int part>
  static HOTSET_INLINE typename D::V::Words of(typename D::V::Words w) {
    using V = typename D::V;
    if constexpr (kBytes) return part ? V::template shift_words<8>(w) : V::template mask_words<0xff>(w);
    if constexpr (part >= 2) w = V::template shift_words<8>(w);
    return V::template mask_words<part % 2 ? 0xf0 : 0x0f>(w);
  }
};

// Adds part of the sums of code vector j, `count` lanes, to the running ones.
template <class D, int part, bool kWhole>
HOTSET_INLINE void carry(typename D::V::I low, typename D::V::I high, const WindowWeights<typename D::V>& w,
                         size_t j, size_t lanes, size_t count, float* sums) {
  using V = typename D::V;
  using Parts = CodeParts<D>;
  constexpr bool times16 = Parts::times16(part);
  const typename V::I zero = V::template shift_left < Parts::kBytes || times16 ? 7 : 3 > (w.sum);
  const typename V::F unit = times16 ? V::mul(w.unit, V::set(1.0f / 16)) : w.unit;
  V::separate(low, high);
  float* const at = sums + (j * 4 + Parts::column(part)) * lanes;
  const auto add = [&](float* to, typename V::I sum) {
    const typename V::F value = V::to_float(V::sub_int(sum, zero));
    if constexpr (kWhole)
      V::store(to, V::fma(value, unit, V::load(to)));
    else
      store_partial<V>(to, count, V::fma(value, unit, load_partial<V>(to, count, 0.0f)));
  };
  add(at, low);
  add(at + 2 * lanes, high);
}

// Code vector j of V::kLanes groups, which is `offset` behind each vector's pointer.
template <class D, bool kWhole>
HOTSET_INLINE void sum_codes(const WindowVectors& v, const WindowWeights<typename D::V>& w, size_t offset,
                             size_t j, size_t lanes, size_t count, const NextLines& ahead, float* sums) {
  using V = typename D::V;
  using Parts = CodeParts<D>;
  typename V::I low[Parts::kCount], high[Parts::kCount];
#pragma GCC unroll 4
  for (int p = 0; p < Parts::kCount; ++p) low[p] = high[p] = V::zero_int();
  for (size_t i = 0; i < v.n; i += 2) {
    const auto codes = V::interleave(load_words<V, kWhole>(v.at[i] + offset, count),
                                     load_words<V, kWhole>(v.at[i + 1] + offset, count));
    const auto weights = w.pairs[i / 2];
    V::multiply_add(Parts::template of<0>(codes), weights, low[0], high[0]);
    V::multiply_add(Parts::template of<1>(codes), weights, low[1], high[1]);
    if constexpr (!Parts::kBytes) {
      V::multiply_add(Parts::template of<2>(codes), weights, low[2], high[2]);
      V::multiply_add(Parts::template of<3>(codes), weights, low[3], high[3]);
    }
    ahead.fetch(i);
    ahead.fetch(i + 1);
  }
  for (size_t i = (v.n + 1) / 2 * 2; i < ahead.n; ++i) ahead.fetch(i);
  carry<D, 0, kWhole>(low[0], high[0], w, j, lanes, count, sums);
  carry<D, 1, kWhole>(low[1], high[1], w, j, lanes, count, sums);
  if constexpr (!Parts::kBytes) {
    carry<D, 2, kWhole>(low[2], high[2], w, j, lanes, count, sums);
    carry<D, 3, kWhole>(low[3], high[3], w, j, lanes, count, sums);
  }
}

// A block of `lanes` groups, `offset` behind each vector's pointer.
template <class D, bool kWhole>
HOTSET_INLINE void sum_block(const WindowVectors& v, const SumWindow& window, size_t offset, size_t lanes,
                             WindowWeights<typename D::V>& weights, NextLines ahead, float* sums) {
  using V = typename D::V;
  constexpr size_t kVectors = VectorBytes<D>::kCodeVectors;
  const size_t bytes = ahead.end - ahead.begin, first = ahead.begin;
  for (size_t lane = 0; lane < lanes; lane += V::kLanes) {
    const size_t count = lanes - lane < V::kLanes ? lanes - lane : V::kLanes;
    weigh<V, kWhole>(v, window.a, offset + lane * 2, count, weights);
    for (size_t j = 0; j < kVectors; ++j) {
      ahead.begin = lane ? 0 : first + (bytes * j / kVectors + 63) / 64 * 64;
      ahead.end = lane ? 0 : first + (bytes * (j + 1) / kVectors + 63) / 64 * 64;
      sum_codes<D, kWhole>(v, weights, offset + lanes * 2 + (j * lanes + lane) * 4, j, lanes, count, ahead,
                           sums + lane);
    }
  }
}

template <class D>
void add_neurons(const SumWindow& window, size_t cols, size_t begin, size_t end, float* sums) {
  constexpr size_t kBytes = VectorBytes<D>::kBlock;
  const BlockCount count(cols);
  const WindowVectors v(window, begin * kBytes);
  alignas(64) WindowWeights<typename D::V> weights;
  for (size_t b = begin; b < end; ++b) {
    const size_t offset = (b - begin) * kBytes, to = (b + 1) * kBytes / 64 * 64 + (b + 1 == end ? 64 : 0);
    const NextLines ahead{window.next, window.n_next, b * kBytes / 64 * 64, to};
    if (window.n == 0)
      for (size_t i = 0; i < ahead.n; ++i) ahead.fetch(i);
    else if (b < count.whole)
      sum_block<D, true>(v, window, offset, kLaneGroups, weights, ahead, sums + b * kBlockCols);
    else
      sum_block<D, false>(v, window, offset, count.rest, weights, ahead, sums + b * kBlockCols);
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

}  // namespace hotset::kernels::generic
