#include "kernel_cases.h"
#include "quant/half.h"

namespace cases {

namespace {

using namespace hotset;
using kernels::kPage;
using kernels::KvType;

// Pages of which only the first `tokens` slots were written; the rest are NaN (f16) or noise.
struct Cache {
  KvType type;
  size_t hd, tokens;
  std::vector<std::vector<uint8_t>> pages;
  std::vector<const uint8_t*> table;

  Cache(const Kernels& k, KvType t, size_t head, size_t count, Rng& rng) : type(t), hd(head), tokens(count) {
    pages.assign((count + kPage - 1) / kPage, std::vector<uint8_t>(kernels::kv_page_bytes(t, head), 0xff));
    for (size_t i = 0; i < count; ++i) {
      const std::vector<float> key = rng.values(hd, rng.pick({1.0f, 0.01f, 20.0f})),
                               value = rng.values(hd, 1.0f);
      k.kv_store(t, key.data(), value.data(), hd, i % kPage, pages[i / kPage].data());
    }
    for (const auto& page : pages) table.push_back(page.data());
  }
  uint16_t word(size_t token, size_t index) const {  // of the page
    uint16_t bits;
    std::memcpy(&bits, table[token / kPage] + index * 2, 2);
    return bits;
  }
  double code(size_t token, size_t index, size_t group) const {
    const uint8_t byte = table[token / kPage][kernels::kv_scale_bytes(hd) + index];
    return static_cast<int8_t>(byte) * quant::bf16_to_f32(word(token, group * kPage + token % kPage));
  }
  double key(size_t token, size_t d) const {
    const size_t slot = token % kPage;
    if (type == KvType::f16) return quant::f16_to_f32(word(token, d * kPage + slot));
    return code(token, (d / 2 * kPage + slot) * 2 + d % 2, d / kernels::kKeyGroup);
  }
  double value(size_t token, size_t d) const {
    const size_t slot = token % kPage;
    if (type == KvType::f16) return quant::f16_to_f32(word(token, (kPage + slot) * hd + d));
    return code(token, hd * kPage + (slot / 2 * hd + d) * 2 + slot % 2, kernels::key_groups(hd));
  }
  double largest_value(size_t token) const {
    double most = 0;
    for (size_t d = 0; d < hd; ++d) most = std::max(most, std::abs(value(token, d)));
    return most;
  }
  // Half a step of what becomes an int16 next to the largest, 0 where products are in f32.
  double half_step(double largest) const { return type == KvType::int8 ? largest / 32767 * 0.501 : 0; }
};

struct Queries {
  std::vector<float> q, m, l, o;
  std::vector<int64_t> lo, hi;
  size_t hd;

  Queries(size_t n, size_t head)
      : q(n * head), m(n, -INFINITY), l(n, 0.0f), o(n * head, 0.0f), lo(n), hi(n), hd(head) {}
  kernels::AttendState state(size_t first, size_t n) {
    return {&q[first * hd], &lo[first], &hi[first], &m[first], &l[first], &o[first * hd], n, hd};
  }
};

// Tolerance: a score is off by at most (hd + 2) units of sum |q k|, a weight by that plus the error of exp
// and of its argument; numerator and denominator both carry it, with one rounding per token and per page.
// With int8, queries and weights are rounded to int16 before.
void check_query(const Cache& cache, const Queries& queries, size_t i, int64_t base, const char* isa) {
  const size_t hd = cache.hd;
  std::vector<double> scores(cache.tokens, -INFINITY);
  double top = -INFINITY, worst = 0, sum = 0, largest_q = 0;
  for (size_t d = 0; d < hd; ++d) largest_q = std::max<double>(largest_q, std::abs(queries.q[i * hd + d]));
  for (size_t t = 0; t < cache.tokens; ++t) {
    const int64_t position = base + static_cast<int64_t>(t);
    if (position < queries.lo[i] || position >= queries.hi[i]) continue;
    double score = 0, magnitude = 0, keys = 0;
    for (size_t d = 0; d < hd; ++d) {
      score += queries.q[i * hd + d] * cache.key(t, d);
      magnitude += std::abs(queries.q[i * hd + d] * cache.key(t, d));
      keys += std::abs(cache.key(t, d));
    }
    scores[t] = score;
    top = std::max(top, score);
    const double rounding = cache.half_step(largest_q) * keys;
    worst = std::max(worst, (static_cast<double>(hd) + 4) * kUnit * magnitude + rounding);
  }
  if (top == -INFINITY) {
    CHECK(queries.m[i] == -INFINITY && queries.l[i] == 0.0f);
    for (size_t d = 0; d < hd; ++d) CHECK(queries.o[i * hd + d] == 0.0f);
    return;
  }
  close(queries.m[i], top, worst, isa, "attend m", i);
  const double relative = 2 * worst + (static_cast<double>(cache.tokens) + 200) * kUnit + 1e-6;
  for (double& score : scores) sum += std::exp(score - top);
  close(queries.l[i], sum, sum * (relative + worst), isa, "attend l", i);
  for (size_t d = 0; d < hd; ++d) {
    double want = 0, magnitude = 0, largest = 0;
    for (size_t t = 0; t < cache.tokens; ++t) {
      if (scores[t] == -INFINITY) continue;
      largest = std::max(largest, std::exp(scores[t] - top) * cache.largest_value(t) / sum);
      want += std::exp(scores[t] - top) * cache.value(t, d) / sum;
      magnitude += std::exp(scores[t] - top) * std::abs(cache.value(t, d)) / sum;
    }
    const double rounding = cache.half_step(largest) * static_cast<double>(cache.tokens) * 1.1;
    close(queries.o[i * hd + d] / queries.l[i], want, 2 * relative * magnitude + rounding + 1e-30, isa,
          "attend o", i * hd + d);
  }
}

}  // namespace

void check_attend(const Kernels& k, Rng rng) {
  const size_t hd = rng.between(1, 17) * 16, n = rng.between(1, kernels::kTile), tokens = rng.between(1, 200);
  const Cache cache(k, rng.pick({KvType::f16, KvType::int8}), hd, tokens, rng);
  const int64_t first_page = static_cast<int64_t>(rng.between(0, 3)), base = first_page * int64_t{kPage};
  Queries queries(n, hd);
  queries.q = rng.values(n * hd, 0.3f);
  for (size_t i = 0; i < n; ++i) {
    queries.hi[i] = base + static_cast<int64_t>(rng.one_in(2) ? tokens : rng.between(0, tokens));
    queries.lo[i] = rng.one_in(2) ? 0 : base + static_cast<int64_t>(rng.between(0, tokens));
  }
  Queries single = queries, cut = queries;
  k.attend(cache.type, cache.table.data(), cache.table.size(), first_page, queries.state(0, n));
  for (size_t i = 0; i < n; ++i) {
    k.attend(cache.type, cache.table.data(), cache.table.size(), first_page, single.state(i, 1));
  }
  for (size_t p = 0; p < cache.table.size(); ++p) {
    k.attend(cache.type, &cache.table[p], 1, first_page + static_cast<int64_t>(p), cut.state(0, n));
  }
  CHECK(same_bits(queries.o, single.o) && same_bits(queries.m, single.m) && same_bits(queries.l, single.l));
  CHECK(same_bits(queries.o, cut.o) && same_bits(queries.m, cut.m) && same_bits(queries.l, cut.l));
  for (size_t i = 0; i < n; ++i) check_query(cache, queries, i, base, k.isa);
}

}  // namespace cases
