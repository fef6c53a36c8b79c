// Attention over one page of int8 keys and values. Queries and softmax weights become int16 with one scale
// for a query (and page): 15 bits and the sign, so what int8 lost dwarfs what they lose, and products are
// exact in int32: |sum| <= 64 * 127 * 32767 < 2^28. Two neighbours (columns of a key, tokens of a value) lie
// side by side, as the instructions that multiply pairs of int16 want them.
#pragma once

#include "kernels/generic/attend_page.h"

namespace hotset::kernels::generic {

// Queries of a call of attend() as int16.
struct WordQueries {
  alignas(64) int16_t q[kTile][kMaxHeadDim];
  float scale[kTile];
};

struct PageInt8 {
  const uint16_t *key_scale, *value_scale;
  const int8_t *keys, *values;
  const WordQueries* queries;

  PageInt8(const uint8_t* page, size_t hd, const WordQueries* words)
      : key_scale(reinterpret_cast<const uint16_t*>(page)),
        value_scale(key_scale + key_groups(hd) * kPage),
        keys(reinterpret_cast<const int8_t*>(page) + kv_scale_bytes(hd)),
        values(keys + hd * kPage),
        queries(words) {}
};

// q = round(x / scale), |q| <= 127; returns bits of the scale, absmax / 127 rounded up to bf16. n is a
// multiple of kLanes. Magnitudes below 1e-35 become 0; with a NaN or infinity in x, the scale is NaN.
template <class V>
HOTSET_INLINE uint16_t quantize_bytes(const float* x, size_t n, int8_t* q) {
  using F = typename V::F;
  const float top = largest_magnitude<V>(x, n);
  float scale = top > 1e-35f && top < __builtin_inff() ? top / 127.0f : 0.0f;
  uint32_t bits;
  __builtin_memcpy(&bits, &scale, sizeof bits);
  bits = (bits + 0xffff) & 0xffff0000u;
  __builtin_memcpy(&scale, &bits, sizeof bits);
  const F inverse = V::set(scale > 0.0f ? 1.0f / scale : 0.0f);
  F codes = V::zero();
  for (size_t i = 0; i < n; i += V::kLanes) {
    const F code = V::round(V::mul(V::load(x + i), inverse));
    V::store_i8(q + i, code);
    codes = V::add(codes, code);
  }
  const float sum = V::sum(codes);
  return sum == sum ? static_cast<uint16_t>(bits >> 16) : uint16_t{0x7fc0};
}

// q = round(x * 32767 / absmax); returns the scale, NaN if there is a NaN or infinity in x. Magnitudes below
// 1e-33 become 0: their inverse overflows.
template <class V>
HOTSET_INLINE float quantize_words(const float* x, size_t n, int16_t* q) {
  using F = typename V::F;
  F top = V::zero(), bad = V::zero();  // 0 * x is NaN or 0
  for (size_t i = 0; i < n; i += V::kLanes) {
    const F v = V::load(x + i);
    top = V::max(V::max(v, V::sub(V::zero(), v)), top);
    bad = V::fma(v, V::zero(), bad);
  }
  const float most = V::max_lane(top), defect = V::sum(bad);
  if (defect != defect) {
    __builtin_memset(q, 0, n * sizeof(*q));
    return defect;
  }
  const F inverse = V::set(most > 1e-33f ? 32767.0f / most : 0.0f);
  for (size_t i = 0; i < n; i += V::kLanes) V::store_i16(q + i, V::mul(V::load(x + i), inverse));
  return most > 1e-33f ? most / 32767.0f : 1.0f;
}

template <class V>
void kv_store_int8(const float* k, const float* v, size_t hd, size_t slot, uint8_t* page) {
  int8_t codes[kMaxHeadDim];
  auto* scales = reinterpret_cast<uint16_t*>(page);
  auto* keys = reinterpret_cast<int8_t*>(page) + kv_scale_bytes(hd);
  int8_t* values = keys + hd * kPage + slot / 2 * hd * 2 + slot % 2;
  for (size_t d = 0; d < hd; d += kKeyGroup) {
    const size_t count = hd - d < kKeyGroup ? hd - d : kKeyGroup;
    scales[d / kKeyGroup * kPage + slot] = quantize_bytes<V>(k + d, count, codes + d);
  }
  for (size_t d = 0; d < hd; d += 2) __builtin_memcpy(keys + d * kPage + slot * 2, codes + d, 2);
  scales[key_groups(hd) * kPage + slot] = quantize_bytes<V>(v, hd, codes);
  for (size_t d = 0; d < hd; ++d) values[d * 2] = codes[d];
}

template <class V>
HOTSET_INLINE void queries_to_words(const AttendState& a, WordQueries& out) {
  for (size_t i = 0; i < a.n; ++i) out.scale[i] = quantize_words<V>(a.q + i * a.hd, a.hd, out.q[i]);
}

// acc[i][c] += pairs of codes from `codes` on times the two words at words[i].
template <class V, int Q, int C>
HOTSET_INLINE void add_pairs(const int8_t* codes, Ahead& ahead, const int16_t* const* words, size_t at,
                             typename V::I (*acc)[C]) {
  typename V::Pairs pairs[C];
  ahead.fetch<lines(C * V::kLanes * 2)>();
#pragma GCC unroll 16
  for (int c = 0; c < C; ++c) {
    pairs[c] = V::load_pairs(codes + c * V::kLanes * 2);
  }
#pragma GCC unroll 16
  for (int i = 0; i < Q; ++i) {
    int32_t two;
    __builtin_memcpy(&two, words[i] + at, sizeof two);
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) acc[i][c] = V::dot_pairs(pairs[c], two, acc[i][c]);
  }
}

template <class V, int Q, int C>
HOTSET_INLINE void clear(typename V::I (*acc)[C]) {
#pragma GCC unroll 16
  for (int i = 0; i < Q; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) acc[i][c] = V::zero_int();
  }
}

// scores[i][t] = words of q[i] . key t, for Q queries and all tokens of the page; groups of columns in order.
template <class V, int Q>
HOTSET_APART void page_scores(const PageInt8& page, const int16_t* const* q, size_t hd,
                              float (*scores)[kPage], Ahead& shared) {
  Ahead ahead = shared;  // in registers
  using F = typename V::F;
  constexpr int C = V::kPageVectors;
  for (size_t t = 0; t < kPage; t += C * V::kLanes) {
    for (size_t d = 0; d < hd;) {
      const uint16_t* scale = page.key_scale + d / kKeyGroup * kPage + t;
      const bool first = d == 0;
      typename V::I acc[Q][C];
      clear<V, Q, C>(acc);
      for (const size_t end = hd - d < kKeyGroup ? hd : d + kKeyGroup; d < end; d += 2)
        add_pairs<V, Q, C>(page.keys + d * kPage + t * 2, ahead, q, d, acc);
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) {
        const F s = V::load_bf16(scale + c * V::kLanes);
#pragma GCC unroll 16
        for (int i = 0; i < Q; ++i) {
          float* score = scores[i] + t + c * V::kLanes;
          V::store(score, V::fma(V::to_float(acc[i][c]), s, first ? V::zero() : V::load(score)));
        }
      }
    }
  }
  shared = ahead;
}

// o[i] = o[i] * factor[i] + scale[i] * sum over tokens of words[i][t] * value t, columns d..d+C*kLanes.
template <class V, int Q, int C>
HOTSET_APART void add_values(const PageInt8& page, const int16_t* const* words, const float* scale,
                             const ActiveQuery& all, const float* factor, size_t hd, size_t d,
                             float* const* o, Ahead& shared) {
  Ahead ahead = shared;
  typename V::I acc[Q][C];
  clear<V, Q, C>(acc);
  for (size_t t = all.begin & ~size_t{1}; t < all.end; t += 2)
    add_pairs<V, Q, C>(page.values + t * hd + d * 2, ahead, words, t, acc);
#pragma GCC unroll 16
  for (int i = 0; i < Q; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
      float* at = o[i] + d + c * V::kLanes;
      const typename V::F old = V::mul(V::load(at), V::set(factor[i]));
      V::store(at, V::fma(V::to_float(acc[i][c]), V::set(scale[i]), old));
    }
  }
  shared = ahead;
}

// Weights times the scales of their values, as words. Returns their scale.
template <class V>
HOTSET_INLINE float weights_to_words(const PageInt8& page, const ActiveQuery& query, float* weights,
                                     int16_t* words) {
  for (size_t t = 0; t < kPage; t += V::kLanes)
    V::store(weights + t, V::mul(V::load(weights + t), V::load_bf16(page.value_scale + t)));
  fill_outside(query.begin, query.end, kPage, 0.0f, weights);  // scales there may be anything
  return quantize_words<V>(weights, kPage, words);
}

template <class V, int Q>
void attend_queries(const PageInt8& page, const AttendState& a, const ActiveQuery* active, Ahead& ahead) {
  constexpr size_t wide = V::kPageVectors * V::kLanes, narrow = quant::kRowBlock;
  alignas(64) float scores[Q][kPage];
  alignas(64) int16_t weights[Q][kPage];
  const int16_t *q[Q], *words[Q];
  float *o[Q], factor[Q], unit[Q], scale[Q];
  for (int i = 0; i < Q; ++i) {
    q[i] = page.queries->q[active[i].index];
    unit[i] = page.queries->scale[active[i].index];
    o[i] = a.o + active[i].index * a.hd;
    words[i] = weights[i];
  }
  page_scores<V, Q>(page, q, a.hd, scores, ahead);
  softmax_page<V, Q>(active, a, unit, kPage, scores, factor, ahead);
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) scale[i] = weights_to_words<V>(page, active[i], scores[i], weights[i]);
  const ActiveQuery all = tokens_of_all<Q>(active);
  size_t d = 0;
  for (; d + wide <= a.hd; d += wide)
    add_values<V, Q, V::kPageVectors>(page, words, scale, all, factor, a.hd, d, o, ahead);
  for (; d < a.hd; d += narrow)
    add_values<V, Q, static_cast<int>(narrow / V::kLanes)>(page, words, scale, all, factor, a.hd, d, o,
                                                           ahead);
}

}  // namespace hotset::kernels::generic
