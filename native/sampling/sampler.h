// Turns one row of logits into a token. One Sampler per sequence; it carries the counts for the penalties and
// the random stream, so the same seed gives the same text whatever the batch or the number of threads.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "kernels/kernels.h"

namespace hotset::sampling {

// Order, as in transformers and llama.cpp: logit bias, repetition, presence/frequency, temperature, top-k,
// top-p, min-p. Equal logits at a boundary: the lower token stays.
struct SamplingParams {
  float temperature = 1.0f;  // 0 = greedy
  int32_t top_k = 0;         // 0 = off
  float top_p = 1.0f, min_p = 0.0f;
  float repetition_penalty =
      1.0f;  // logit > 0 divides, < 0 multiplies (CTRL, arXiv:1909.05858); over prompt and output
  float presence_penalty = 0.0f, frequency_penalty = 0.0f;  // OpenAI's definition: over the output only
  std::vector<std::pair<int32_t, float>> logit_bias = {};   // -inf bans a token
};

// Not thread-safe; several may be used at once. A copy draws what the original would draw. Takes memory by
// the tokens that it has seen, and only where there are penalties. All methods throw InvalidArgument on a
// value out of range and then have counted nothing.
class Sampler {
 public:
  Sampler(const SamplingParams& params, uint64_t seed, const kernels::Kernels& k);
  void accept_prompt(std::span<const int32_t> tokens);
  // Picks a token and counts it. `mask`: one bit per token (1 = allowed), may be null. logits is not changed.
  // Returns the token; *logprob (may be null) = log softmax of the unmodified logits at it. Throws
  // InvalidArgument if a logit is NaN or +inf, or if mask and bias leave no token.
  int32_t sample(std::span<const float> logits, const uint32_t* mask, float* logprob);

 private:
  struct Seen {
    int32_t token, count;  // count: in the output
  };
  // What a choice is made in, some of it as long as the vocabulary. Lent for the choice alone, so there are
  // as many as ever were used at once.
  struct Work {
    std::vector<float> adjusted;  // logits after bias and penalties, if there are any
    std::vector<float> maxima;    // of blocks of kernels::kMaximaBlock logits
    // Tokens still in play, in rising order, with their logits and unnormalized probabilities; without a
    // filter only p, of all tokens. sums: of blocks of kernels::kWeightsBlock of them.
    std::vector<int32_t> ids;
    std::vector<float> x, p, sums;
    std::unique_ptr<Work> next;  // that nobody uses either
  };
  class Loan;
  int32_t choose(std::span<const float> logits, const uint32_t* mask);
  bool penalizes() const;
  void adjust(std::span<float> x) const;
  int32_t first_of(std::span<const float> x, float logit) const;
  void filter(std::span<const float> x, float max);
  float kth_block_maximum(size_t k);
  float logit_of(double weight, float max) const;
  void gather(std::span<const float> x, float lowest);
  void keep_top(double target, bool by_probability);
  void weigh(std::span<const float> x, float max);
  template <class Keep>
  void compact(Keep keep);
  size_t draw();
  double uniform();
  void check_tokens(size_t vocab) const;
  void count(int32_t token);

  SamplingParams params_;
  const kernels::Kernels& k_;
  uint64_t state_[4];       // xoshiro256**, seeded with splitmix64
  std::vector<Seen> seen_;  // distinct tokens of prompt and output, rising; none without penalties
  int64_t highest_ = -1;    // token of prompt and output
  Work* work_ = nullptr;    // of the running sample()
};

}  // namespace hotset::sampling
