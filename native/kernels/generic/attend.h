// KV pages: writing a token, and attention with an online softmax (arXiv:1805.02867), a page at a time.
#pragma once

#include "kernels/generic/elementwise.h"

namespace hotset::kernels::generic {

constexpr size_t kPrefetchAhead = 4096;  // bytes; keys and values of a page are one stream

template <class V>
struct PageF16 {
  using Element = uint16_t;
  static constexpr bool kScaled = false;
  static HOTSET_INLINE typename V::F load(const Element* p) { return V::load_f16(p); }
};
template <class V>
struct PageInt8 {
  using Element = int8_t;
  static constexpr bool kScaled = true;
  static HOTSET_INLINE typename V::F load(const Element* p) { return V::load_i8(p); }
};

// The parts of one page; scales only for int8.
template <class P>
struct PageView {
  using E = typename P::Element;
  const E *keys, *values;  // [hd][kPage], [kPage][hd]
  const float *key_scale, *value_scale;
  PageView(const uint8_t* page, size_t hd)
      : keys(reinterpret_cast<const E*>(page)),
        values(keys + hd * kPage),
        key_scale(reinterpret_cast<const float*>(values + hd * kPage)),
        value_scale(key_scale + kPage) {}
};

template <class V>
void kv_store(KvType type, const float* k, const float* v, size_t hd, size_t slot, uint8_t* page) {
  uint16_t half[V::kLanes];
  if (type == KvType::f16) {
    auto* keys = reinterpret_cast<uint16_t*>(page);
    uint16_t* value = keys + hd * kPage + slot * hd;
    for (size_t d = 0; d < hd; d += V::kLanes) {
      V::store_f16(half, V::load(k + d));
      for (size_t i = 0; i < V::kLanes; ++i) keys[(d + i) * kPage + slot] = half[i];
      V::store_f16(value + d, V::load(v + d));
    }
    return;
  }
  auto* keys = reinterpret_cast<int8_t*>(page);
  int8_t* values = keys + hd * kPage;
  auto* scales = reinterpret_cast<float*>(values + hd * kPage);
  // The key goes through the value's slot, which is as long, and is scattered to its column from there.
  int8_t* row = values + slot * hd;
  scales[slot] = quantize_absmax<V>(k, hd, row).scale;
  for (size_t d = 0; d < hd; ++d) keys[d * kPage + slot] = row[d];
  scales[kPage + slot] = quantize_absmax<V>(v, hd, row).scale;
}

// scores[i][t] = q[i] . key t, for Q queries and all tokens of the page; sums over d in order.
template <class V, class P, int Q>
HOTSET_INLINE void page_scores(const PageView<P>& page, const float* const* q, size_t hd,
                               float (*scores)[kPage]) {
  using F = typename V::F;
  constexpr int C = V::kPageVectors;
  for (size_t t = 0; t < kPage; t += C * V::kLanes) {
    F acc[Q][C];
#pragma GCC unroll 16
    for (int i = 0; i < Q; ++i) {
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) acc[i][c] = V::zero();
    }
    for (size_t d = 0; d < hd; ++d) {
      F keys[C];
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) {
        const auto* from = page.keys + d * kPage + t + c * V::kLanes;
        if (c * V::kLanes * sizeof(*from) % 64 == 0)
          __builtin_prefetch(reinterpret_cast<const char*>(from) + kPrefetchAhead);
        keys[c] = P::load(from);
      }
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
      for (int c = 0; c < C; ++c) {
        const size_t at = t + c * V::kLanes;
        if constexpr (P::kScaled) acc[i][c] = V::mul(acc[i][c], V::load(page.key_scale + at));
        V::store(scores[i] + at, acc[i][c]);
      }
    }
  }
}

// Turns scores of tokens [begin, end) into weights exp(score - m), all others into 0, and brings m and l up
// to date. Returns the factor for what was accumulated under the old maximum.
template <class V>
HOTSET_INLINE float softmax_page(float* scores, size_t begin, size_t end, float* m, float* l) {
  using F = typename V::F;
  const float lowest = -__builtin_inff();
  for (size_t t = 0; t < begin; ++t) scores[t] = lowest;
  for (size_t t = end; t < kPage; ++t) scores[t] = lowest;
  F top = V::load(scores);
  for (size_t t = V::kLanes; t < kPage; t += V::kLanes) top = V::max(V::load(scores + t), top);
  const float page_max = V::max_lane(top), old_max = *m;
  const float new_max = page_max > old_max ? page_max : old_max;
  // -inf - -inf would be NaN: with nothing above -inf all weights are 0 and the old sum, 0, stays.
  const F shift = V::set(new_max == lowest ? 0.0f : new_max);
  F sum = V::zero();
  for (size_t t = 0; t < kPage; t += V::kLanes) {
    const F weight = exp<V>(V::sub(V::load(scores + t), shift));
    sum = V::add(sum, weight);
    V::store(scores + t, weight);
  }
  float factor[V::kLanes];
  V::store(factor, exp<V>(V::sub(V::set(old_max), shift)));
  *m = new_max;
  *l = *l * factor[0] + V::sum(sum);
  return factor[0];
}

// o[i] = o[i] * factor[i] + sum over tokens [begin, end) of weights[i][t] * value t, columns d..d+C*kLanes.
template <class V, class P, int Q, int C>
HOTSET_INLINE void add_values(const PageView<P>& page, float (*weights)[kPage], size_t begin, size_t end,
                              const float* factor, size_t hd, size_t d, float* const* o) {
  using F = typename V::F;
  F acc[Q][C];
#pragma GCC unroll 16
  for (int i = 0; i < Q; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) acc[i][c] = V::mul(V::load(o[i] + d + c * V::kLanes), V::set(factor[i]));
  }
  for (size_t t = begin; t < end; ++t) {
    F values[C];
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
      const auto* from = page.values + t * hd + d + c * V::kLanes;
      if (c * V::kLanes * sizeof(*from) % 64 == 0)
        __builtin_prefetch(reinterpret_cast<const char*>(from) + kPrefetchAhead);
      values[c] = P::load(from);
    }
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
}

// A query that attends to something in the page.
struct ActiveQuery {
  size_t index, begin, end;  // row of AttendState; tokens of the page
};

template <class V, class P, int Q>
void attend_queries(const PageView<P>& page, const AttendState& a, const ActiveQuery* active) {
  constexpr size_t wide = V::kPageVectors * V::kLanes, narrow = quant::kRowBlock;
  alignas(64) float scores[Q][kPage];
  const float* q[Q];
  float *o[Q], factor[Q];
  size_t begin = kPage, end = 0;
  for (int i = 0; i < Q; ++i) {
    q[i] = a.q + active[i].index * a.hd;
    o[i] = a.o + active[i].index * a.hd;
    begin = active[i].begin < begin ? active[i].begin : begin;
    end = active[i].end > end ? active[i].end : end;
  }
  page_scores<V, P, Q>(page, q, a.hd, scores);
  for (int i = 0; i < Q; ++i) {
    const ActiveQuery& query = active[i];
    factor[i] = softmax_page<V>(scores[i], query.begin, query.end, a.m + query.index, a.l + query.index);
    if constexpr (P::kScaled) {
      map<V>(scores[i], page.value_scale, kPage,
             [](typename V::F w, typename V::F s) { return V::mul(w, s); });
    }
  }
  size_t d = 0;
  for (; d + wide <= a.hd; d += wide) {
    add_values<V, P, Q, V::kPageVectors>(page, scores, begin, end, factor, a.hd, d, o);
  }
  for (; d < a.hd; d += narrow) {
    add_values<V, P, Q, static_cast<int>(narrow / V::kLanes)>(page, scores, begin, end, factor, a.hd, d, o);
  }
}

template <class V, class P>
void attend_page(const uint8_t* data, int64_t position, const AttendState& a) {
  ActiveQuery active[kTile];
  size_t count = 0;
  for (size_t i = 0; i < a.n; ++i) {
    const int64_t lo = a.lo[i] - position, hi = a.hi[i] - position;
    const int64_t begin = lo > 0 ? lo : 0, end = hi < int64_t{kPage} ? hi : int64_t{kPage};
    if (begin < end) active[count++] = {i, static_cast<size_t>(begin), static_cast<size_t>(end)};
  }
  const PageView<P> page(data, a.hd);
  size_t i = 0;
  for (; i + 4 <= count; i += 4) attend_queries<V, P, 4>(page, a, active + i);
  switch (count - i) {
    case 3:
      return attend_queries<V, P, 3>(page, a, active + i);
    case 2:
      return attend_queries<V, P, 2>(page, a, active + i);
    case 1:
      return attend_queries<V, P, 1>(page, a, active + i);
    default:
      return;
  }
}

template <class V>
void attend(KvType type, const uint8_t* const* pages, size_t n_pages, int64_t first_page,
            const AttendState& a) {
  for (size_t i = 0; i < n_pages; ++i) {
    const int64_t position = (first_page + static_cast<int64_t>(i)) * int64_t{kPage};
    if (type == KvType::f16) {
      attend_page<V, PageF16<V>>(pages[i], position, a);
    } else {
      attend_page<V, PageInt8<V>>(pages[i], position, a);
    }
  }
}

}  // namespace hotset::kernels::generic
