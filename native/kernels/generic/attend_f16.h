// Attention over one page of f16 keys and values, products in f32.
#pragma once

#include "kernels/generic/attend_page.h"

namespace hotset::kernels::generic {

struct PageF16 {
  const uint16_t *keys, *values;  // [hd][kPage], [kPage][hd]

  PageF16(const uint8_t* page, size_t hd)
      : keys(reinterpret_cast<const uint16_t*>(page)), values(keys + hd * kPage) {}
};

template <class V>
void kv_store_f16(const float* k, const float* v, size_t hd, size_t slot, uint8_t* page) {
  uint16_t half[V::kLanes];
  auto* keys = reinterpret_cast<uint16_t*>(page);
  uint16_t* value = keys + hd * kPage + slot * hd;
  for (size_t d = 0; d < hd; d += V::kLanes) {
    V::store_f16(half, V::load(k + d));
    for (size_t i = 0; i < V::kLanes; ++i) keys[(d + i) * kPage + slot] = half[i];
    V::store_f16(value + d, V::load(v + d));
  }
}

// out[c] = the f32 of C vectors from `from` on.
template <class V, int C>
HOTSET_INLINE void load_halves(const uint16_t* from, Ahead& ahead, typename V::F* out) {
  ahead.fetch<lines(C * V::kLanes * 2)>();
#pragma GCC unroll 16
  for (int c = 0; c < C; ++c) {
    out[c] = V::load_f16(from + c * V::kLanes);
  }
}

// scores[i][t] = q[i] . key t, for Q queries and the tokens of C vectors from t on; sums over d in order.
template <class V, int Q, int C>
HOTSET_APART void score_tokens(const PageF16& page, const float* const* q, size_t hd, size_t t,
                               float (*scores)[kPage], Ahead& shared) {
  Ahead ahead = shared;  // in registers
  using F = typename V::F;
  F acc[Q][C];
#pragma GCC unroll 16
  for (int i = 0; i < Q; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) acc[i][c] = V::zero();
  }
  for (size_t d = 0; d < hd; ++d) {
    F keys[C];
    load_halves<V, C>(page.keys + d * kPage + t, ahead, keys);
#pragma GCC unroll 16
    for (int i = 0; i < Q; ++i) {
      const F query = V::set(q[i][d]);
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) acc[i][c] = V::fma(keys[c], query, acc[i][c]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Q; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) V::store(scores[i] + t + c * V::kLanes, acc[i][c]);
  }
  shared = ahead;
}

// Of the tokens from t on that are before `limit`, a multiple of kLanes.
template <class V, int Q, int C = V::kPageVectors>
HOTSET_INLINE void page_scores(const PageF16& page, const float* const* q, size_t hd, size_t t, size_t limit,
                               float (*scores)[kPage], Ahead& ahead) {
  constexpr size_t wide = C * V::kLanes;
  for (; t + wide <= limit; t += wide) score_tokens<V, Q, C>(page, q, hd, t, scores, ahead);
  if constexpr (C > 1) page_scores<V, Q, C - 1>(page, q, hd, t, limit, scores, ahead);
}

// o[i] = o[i] * factor[i] + sum over tokens [begin, end) of weights[i][t] * value t, columns d..d+C*kLanes.
template <class V, int Q, int C>
HOTSET_APART void add_values(const PageF16& page, float (*weights)[kPage], const ActiveQuery& all,
                             const float* factor, size_t hd, size_t d, float* const* o, Ahead& shared) {
  Ahead ahead = shared;
  using F = typename V::F;
  F acc[Q][C];
#pragma GCC unroll 16
  for (int i = 0; i < Q; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) acc[i][c] = V::mul(V::load(o[i] + d + c * V::kLanes), V::set(factor[i]));
  }
  for (size_t t = all.begin; t < all.end; ++t) {
    F values[C];
    load_halves<V, C>(page.values + t * hd + d, ahead, values);
#pragma GCC unroll 16
    for (int i = 0; i < Q; ++i) {
      const F weight = V::set(weights[i][t]);
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) acc[i][c] = V::fma(values[c], weight, acc[i][c]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Q; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) V::store(o[i] + d + c * V::kLanes, acc[i][c]);
  }
  shared = ahead;
}

template <class V, int Q>
void attend_queries(const PageF16& page, const AttendState& a, const ActiveQuery* active, Ahead& ahead) {
  constexpr size_t wide = V::kPageVectors * V::kLanes, narrow = quant::kRowBlock;
  alignas(64) float scores[Q][kPage];
  const float* q[Q];
  float *o[Q], factor[Q], unit[Q];
  for (int i = 0; i < Q; ++i) {
    q[i] = a.q + active[i].index * a.hd;
    o[i] = a.o + active[i].index * a.hd;
    unit[i] = 1.0f;
  }
  const ActiveQuery all = tokens_of_all<Q>(active);
  const size_t limit = (all.end + V::kLanes - 1) / V::kLanes * V::kLanes;
  page_scores<V, Q>(page, q, a.hd, 0, limit, scores, ahead);
  softmax_page<V, Q>(active, a, unit, limit, scores, factor, ahead);
  size_t d = 0;
  for (; d + wide <= a.hd; d += wide)
    add_values<V, Q, V::kPageVectors>(page, scores, all, factor, a.hd, d, o, ahead);
  for (; d < a.hd; d += narrow)
    add_values<V, Q, static_cast<int>(narrow / V::kLanes)>(page, scores, all, factor, a.hd, d, o, ahead);
}

}  // namespace hotset::kernels::generic
