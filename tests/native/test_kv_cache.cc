// KvCache against a plain model of it: every sequence keeps the marks it wrote, whatever is forked, cut or
// freed.
#include <cstring>
#include <map>
#include <random>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "model/kv_cache.h"

using hotset::kernels::kPage;
using hotset::kernels::KvType;
using hotset::model::KvCache;

namespace {

constexpr size_t kLayers = 2, kHeads = 3, kHd = 16;

// The first bytes of a block stand for its 64 tokens: byte i belongs to token i.
uint8_t& mark(KvCache& kv, int32_t seq, size_t token, size_t layer, size_t head) {
  return kv.block(kv.pages(seq)[token / kPage], layer, head)[token % kPage];
}

void append(KvCache& kv, int32_t seq, std::vector<uint8_t>& expected, size_t n, std::mt19937& rng) {
  kv.reserve(seq, n);
  for (size_t i = 0; i < n; ++i) {
    expected.push_back(static_cast<uint8_t>(rng()));
    for (size_t l = 0; l < kLayers; ++l)
      for (size_t h = 0; h < kHeads; ++h)
        mark(kv, seq, expected.size() - 1, l, h) = static_cast<uint8_t>(expected.back() + l * kHeads + h);
  }
  kv.commit(seq, n);
}

void compare(KvCache& kv, int32_t seq, const std::vector<uint8_t>& expected) {
  CHECK(kv.length(seq) == expected.size());
  for (size_t t = 0; t < expected.size(); ++t)
    for (size_t l = 0; l < kLayers; ++l)
      for (size_t h = 0; h < kHeads; ++h)
        CHECK(mark(kv, seq, t, l, h) == static_cast<uint8_t>(expected[t] + l * kHeads + h));
}

void random_operations(unsigned seed) {
  std::mt19937 rng(seed);
  KvCache kv(KvType::int8, kLayers, kHeads, kHd, 24 * kPage);
  std::map<int32_t, std::vector<uint8_t>> model;
  for (int step = 0; step < 400; ++step) {
    const unsigned what = rng() % 8;
    if (model.empty() || what == 0) {
      model[kv.create()] = {};
      continue;
    }
    auto it = std::next(model.begin(), rng() % model.size());
    auto& [seq, expected] = *it;
    if (what == 1) {
      const int32_t copy = kv.fork(seq);
      model[copy] = std::vector<uint8_t>(expected);
    } else if (what == 2) {
      kv.release(seq);
      model.erase(it);
    } else if (what == 3) {
      expected.resize(expected.empty() ? 0 : rng() % expected.size());
      kv.truncate(seq, expected.size());
    } else {
      const size_t n = 1 + rng() % 100, free = kv.free_tokens();
      try {
        append(kv, seq, expected, n, rng);
      } catch (const hotset::OutOfMemory&) {
        CHECK(free < n + kPage);          // n tokens need at most n / 64 + 1 new pages and one copy
        CHECK(kv.free_tokens() == free);  // a refused reservation takes nothing
      }
    }
    for (const auto& [s, e] : model) compare(kv, s, e);
  }
  for (const auto& [s, e] : model) kv.release(s);
  CHECK(kv.free_tokens() == 24 * kPage);
}

void rollback_returns_pages() {
  KvCache kv(KvType::f16, kLayers, kHeads, 10, 4 * kPage);
  CHECK(kv.head_dim() == 16);
  const int32_t seq = kv.create();
  kv.reserve(seq, 100);
  CHECK(kv.free_tokens() == 2 * kPage);
  kv.rollback(seq);
  CHECK(kv.free_tokens() == 4 * kPage);
  CHECK(kv.length(seq) == 0);
}

void wrong_use() {
  KvCache kv(KvType::f16, kLayers, kHeads, kHd, kPage);
  const int32_t seq = kv.create();
  CHECK_THROWS(hotset::InvalidArgument, (kv.truncate(seq, 1), 0));
  kv.release(seq);
  CHECK_THROWS(hotset::InvalidArgument, (kv.release(seq), 0));
  CHECK_THROWS(hotset::InvalidArgument, (kv.length(seq), 0));
}

}  // namespace

int main() {
  for (unsigned seed = 0; seed < 20; ++seed) random_operations(seed);
  rollback_returns_pages();
  wrong_use();
  return check::report();
}
