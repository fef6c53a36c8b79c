// The sampler's filters against a full sort, and its promises: same seed same tokens, errors change nothing.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "kernel_cases.h"
#include "kernels/kernels.h"
#include "sampling/sampler.h"

using namespace hotset;
using sampling::Sampler, sampling::SamplingParams;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
const kernels::Kernels& scalar() { return kernels::select("scalar"); }

std::vector<float> random_logits(size_t n, unsigned seed, float scale = 3) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> x(n);
  for (float& v : x) v = normal(rng);
  return x;
}

// Which tokens may come out, by sorting everything; in double.
std::set<int32_t> support(const std::vector<float>& x, const SamplingParams& p) {
  std::vector<int32_t> order(x.size());
  for (size_t i = 0; i < x.size(); ++i) order[i] = static_cast<int32_t>(i);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return x[a] > x[b]; });
  if (p.top_k > 0) order.resize(std::min<size_t>(order.size(), static_cast<size_t>(p.top_k)));
  const auto weight = [&](int32_t t) { return std::exp((double{x[t]} - x[order[0]]) / p.temperature); };
  double total = 0, sum = 0;
  for (int32_t t : order) total += weight(t);
  std::set<int32_t> kept;
  for (int32_t t : order) {
    if (sum >= p.top_p * total && !kept.empty()) break;
    sum += weight(t);
    if (weight(t) >= p.min_p) kept.insert(t);
  }
  return kept;
}

std::set<int32_t> drawn(const std::vector<float>& x, const SamplingParams& p, int draws) {
  Sampler s(p, 11, scalar());
  std::set<int32_t> tokens;
  for (int i = 0; i < draws; ++i) tokens.insert(s.sample(x, nullptr, nullptr));
  return tokens;
}

void test_supports() {  // flat enough that every token kept is drawn
  for (unsigned seed = 0; seed < 4; ++seed) {
    const std::vector<float> x = random_logits(50, seed, 0.7f);
    for (int top_k : {0, 1, 5, 49, 1000})
      for (float top_p : {0.0f, 0.3f, 0.9f, 1.0f})
        for (float min_p : {0.0f, 0.2f, 1.0f}) {
          const SamplingParams p{1.5f, top_k, top_p, min_p};
          CHECK(drawn(x, p, 3000) == support(x, p));
        }
  }
}

// More tokens than one block of maxima or weights, some of them banned; likely enough that all kept are
// drawn.
void test_supports_of_many() {
  for (const size_t n : {65, 1100}) {
    std::vector<float> x = random_logits(n, static_cast<unsigned>(n));
    for (size_t i = 0; i < n; i += 7) x[i] = -kInf;
    for (const SamplingParams& p : std::initializer_list<SamplingParams>{{1.5f, 1},
                                                                         {1.5f, 5},
                                                                         {8.0f, 40},
                                                                         {1.5f, 100, 0.2f},
                                                                         {1.5f, 0, 0.05f},
                                                                         {1.5f, 0, 0.3f},
                                                                         {1.5f, 0, 0.9f, 0.3f},
                                                                         {1.5f, 0, 1, 0.2f},
                                                                         {1.5f, 20, 0.9f, 0.2f}})
      CHECK(drawn(x, p, 3000) == support(x, p));
  }
}

// A seed's tokens are the same on every ISA, whatever the filters.
void test_same_tokens_on_every_isa() {
  const std::vector<float> x = random_logits(5000, 9);
  cases::for_each_isa([&](const kernels::Kernels& k) {
    for (const SamplingParams& p :
         std::initializer_list<SamplingParams>{{}, {0.7f, 50}, {0.9f, 0, 0.9f}, {1.2f, 0, 1, 0.01f}}) {
      Sampler twin(p, 3, scalar()), s(p, 3, k);
      for (int i = 0; i < 20; ++i) CHECK(s.sample(x, nullptr, nullptr) == twin.sample(x, nullptr, nullptr));
    }
  });
}

void test_ties() {
  const std::vector<float> equal(1000, 2.0f);
  CHECK(drawn(equal, {1, 3}, 500) == std::set<int32_t>({0, 1, 2}));
  CHECK(drawn(equal, {1, 0, 0.0039f}, 500) == std::set<int32_t>({0, 1, 2, 3}));
  const std::vector<float> zeros{-0.0f, 0.0f, -1.0f, 0.0f};  // -0 and +0 are the same logit
  CHECK(drawn(zeros, {1, 2}, 500) == std::set<int32_t>({0, 1}));
}

void test_extremes() {
  std::vector<float> x = random_logits(1000, 1);
  const auto best = static_cast<int32_t>(std::max_element(x.begin(), x.end()) - x.begin());
  CHECK(drawn(x, {1e-30f}, 20) == std::set<int32_t>({best}));
  CHECK(drawn(x, {0}, 20) == std::set<int32_t>({best}));
  CHECK(drawn(x, {1e30f}, 20000).size() > 990);
  x.assign(1000, -kInf);
  x[7] = -3e38f;
  CHECK(drawn(x, {1, 5, 0.9f, 0.1f}, 20) == std::set<int32_t>({7}));
  CHECK(drawn({1.0f}, {1}, 5) == std::set<int32_t>({0}));
}

void test_same_seed_same_tokens() {
  const std::vector<float> x = random_logits(32000, 5);
  Sampler a({}, 42, scalar()), b({}, 42, scalar()), c({}, 43, scalar());
  bool differs = false;
  for (int i = 0; i < 50; ++i) {
    const int32_t token = a.sample(x, nullptr, nullptr);
    CHECK(token == b.sample(x, nullptr, nullptr));
    differs |= token != c.sample(x, nullptr, nullptr);
  }
  CHECK(differs);
}

std::string error_of(Sampler& s, const std::vector<float>& x, const uint32_t* mask = nullptr) {
  try {
    s.sample(x, mask, nullptr);
  } catch (const InvalidArgument& e) {
    return e.what();
  }
  return "";
}

void test_bad_logits() {
  std::vector<float> x = random_logits(100, 2);
  Sampler clean({}, 1, scalar()), tried({}, 1, scalar());
  const uint32_t nothing[4] = {};
  for (float bad : {std::nanf(""), kInf}) {
    std::vector<float> y = x;
    y[17] = bad;
    CHECK(error_of(tried, y).find("token 17") != std::string::npos);
  }
  CHECK(!error_of(tried, x, nothing).empty());
  CHECK(!error_of(tried, {}).empty());
  CHECK(!error_of(tried, std::vector<float>(10, -kInf)).empty());
  for (int i = 0; i < 20; ++i)  // the failures took nothing from the random stream
    CHECK(tried.sample(x, nullptr, nullptr) == clean.sample(x, nullptr, nullptr));
}

void test_bad_parameters() {
  const float nan = std::nanf("");
  for (const SamplingParams& p : std::initializer_list<SamplingParams>{{-1},
                                                                       {nan},
                                                                       {kInf},
                                                                       {1, -1},
                                                                       {1, 0, 1.1f},
                                                                       {1, 0, nan},
                                                                       {1, 0, 1, -0.1f},
                                                                       {1, 0, 1, 2},
                                                                       {1, 0, 1, 0, 0},
                                                                       {1, 0, 1, 0, nan},
                                                                       {1, 0, 1, 0, 1, kInf},
                                                                       {1, 0, 1, 0, 1, 0, nan},
                                                                       {1, 0, 1, 0, 1, 0, 0, {{-1, 1.0f}}},
                                                                       {1, 0, 1, 0, 1, 0, 0, {{1, nan}}}})
    CHECK_THROWS(InvalidArgument, Sampler(p, 0, scalar()));
  Sampler outside({1, 0, 1, 0, 1, 0, 0, {{100, 1.0f}}}, 0, scalar());
  CHECK(error_of(outside, random_logits(100, 1)).find("token 100") != std::string::npos);
  Sampler s({}, 0, scalar());
  const int32_t negative = -5, large = 100;
  CHECK_THROWS(InvalidArgument, s.accept_prompt({&negative, 1}));
  s.accept_prompt({&large, 1});
  CHECK(error_of(s, random_logits(100, 1)).find("token 100") != std::string::npos);
}

}  // namespace

int main() {
  test_supports();
  test_supports_of_many();
  test_same_tokens_on_every_isa();
  test_ties();
  test_extremes();
  test_same_seed_same_tokens();
  test_bad_logits();
  test_bad_parameters();
  return check::report();
}
