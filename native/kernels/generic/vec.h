// Helpers over V, the vector traits that each ISA folder defines. The algorithms of generic/ are templates
// over V, and V lives in an unnamed namespace, so every instance has internal linkage: the linker can never
// replace one ISA's code by another's. For the same reason nothing here calls an inline function of the
// standard library.
//
// V must have (F = vector of kLanes f32, I = vector of kLanes i32):
//   kLanes; kStrips, kTokens (register tile of the f32 matmuls); kPageVectors (vectors of one attend tile)
//   load store set zero add sub mul div min max round     min(a, b) = a < b ? a : b, max alike: b where a is
//   NaN fma(a, b, c) = a * b + c                              fused wherever the ISA can less(a, b, yes, no)
//   = a < b ? yes : no                pow2(k) = 2^k for integral k in [-126, 127] load_f16 load_bf16 load_i8
//   store_f16 store_i8 store_i16   round to nearest even, |x| <= 127 or 32767
//   Pairs load_pairs(p): lane i holds p[2i], p[2i+1] as int16; dot_pairs(pairs, two, sum): adds lane i . the
//   two int16 sum(F) max_lane(F) to_float(I) set_int zero_int
//   Words: int16 of two neurons, a's and b's in all lanes. interleave(a, b); pair_weights(a, b): the low word
//   of each lane for both of its words; mask_words<m> shift_words<k>; multiply_add(x, y, low, high): products
//   by word, added to sums that separate(low, high) turns into those of low words and those of high ones
//   bits(v, mask, set) = (v & mask) | set, `set` an int or, where I is no int, I
//   dot_codes(codes, a, sum): sum + codes . a, lane by lane: 8 vectors of unsigned bytes, each at most 14,
//   times int8 vectors 64 bytes apart
#pragma once

#include <cstddef>
#include <cstdint>

#define HOTSET_INLINE inline __attribute__((always_inline))

namespace hotset::kernels::generic {

// count < kLanes floats, the other lanes `fill`.
template <class V>
HOTSET_INLINE typename V::F load_partial(const float* x, size_t count, float fill) {
  float lanes[V::kLanes];
  for (int i = 0; i < V::kLanes; ++i) lanes[i] = fill;
  for (size_t i = 0; i < count; ++i) lanes[i] = x[i];
  return V::load(lanes);
}

template <class V>
HOTSET_INLINE void store_partial(float* y, size_t count, typename V::F v) {
  float lanes[V::kLanes];
  V::store(lanes, v);
  for (size_t i = 0; i < count; ++i) y[i] = lanes[i];
}

// y[i] = fn(y[i], x[i])
template <class V, class Fn>
HOTSET_INLINE void map(float* y, const float* x, size_t n, Fn fn) {
  size_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) V::store(y + i, fn(V::load(y + i), V::load(x + i)));
  if (i < n) {
    const size_t rest = n - i;
    store_partial<V>(y + i, rest, fn(load_partial<V>(y + i, rest, 0), load_partial<V>(x + i, rest, 0)));
  }
}

// combine(...combine(start, x[0..]), ...) lane by lane on four chains, then across them; lanes past the end
// see `fill`.
template <class V, class Fn, class Join>
HOTSET_INLINE typename V::F reduce(const float* x, size_t n, typename V::F start, float fill, Fn fn,
                                   Join join) {
  using F = typename V::F;
  constexpr size_t w = V::kLanes;
  F a = start, b = start, c = start, d = start;
  size_t i = 0;
  for (const size_t whole = n / (4 * w) * (4 * w); i < whole; i += 4 * w) {
    a = fn(a, V::load(x + i));
    b = fn(b, V::load(x + i + w));
    c = fn(c, V::load(x + i + 2 * w));
    d = fn(d, V::load(x + i + 3 * w));
  }
  for (const size_t whole = n / w * w; i < whole; i += w) a = fn(a, V::load(x + i));
  if (i < n) b = fn(b, load_partial<V>(x + i, n - i, fill));
  return join(join(a, b), join(c, d));
}

}  // namespace hotset::kernels::generic
