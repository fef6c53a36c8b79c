// What attention over both kinds of KV pages shares: prefetch, and the online softmax (arXiv:1805.02867).
#pragma once

#include "kernels/generic/elementwise.h"

namespace hotset::kernels::generic {

// What has a loop with all registers taken: inlined, it would share them with its neighbours' constants and
// spill.
#define HOTSET_APART __attribute__((noinline))

// Fetches the page that comes next, a few lines at every step of the work on this one: pages lie apart, and a
// memory that waits for the softmax in between is lost time. Fetches nothing if there is no next page.
class Ahead {
 public:
  Ahead(const uint8_t* next, size_t bytes) : at_(next), end_(next ? next + bytes : nullptr) {}
  // May go on for up to N - 1 lines behind the end.
  template <int N>
  HOTSET_INLINE void fetch() {
    if (at_ >= end_) return;
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) __builtin_prefetch(at_ + 64 * i);
    at_ += 64 * N;
  }

 private:
  const uint8_t *at_, *end_;
};

// A query that attends to something in the page.
struct ActiveQuery {
  size_t index, begin, end;  // row of AttendState; tokens of the page
};

// Tokens of the page that any of Q queries attends to.
template <int Q>
HOTSET_INLINE ActiveQuery tokens_of_all(const ActiveQuery* active) {
  ActiveQuery all{0, kPage, 0};
  for (int i = 0; i < Q; ++i) {
    all.begin = active[i].begin < all.begin ? active[i].begin : all.begin;
    all.end = active[i].end > all.end ? active[i].end : all.end;
  }
  return all;
}

// x[0..limit) outside [begin, end).
HOTSET_INLINE void fill_outside(size_t begin, size_t end, size_t limit, float value, float* x) {
  for (size_t t = 0; t < begin; ++t) x[t] = value;
  for (size_t t = end; t < limit; ++t) x[t] = value;
}

// Lines to fetch while a step takes in so many bytes, or makes a vector of weights: what memory gives
// meanwhile.
constexpr int lines(int bytes) { return bytes > 64 ? bytes / 64 : 1; }
template <class V>
constexpr int kSoftmaxLines = V::kLanes >= 4 ? V::kLanes / 4 : 1;

// Turns scores of the tokens that each query attends to into weights exp(score * unit - m), all others before
// `limit`, a multiple of kLanes, into 0, and brings m and l up to date. factor: for what was accumulated
// under the old maximum. By stages, as the queries' chains of dependent steps then overlap.
template <class V, int Q>
HOTSET_APART void softmax_page(const ActiveQuery* active, const AttendState& a, const float* unit,
                               size_t limit, float (*scores)[kPage], float* factor, Ahead& shared) {
  Ahead ahead = shared;
  using F = typename V::F;
  const float lowest = -__builtin_inff();
  float shift[Q], sum[Q], change[(Q + V::kLanes - 1) / V::kLanes * V::kLanes] = {};
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) {
    fill_outside(active[i].begin, active[i].end, limit, lowest, scores[i]);
    F top = V::load(scores[i]);
    for (size_t t = V::kLanes; t < limit; t += V::kLanes) top = V::max(V::load(scores[i] + t), top);
    const float page_max = V::max_lane(top) * unit[i], old_max = a.m[active[i].index];
    const float new_max = page_max > old_max ? page_max : old_max;
    // -inf - -inf would be NaN: with nothing above -inf all weights are 0 and the old sum, 0, stays.
    shift[i] = new_max == lowest ? 0.0f : new_max;
    change[i] = old_max - shift[i];
    a.m[active[i].index] = new_max;
  }
#pragma GCC unroll 4
  for (int i = 0; i < Q; ++i) {
    const F u = V::set(unit[i]), minus = V::set(-shift[i]);
    F total = V::zero();
    for (size_t t = 0; t < limit; t += V::kLanes) {
      ahead.fetch<kSoftmaxLines<V>>();
      const F weight = exp<V, true>(V::fma(V::load(scores[i] + t), u, minus));
      total = V::add(total, weight);
      V::store(scores[i] + t, weight);
    }
    sum[i] = V::sum(total);
  }
  for (int i = 0; i < Q; i += V::kLanes) V::store(change + i, exp<V, true>(V::load(change + i)));
  for (int i = 0; i < Q; ++i) {
    factor[i] = change[i];
    a.l[active[i].index] = a.l[active[i].index] * factor[i] + sum[i];
  }
  shared = ahead;
}

}  // namespace hotset::kernels::generic
