#include "sampling/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <mutex>
#include <numeric>
#include <string>

#include "base/error.h"

namespace hotset::sampling {
namespace {

constexpr int kDigitBits = 11;                  // three passes over 32 bits
constexpr uint32_t kDigits = 1u << kDigitBits;  // buckets of one pass
constexpr float kInf = std::numeric_limits<float>::infinity(), kHighest = std::numeric_limits<float>::max();

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

// Throws for NaN and +inf; -inf is a token that cannot be chosen.
void refuse_bad(std::span<const float> x) {
  const auto at = std::find_if(x.begin(), x.end(), [](float v) { return !(v < kInf); });
  if (at == x.end()) return;
  throw InvalidArgument("logit of token " + std::to_string(at - x.begin()) + " is " +
                        (*at > 0 ? "+inf" : "NaN") + ": the model's weights or its arithmetic are broken");
}

std::vector<int32_t> distinct_of(std::span<const int32_t> tokens) {
  std::vector<int32_t> sorted(tokens.begin(), tokens.end());
  std::ranges::sort(sorted);
  sorted.erase(std::ranges::unique(sorted).begin(), sorted.end());
  return sorted;
}

size_t blocks_of(size_t n, size_t block) { return (n + block - 1) / block; }

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

class Sampler::Loan {
 public:
  explicit Loan(Work*& borrower) : borrower_(borrower) {
    {
      const std::lock_guard lock(mutex_);
      work_ = std::move(unused_);
      if (work_) unused_ = std::move(work_->next);
    }
    if (!work_) work_ = std::make_unique<Work>();
    borrower_ = work_.get();
  }
  ~Loan() {
    borrower_ = nullptr;
    const std::lock_guard lock(mutex_);
    work_->next = std::move(unused_);
    unused_ = std::move(work_);
  }
  Loan(const Loan&) = delete;

 private:
  static inline std::mutex mutex_;  // of unused_
  static inline std::unique_ptr<Work> unused_;
  Work*& borrower_;
  std::unique_ptr<Work> work_;
};

void Sampler::accept_prompt(std::span<const int32_t> tokens) {
  for (int32_t token : tokens) require(token >= 0, "prompt token " + std::to_string(token) + " is negative");
  for (int32_t token : tokens) highest_ = std::max(highest_, int64_t{token});
  if (!penalizes()) return;
  const std::vector<int32_t> distinct = distinct_of(tokens);
  const auto known = static_cast<ptrdiff_t>(seen_.size());
  seen_.reserve(seen_.size() + distinct.size());
  for (int32_t token : distinct) seen_.push_back({token, 0});
  // Of equal tokens those with a count come first, and stay.
  std::ranges::inplace_merge(seen_, seen_.begin() + known, {}, &Seen::token);
  seen_.erase(std::ranges::unique(seen_, {}, &Seen::token).begin(), seen_.end());
}

void Sampler::count(int32_t token) {
  highest_ = std::max(highest_, int64_t{token});
  if (!penalizes()) return;
  auto at = std::ranges::lower_bound(seen_, token, {}, &Seen::token);
  if (at == seen_.end() || at->token != token) at = seen_.insert(at, {token, 0});
  ++at->count;
}

int32_t Sampler::sample(std::span<const float> logits, const uint32_t* mask, float* logprob) {
  require(!logits.empty(), "logits are empty");
  const Loan loan(work_);
  work_->maxima.resize(blocks_of(logits.size(), kernels::kMaximaBlock));
  if (!k_.block_maxima(logits.data(), logits.size(), work_->maxima.data())) refuse_bad(logits);
  check_tokens(logits.size());
  const int32_t token = choose(logits, mask);
  count(token);
  if (logprob != nullptr) {
    float max, lse;
    k_.logsumexp(logits.data(), logits.size(), &max, &lse);
    *logprob = logits[static_cast<size_t>(token)] - lse;
  }
  return token;
}

void Sampler::check_tokens(size_t vocab) const {
  require(highest_ < static_cast<int64_t>(vocab), "prompt token " + std::to_string(highest_) +
                                                      " is outside the vocabulary of " +
                                                      std::to_string(vocab) + " tokens");
  for (const auto& [token, bias] : params_.logit_bias)
    require(static_cast<size_t>(token) < vocab, "logit_bias names token " + std::to_string(token) +
                                                    ", outside the vocabulary of " + std::to_string(vocab) +
                                                    " tokens");
}

template <class Keep>
void Sampler::compact(Keep keep) {
  auto& ids = work_->ids;
  auto &x = work_->x, &p = work_->p;
  size_t n = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const bool kept = keep(i);  // before the slots are overwritten; n <= i
    ids[n] = ids[i];
    x[n] = x[i];
    p[n] = p[i];
    n += kept;
  }
  ids.resize(n), x.resize(n), p.resize(n);
}

int32_t Sampler::choose(std::span<const float> logits, const uint32_t* mask) {
  std::span<const float> x = logits;
  if (mask != nullptr || !params_.logit_bias.empty() || !seen_.empty()) {
    std::vector<float>& adjusted = work_->adjusted;
    adjusted.assign(logits.begin(), logits.end());
    if (mask != nullptr) apply_mask(adjusted, mask);
    adjust(adjusted);
    x = adjusted;
    k_.block_maxima(x.data(), x.size(), work_->maxima.data());
  }
  const float max = *std::ranges::max_element(work_->maxima);
  require(max > -kInf, "no token can be chosen: mask and logit_bias exclude all " + std::to_string(x.size()));
  require(max < kInf,
          "logit of token " + std::to_string(first_of(x, max)) + " overflows after bias and penalties");
  const SamplingParams& p = params_;
  if (p.temperature == 0) return first_of(x, max);
  if (p.top_k > 0 || p.top_p < 1 || p.min_p > 0) {
    filter(x, max);
    return work_->ids[draw()];
  }
  weigh(x, max);
  return static_cast<int32_t>(draw());
}

int32_t Sampler::first_of(std::span<const float> x, float logit) const {
  const auto block = std::ranges::find(work_->maxima, logit) - work_->maxima.begin();
  const auto begin = x.begin() + block * static_cast<ptrdiff_t>(kernels::kMaximaBlock);
  return static_cast<int32_t>(std::find(begin, x.end(), logit) - x.begin());
}

// A bound on the logits, found in one pass at most, leaves few tokens for the exact filters.
void Sampler::filter(std::span<const float> x, float max) {
  const SamplingParams& p = params_;
  auto &weights = work_->p, &sums = work_->sums;
  double total = 0;
  if (p.top_k > 0) {
    gather(x, kth_block_maximum(static_cast<size_t>(p.top_k)));
    keep_top(p.top_k, false);
  } else if (p.top_p < 1) {  // n tokens below 1/n of what may go are less than that together
    weigh(x, max);
    total = std::accumulate(sums.begin(), sums.end(), 0.0);
    gather(x, logit_of((1.0 - p.top_p) * total / static_cast<double>(x.size()), max));
  } else {
    gather(x, logit_of(p.min_p, max));
  }
  weigh(work_->x, max);
  if (p.top_k > 0) total = sum(weights.data(), weights.size());
  if (p.top_p < 1) keep_top(p.top_p * total, true);
  if (p.min_p > 0) compact([&](size_t i) { return weights[i] >= p.min_p; });  // the best one's p is 1
  sums.clear();
  for (size_t i = 0; i < weights.size(); i += kernels::kWeightsBlock)
    sums.push_back(
        static_cast<float>(sum(&weights[i], std::min(kernels::kWeightsBlock, weights.size() - i))));
}

// At least k logits are as large, and the k best among them.
float Sampler::kth_block_maximum(size_t k) {
  if (k >= work_->maxima.size()) return -kInf;
  std::vector<float>& ordered = work_->p;
  ordered = work_->maxima;
  const auto kth = ordered.begin() + static_cast<ptrdiff_t>(k - 1);
  std::nth_element(ordered.begin(), kth, ordered.end(), std::greater<>());
  return *kth;
}

// A logit below all whose weight is at least `weight`: 0.1 % is far more than rounding takes.
float Sampler::logit_of(double weight, float max) const {
  const double logit = max + params_.temperature * (std::log(weight) - 1e-3);
  return std::nextafter(static_cast<float>(std::max(logit, -double{kHighest})), -kInf);
}

// The tokens with logits of at least `lowest`.
void Sampler::gather(std::span<const float> x, float lowest) {
  constexpr size_t kBlock = kernels::kMaximaBlock;
  Work& w = *work_;
  w.ids.clear(), w.x.clear();
  for (size_t b = 0; b < w.maxima.size(); ++b) {
    if (w.maxima[b] < lowest) continue;
    int32_t ids[kBlock];
    float kept[kBlock];
    size_t n = 0;
    for (size_t i = b * kBlock; i < std::min(x.size(), (b + 1) * kBlock); ++i) {
      ids[n] = static_cast<int32_t>(i);
      kept[n] = x[i];
      n += x[i] >= lowest;
    }
    w.ids.insert(w.ids.end(), ids, ids + n);
    w.x.insert(w.x.end(), kept, kept + n);
  }
  w.p.resize(w.x.size());
}

bool Sampler::penalizes() const {
  const SamplingParams& p = params_;
  return p.repetition_penalty != 1 || p.presence_penalty != 0 || p.frequency_penalty != 0;
}

void Sampler::adjust(std::span<float> x) const {
  const SamplingParams& p = params_;
  for (const auto& [token, bias] : p.logit_bias) x[static_cast<size_t>(token)] += bias;
  for (const auto& [token, count] : seen_) {
    float& v = x[static_cast<size_t>(token)];
    v = v < 0 ? v * p.repetition_penalty : v / p.repetition_penalty;
    if (count > 0) v -= p.presence_penalty + p.frequency_penalty * static_cast<float>(count);
  }
}

// Keeps the fewest tokens, best first, whose weights (1 each, or p) reach `target`; at least one. A radix
// select over the bits of the logits: three passes and no sort, whatever the distribution.
void Sampler::keep_top(double target, bool by_probability) {
  const auto &x = work_->x, &p = work_->p;
  const auto weight = [&](size_t i) { return by_probability ? double{p[i]} : 1.0; };
  double above = 0;  // weight of the tokens known to be better than the boundary
  uint64_t cut = 0;  // key of the boundary, as far as known
  for (int shift : {22, 11, 0}) {
    double histogram[kDigits] = {};
    for (size_t i = 0; i < x.size(); ++i) {
      const uint64_t key = order_key(x[i]);
      if (key >> shift >> kDigitBits == cut >> shift >> kDigitBits)
        histogram[key >> shift & (kDigits - 1)] += weight(i);
    }
    cut |= uint64_t{boundary_digit(histogram, target, above)} << shift;
    compact([&](size_t i) { return order_key(x[i]) >> shift >= cut >> shift; });
  }
  size_t last = x.size();  // of the equal logits at the boundary, the lowest tokens stay
  for (size_t i = 0; i < x.size() && (last == x.size() || above < target); ++i)
    if (order_key(x[i]) == cut) above += weight(i), last = i;
  compact([&](size_t i) { return order_key(x[i]) > cut || i <= last; });
}

void Sampler::weigh(std::span<const float> x, float max) {
  work_->p.resize(x.size());
  work_->sums.resize(blocks_of(x.size(), kernels::kWeightsBlock));
  // Bounded, as the best logit's distance of 0 must stay one.
  const float scale = std::min(1 / params_.temperature, kHighest);
  k_.softmax_weights(x.data(), x.size(), max, scale, work_->p.data(), work_->sums.data());
}

// Inverse of the cumulative sum at a uniform point: whole blocks first, then inside one.
size_t Sampler::draw() {
  constexpr size_t kBlock = kernels::kWeightsBlock;
  const auto &p = work_->p, &sums = work_->sums;
  double left = uniform() * std::accumulate(sums.begin(), sums.end(), 0.0);
  size_t chosen = 0;  // rounding may leave a remainder at the end: then the last possible token
  for (size_t b = 0; b < sums.size(); ++b) {
    if (left >= sums[b] && b + 1 < sums.size()) {
      left -= sums[b];
      continue;
    }
    for (size_t i = b * kBlock; i < std::min((b + 1) * kBlock, p.size()); ++i) {
      if (p[i] == 0) continue;
      chosen = i;
      if ((left -= p[i]) < 0) return chosen;
    }
  }
  return chosen;
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
