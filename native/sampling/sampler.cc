#include "sampling/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>

#include "base/error.h"

namespace hotset::sampling {
namespace {

constexpr int kDigitBits = 11;                  // three passes over 32 bits
constexpr uint32_t kDigits = 1u << kDigitBits;  // buckets of one pass
constexpr int32_t kUnseen = -1;
constexpr float kInf = std::numeric_limits<float>::infinity();

void require(bool ok, const std::string& message) {
  if (!ok) throw InvalidArgument(message);
}

std::string got(float value) { return ", got " + std::to_string(value); }

void check(const SamplingParams& p) {
  require(p.temperature >= 0 && p.temperature < kInf,
          "temperature must be >= 0 (0 = greedy)" + got(p.temperature));
  require(p.top_k >= 0, "top_k must be >= 0 (0 = off), got " + std::to_string(p.top_k));
  require(p.top_p >= 0 && p.top_p <= 1, "top_p must be between 0 and 1" + got(p.top_p));
  require(p.min_p >= 0 && p.min_p <= 1, "min_p must be between 0 and 1" + got(p.min_p));
  require(p.repetition_penalty > 0 && p.repetition_penalty < kInf,
          "repetition_penalty must be > 0 (1 = off)" + got(p.repetition_penalty));
  require(std::isfinite(p.presence_penalty), "presence_penalty must be finite" + got(p.presence_penalty));
  require(std::isfinite(p.frequency_penalty), "frequency_penalty must be finite" + got(p.frequency_penalty));
  for (const auto& [token, bias] : p.logit_bias) {
    require(token >= 0, "logit_bias names token " + std::to_string(token) + ", which is negative");
    require(bias < kInf,
            "logit_bias of token " + std::to_string(token) + " must be below infinity" + got(bias));
  }
}

// splitmix64 (Steele, Lea & Flood, 2014): spreads any seed, 0 too, over the whole state.
uint64_t splitmix64(uint64_t& x) {
  x += 0x9e3779b97f4a7c15;
  uint64_t z = x;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// exp(y) for y <= 0, within 2 ulp; 0 below -87. Not libm's: a loop over it vectorizes, and every machine
// gives the same bits, hence the same text. Taylor to degree 7 on |r| <= ln(2)/2: error r^8/8! < 6e-9.
inline float exp_nonpositive(float y) {
  constexpr float kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded integer in the low bits
  // Compared as integers: a choice between floats may trap, so the compiler would keep the branch.
  constexpr int32_t kLimit = std::bit_cast<int32_t>(87.0f);
  const int32_t magnitude = std::bit_cast<int32_t>(y) & 0x7fffffff;
  const float clamped = -std::bit_cast<float>(magnitude < kLimit ? magnitude : kLimit);
  const float shifted = clamped * kLog2E + kRound;
  const float n = shifted - kRound;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;
  float poly = 1.0f / 5040;
  poly = poly * r + 1.0f / 720;
  poly = poly * r + 1.0f / 120;
  poly = poly * r + 1.0f / 24;
  poly = poly * r + 1.0f / 6;
  poly = poly * r + 0.5f;
  poly = poly * r + 1.0f;
  poly = poly * r + 1.0f;
  const uint32_t power = (std::bit_cast<uint32_t>(shifted) << 23) + 0x3f800000u;  // 2^n
  const int32_t value = std::bit_cast<int32_t>(poly * std::bit_cast<float>(power));
  return std::bit_cast<float>(value & -static_cast<int32_t>(magnitude < kLimit));
}

// Unsigned integers in the order of the floats. Adding 0 makes -0 equal to +0.
inline uint32_t order_key(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Eight sums side by side, then joined in a fixed order: fast, and the same everywhere.
double sum(const float* p, size_t n) {
  double lane[8] = {};
  size_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (size_t j = 0; j < 8; ++j) lane[j] += p[i + j];
  for (size_t j = 0; i < n; ++i, ++j) lane[j] += p[i];
  return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

void check_logits(std::span<const float> x) {
  require(!x.empty(), "logits are empty");
  uint32_t bad = 0;
  for (float v : x) bad |= !(v < kInf);
  if (!bad) return;
  const auto at = std::find_if(x.begin(), x.end(), [](float v) { return !(v < kInf); });
  throw InvalidArgument("logit of token " + std::to_string(at - x.begin()) + " is " +
                        (*at > 0 ? "+inf" : "NaN") + ": the model's weights or its arithmetic are broken");
}

void apply_mask(std::span<float> x, const uint32_t* mask) {
  for (size_t i = 0; i < x.size(); ++i)
    if (!(mask[i / 32] >> (i % 32) & 1)) x[i] = -kInf;
}

// Walks the histogram from the highest digit until the weight above plus the bucket reaches `target`, and
// returns that bucket; if rounding leaves the target out of reach, the lowest one in use. Adds the weight of
// those before it.
uint32_t boundary_digit(const double (&histogram)[kDigits], double target, double& above) {
  uint32_t last = 0;
  double before = above;
  for (uint32_t d = kDigits; d-- > 0;) {
    if (histogram[d] == 0) continue;
    last = d;
    before = above;
    above += histogram[d];
    if (above >= target) break;
  }
  above = before;
  return last;
}

}  // namespace

Sampler::Sampler(const SamplingParams& params, uint64_t seed, const kernels::Kernels& k)
    : params_(params), k_(k) {
  check(params_);
  for (uint64_t& word : state_) word = splitmix64(seed);
}

void Sampler::accept_prompt(std::span<const int32_t> tokens) {
  for (int32_t token : tokens) require(token >= 0, "prompt token " + std::to_string(token) + " is negative");
  for (int32_t token : tokens) see(token);
}

void Sampler::see(int32_t token) {
  const auto index = static_cast<size_t>(token);
  if (index >= output_count_.size()) output_count_.resize(index + 1, kUnseen);
  if (output_count_[index] != kUnseen) return;
  output_count_[index] = 0;
  seen_.push_back(token);
}

int32_t Sampler::sample(std::span<const float> logits, const uint32_t* mask, float* logprob) {
  check_logits(logits);
  check_tokens(logits.size());
  const int32_t token = choose(logits, mask);
  see(token);
  ++output_count_[static_cast<size_t>(token)];
  if (logprob != nullptr) {
    float max, lse;
    k_.logsumexp(logits.data(), logits.size(), &max, &lse);
    *logprob = logits[static_cast<size_t>(token)] - lse;
  }
  return token;
}

void Sampler::check_tokens(size_t vocab) const {
  require(output_count_.size() <= vocab, "prompt token " + std::to_string(output_count_.size() - 1) +
                                             " is outside the vocabulary of " + std::to_string(vocab) +
                                             " tokens");
  for (const auto& [token, bias] : params_.logit_bias)
    require(static_cast<size_t>(token) < vocab, "logit_bias names token " + std::to_string(token) +
                                                    ", outside the vocabulary of " + std::to_string(vocab) +
                                                    " tokens");
}

template <class Keep>
void Sampler::compact(Keep keep) {
  size_t n = 0;
  for (size_t i = 0; i < x_.size(); ++i) {
    const bool kept = keep(i);  // before the slots are overwritten; n <= i
    ids_[n] = ids_[i];
    x_[n] = x_[i];
    p_[n] = p_[i];
    n += kept;
  }
  ids_.resize(n), x_.resize(n), p_.resize(n);
}

int32_t Sampler::choose(std::span<const float> logits, const uint32_t* mask) {
  x_.assign(logits.begin(), logits.end());
  if (mask != nullptr) apply_mask(x_, mask);
  adjust(x_);
  const size_t best = k_.argmax(x_.data(), x_.size());
  const float max = x_[best];
  require(max > -kInf,
          "no token can be chosen: mask and logit_bias exclude all " + std::to_string(x_.size()));
  require(max < kInf, "logit of token " + std::to_string(best) + " overflows after bias and penalties");
  if (params_.temperature == 0) return static_cast<int32_t>(best);

  p_.resize(x_.size());
  ids_.resize(x_.size());
  std::iota(ids_.begin(), ids_.end(), 0);
  if (params_.top_k > 0) keep_top(params_.top_k, false);
  compute_probabilities(max);
  if (params_.top_p < 1) keep_top(params_.top_p * sum(p_.data(), p_.size()), true);
  if (params_.min_p > 0) compact([&](size_t i) { return p_[i] >= params_.min_p; });  // the best one's p is 1
  return draw();
}

void Sampler::adjust(std::span<float> x) const {
  const SamplingParams& p = params_;
  for (const auto& [token, bias] : p.logit_bias) x[static_cast<size_t>(token)] += bias;
  if (p.repetition_penalty == 1 && p.presence_penalty == 0 && p.frequency_penalty == 0) return;
  for (int32_t token : seen_) {
    float& v = x[static_cast<size_t>(token)];
    v = v < 0 ? v * p.repetition_penalty : v / p.repetition_penalty;
    const int32_t count = output_count_[static_cast<size_t>(token)];
    if (count > 0) v -= p.presence_penalty + p.frequency_penalty * static_cast<float>(count);
  }
}

// Keeps the fewest tokens, best first, whose weights (1 each, or p_) reach `target`; at least one. A radix
// select over the bits of the logits: three passes and no sort, whatever the distribution.
void Sampler::keep_top(double target, bool by_probability) {
  const auto weight = [&](size_t i) { return by_probability ? double{p_[i]} : 1.0; };
  double above = 0;  // weight of the tokens known to be better than the boundary
  uint64_t cut = 0;  // key of the boundary, as far as known
  for (int shift : {22, 11, 0}) {
    double histogram[kDigits] = {};
    for (size_t i = 0; i < x_.size(); ++i) {
      const uint64_t key = order_key(x_[i]);
      if (key >> shift >> kDigitBits == cut >> shift >> kDigitBits)
        histogram[key >> shift & (kDigits - 1)] += weight(i);
    }
    cut |= uint64_t{boundary_digit(histogram, target, above)} << shift;
    compact([&](size_t i) { return order_key(x_[i]) >> shift >= cut >> shift; });
  }
  size_t last = x_.size();  // of the equal logits at the boundary, the lowest tokens stay
  for (size_t i = 0; i < x_.size() && (last == x_.size() || above < target); ++i)
    if (order_key(x_[i]) == cut) above += weight(i), last = i;
  compact([&](size_t i) { return order_key(x_[i]) > cut || i <= last; });
}

void Sampler::compute_probabilities(float max) {
  const float temperature = params_.temperature;
  const float* x = x_.data();
  float* p = p_.data();
  for (size_t i = 0; i < x_.size(); ++i) p[i] = exp_nonpositive((x[i] - max) / temperature);
}

// Inverse of the cumulative sum at a uniform point: whole blocks first, then inside one.
int32_t Sampler::draw() {
  constexpr size_t kBlock = 1024;
  const auto block_sum = [&](size_t begin) { return sum(&p_[begin], std::min(kBlock, p_.size() - begin)); };
  double total = 0;
  for (size_t b = 0; b < p_.size(); b += kBlock) total += block_sum(b);
  double left = uniform() * total;
  size_t chosen = 0;  // rounding may leave a remainder at the end: then the last possible token
  for (size_t b = 0; b < p_.size(); b += kBlock) {
    const double block = block_sum(b);
    if (left >= block && b + kBlock < p_.size()) {
      left -= block;
      continue;
    }
    for (size_t i = b; i < std::min(b + kBlock, p_.size()); ++i) {
      if (p_[i] == 0) continue;
      chosen = i;
      if ((left -= p_[i]) < 0) return ids_[chosen];
    }
  }
  return ids_[chosen];
}

// xoshiro256** (Blackman & Vigna, arXiv:1805.01407), as 53 bits in [0, 1).
double Sampler::uniform() {
  const uint64_t result = std::rotl(state_[1] * 5, 7) * 9, t = state_[1] << 17;
  state_[2] ^= state_[0];
  state_[3] ^= state_[1];
  state_[1] ^= state_[2];
  state_[0] ^= state_[3];
  state_[2] ^= t;
  state_[3] = std::rotl(state_[3], 45);
  return static_cast<double>(result >> 11) * 0x1p-53;
}

}  // namespace hotset::sampling
