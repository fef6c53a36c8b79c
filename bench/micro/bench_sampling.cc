// Microseconds that the choice of one token takes, by size of vocabulary and settings; every choice also
// computes the token's log probability.
//
//   bench_sampling [--isa NAME] [--seconds S]
//
// Logits are normal with a deviation of 3, as wide as those of trained models.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "sampling/sampler.h"

namespace {

using namespace hotset;
using sampling::Sampler, sampling::SamplingParams;
using Clock = std::chrono::steady_clock;

constexpr size_t kVocabularies[] = {32000, 128256, 262144}, kPrompt = 1024;

struct Setting {
  const char* name;
  SamplingParams params;
};

const Setting kSettings[] = {
    {"greedy", {.temperature = 0}},
    {"greedy, repetition penalty", {.temperature = 0, .repetition_penalty = 1.1f}},
    {"temperature 1", {}},
    {"temperature 0.8", {.temperature = 0.8f}},
    {"top-p 0.95", {.temperature = 0.8f, .top_p = 0.95f}},
    {"top-k 40", {.temperature = 0.8f, .top_k = 40}},
    {"min-p 0.05", {.temperature = 0.8f, .min_p = 0.05f}},
    {"all", {.temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f, .repetition_penalty = 1.1f}},
};

std::vector<float> random_logits(size_t n) {
  std::mt19937 rng(7);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> x(n);
  for (float& v : x) v = normal(rng);
  return x;
}

// Median over at least `seconds` of choices: which token comes out decides how long one takes.
double median_us(const Setting& setting, const std::vector<float>& logits, const kernels::Kernels& k,
                 double seconds) {
  Sampler sampler(setting.params, 11, k);
  std::vector<int32_t> prompt(kPrompt);
  for (size_t i = 0; i < kPrompt; ++i) prompt[i] = static_cast<int32_t>(i * 7919 % logits.size());
  sampler.accept_prompt(prompt);
  std::vector<double> us;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  for (Clock::time_point start; (start = Clock::now()) < end;) {
    float logprob;
    sampler.sample(logits, nullptr, &logprob);
    us.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
  }
  std::nth_element(us.begin(), us.begin() + static_cast<ptrdiff_t>(us.size() / 2), us.end());
  return us[us.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  const char* isa = nullptr;
  double seconds = 0.1;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    if (flag == "--isa") isa = argv[i + 1];
    if (flag == "--seconds") seconds = std::atof(argv[i + 1]);
  }
  const kernels::Kernels& k = kernels::select(isa);
  for (const size_t vocab : kVocabularies) {
    const std::vector<float> logits = random_logits(vocab);
    for (const Setting& setting : kSettings)
      std::printf("%-12s %-28s n=%-7zu %8.1f us\n", k.isa, setting.name, vocab,
                  median_us(setting, logits, k, seconds));
  }
}
