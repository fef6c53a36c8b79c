#include <algorithm>
#include <numbers>

#include "kernel_cases.h"

namespace cases {

namespace {

using namespace hotset;
using kernels::Activation;

size_t random_length(Rng& rng) { return rng.one_in(4) ? rng.between(1, 5000) : rng.between(1, 70); }

double activation(Activation f, float threshold, double x) {
  switch (f) {
    case Activation::none:
      return x;
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::gelu:
      return 0.5 * x * std::erfc(-x * M_SQRT1_2);
    case Activation::gelu_tanh: {
      return x / (1 + std::exp(-2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    }
    case Activation::relu:
      return x > 0 ? x : 0;
    case Activation::relu2:
      return x > 0 ? x * x : 0;
    case Activation::shifted_relu:
      return x > threshold ? x : 0;
  }
  return 0;
}

// Relative error: that of exp, 1/x and a few products, and the rounding of the exponent itself, which is as
// large as |exponent| units (x, x^2 / 2, or 2 sqrt(2/pi)(x + 0.0447 x^3)).
double activation_error(Activation f, double x) {
  if (f <= Activation::none || f >= Activation::relu) return 2 * kUnit;
  const double a = std::abs(x);
  const double exponent = f == Activation::silu   ? a
                          : f == Activation::gelu ? x * x / 2
                                                  : 1.6 * a + 0.0714 * a * a * a;
  return 1e-6 + 8 * kUnit * std::min(exponent, 100.0);
}

constexpr Activation kActivations[] = {Activation::none,        Activation::silu, Activation::gelu,
                                       Activation::gelu_tanh,   Activation::relu, Activation::relu2,
                                       Activation::shifted_relu};

void check_block_maxima(const Kernels& k, const std::vector<float>& x) {
  std::vector<float> maxima((x.size() + 63) / 64);
  const bool finite = k.block_maxima(x.data(), x.size(), maxima.data());
  CHECK(finite == std::all_of(x.begin(), x.end(), [](float v) { return std::isfinite(v); }));
  for (size_t b = 0; b < maxima.size(); ++b)
    CHECK(maxima[b] == *std::max_element(&x[b * 64], &x[b * 64] + std::min<size_t>(64, x.size() - b * 64)));
}

// Within 2 ulp of exp, sums of f32 on 16 chains, and every ISA the scalar's bits.
void check_softmax_weights(const Kernels& k, const std::vector<float>& x, float top, float scale) {
  if (top == -INFINITY) return;
  std::vector<float> p(x.size()), sums((x.size() + 1023) / 1024), twin = p, twin_sums = sums;
  k.softmax_weights(x.data(), x.size(), top, scale, p.data(), sums.data());
  kernels::select("scalar").softmax_weights(x.data(), x.size(), top, scale, twin.data(), twin_sums.data());
  CHECK(same_bits(p, twin) && same_bits(sums, twin_sums));
  std::vector<double> want_sums(sums.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const float exponent = (x[i] - top) * scale;
    const double want = exponent < -87 ? 0 : std::exp(double{exponent});
    close(p[i], want, 4 * kUnit * want, k.isa, "softmax_weights", i);
    want_sums[i / 1024] += p[i];
  }
  for (size_t b = 0; b < sums.size(); ++b)
    close(sums[b], want_sums[b], 70 * kUnit * want_sums[b], k.isa, "softmax_weights sum", b);
}

}  // namespace

// y = (x - mean) * scale * w + b: mean and variance are sums of n terms; the subtraction passes on the mean's
// error.
void check_norms(const Kernels& k, Rng rng) {
  const size_t n = random_length(rng);
  const float eps = rng.pick({1e-5f, 1e-6f});
  std::vector<float> x = rng.values(n, rng.pick({1.0f, 1e-3f, 1e4f}));
  const std::vector<float> w = rng.values(n, 1.0f), b = rng.values(n, 1.0f);
  const bool weighted = !rng.one_in(3), biased = !rng.one_in(3);
  std::vector<float> rms(n), layer(n);
  k.rms_norm(x.data(), weighted ? w.data() : nullptr, eps, n, rms.data());
  k.layer_norm(x.data(), weighted ? w.data() : nullptr, biased ? b.data() : nullptr, eps, n, layer.data());
  double mean = 0, square = 0, variance = 0, magnitude = 0;
  for (const float v : x) {
    mean += v / static_cast<double>(n);
    magnitude += std::abs(v) / static_cast<double>(n);
    square += static_cast<double>(v) * v / static_cast<double>(n);
  }
  for (const float v : x) variance += (v - mean) * (v - mean) / static_cast<double>(n);
  const double length = static_cast<double>(n) + 8, spread = std::sqrt(variance + eps);
  const double mean_error = length * kUnit * magnitude;
  for (size_t i = 0; i < n; ++i) {
    const double weight = weighted ? w[i] : 1.0, bias = biased ? b[i] : 0.0;
    const double want_rms = x[i] / std::sqrt(square + eps) * weight;
    close(rms[i], want_rms, length * kUnit * std::abs(want_rms) + 1e-37, k.isa, "rms_norm", i);
    const double want = (x[i] - mean) / spread * weight;
    const double tolerance = length * kUnit * (std::abs(want) + std::abs(want + bias)) +
                             std::abs(weight) * mean_error / spread * (2 + std::abs(x[i] - mean) / spread);
    close(layer[i], want + bias, tolerance + 1e-37, k.isa, "layer_norm", i);
  }
  k.rms_norm(x.data(), nullptr, eps, n, rms.data());
  k.rms_norm(x.data(), nullptr, eps, n, x.data());
  CHECK(same_bits(x, rms));  // in place
}

void check_activations(const Kernels& k, Rng rng) {
  const size_t n = random_length(rng);
  const float threshold = rng.normal(), h_threshold = rng.normal(), range = rng.pick({1.0f, 5.0f, 40.0f});
  const std::vector<float> x = rng.values(n, range), up = rng.values(n, range);
  for (const Activation f : kActivations) {
    std::vector<float> y = x;
    k.activate(f, threshold, n, y.data());
    for (size_t i = 0; i < n; ++i) {
      const double want = activation(f, threshold, x[i]);
      close(y[i], want, activation_error(f, x[i]) * std::abs(want) + 1e-36, k.isa, "activate", i);
    }
    for (const Activation h : kActivations) {
      std::vector<float> gate = x;
      k.glu(f, threshold, h, h_threshold, up.data(), n, gate.data());
      for (size_t i = 0; i < n; ++i) {
        const double a = activation(f, threshold, x[i]), b = activation(h, h_threshold, up[i]), want = a * b;
        const double error = activation_error(f, x[i]) + activation_error(h, up[i]) + 2 * kUnit;
        const double flushed = 1e-36 * (1 + std::abs(a) + std::abs(b));  // one branch may underflow to 0
        close(gate[i], want, error * std::abs(want) + flushed, k.isa, "glu", i);
      }
    }
  }
}

double expected_relu(double x, double noise) {
  const double z = std::abs(x) / noise, phi = std::exp(-0.5 * z * z) / std::sqrt(2 * std::numbers::pi);
  return std::max(x, 0.0) + noise * phi / (1 + 1.13 * z + 0.775 * z * z);
}

void check_expected(const Kernels& k, Rng rng) {
  const size_t n = random_length(rng);
  const std::vector<float> x = rng.values(n, 3.0f);
  std::vector<float> noise = rng.values(n, 1.0f), y = x;
  for (float& s : noise) s = std::abs(s) + 0.1f;
  k.expected(Activation::relu, 0.0f, noise.data(), n, y.data());
  for (size_t i = 0; i < n; ++i) {
    const double want = expected_relu(x[i], noise[i]);
    close(y[i], want, 1e-4 * want + 1e-30, k.isa, "expected", i);
  }
}

void check_rope_add(const Kernels& k, Rng rng) {
  const size_t half = rng.between(1, 130);
  const std::vector<float> x = rng.values(2 * half, 1.0f), other = rng.values(2 * half, 1.0f);
  std::vector<float> cosine(half), sine(half), y = x;
  for (size_t i = 0; i < half; ++i) {
    const double angle = rng.normal() * 100;
    cosine[i] = static_cast<float>(std::cos(angle));
    sine[i] = static_cast<float>(std::sin(angle));
  }
  k.rope(cosine.data(), sine.data(), half, y.data());
  for (size_t i = 0; i < half; ++i) {
    const double a = x[i], b = x[i + half], bound = 4 * kUnit * (std::abs(a) + std::abs(b)) + 1e-37;
    close(y[i], a * cosine[i] - b * sine[i], bound, k.isa, "rope", i);
    close(y[i + half], b * cosine[i] + a * sine[i], bound, k.isa, "rope", i + half);
  }
  std::vector<float> sum = x;
  k.add(other.data(), sum.size(), sum.data());
  for (size_t i = 0; i < sum.size(); ++i) CHECK(sum[i] == x[i] + other[i]);
}

void check_logits(const Kernels& k, Rng rng) {
  const size_t n = rng.one_in(10) ? rng.between(100000, 160000) : random_length(rng);
  std::vector<float> x = rng.values(n, rng.pick({1.0f, 10.0f, 1000.0f}));
  if (rng.one_in(3)) x[rng.between(0, n - 1)] = -INFINITY;
  if (rng.one_in(3)) x[rng.between(0, n - 1)] = x[rng.between(0, n - 1)];  // a tie
  const float top = *std::max_element(x.begin(), x.end());
  check_block_maxima(k, x);
  check_softmax_weights(k, x, top, rng.pick({1e-30f, 0.5f, 1.0f, 30.0f, 3e38f}));
  float max = 0, lse = 0;
  k.logsumexp(x.data(), n, &max, &lse);
  CHECK(max == top);
  double sum = 0;
  for (const float v : x) sum += std::exp(static_cast<double>(v) - top);
  const double want = top == -INFINITY ? -INFINITY : top + std::log(sum);
  // f32 sums of 4096 terms on at least 4 chains, exp, and the rounding of the result.
  if (top == -INFINITY)
    CHECK(lse == -INFINITY);
  else
    close(lse, want, 1100 * kUnit + 1e-6 + 2 * kUnit * std::abs(want), k.isa, "logsumexp", 0);
}

// q is the nearest integer to x / d up to the rounding of the quotient; every ISA must give the scalar's
// bytes.
void check_quantize(const Kernels& k, Rng rng) {
  const size_t cols = rng.between(1, 300), groups = quant::col_blocks(cols) * 2, n = rng.between(1, 16);
  const size_t t = rng.between(0, n - 1);
  const std::vector<float> x = rng.values(cols, rng.pick({1.0f, 1e-30f, 1e30f, 1e-38f}));
  std::vector<int8_t> q(groups * n * 32, 99), twin = q;
  std::vector<float> d(groups * n, 99.0f), twin_d = d;
  std::vector<int32_t> s(groups * n, 99), twin_s = s;
  k.quantize(x.data(), cols, {q.data(), d.data(), s.data(), n}, t);
  kernels::select("scalar").quantize(x.data(), cols, {twin.data(), twin_d.data(), twin_s.data(), n}, t);
  CHECK(q == twin && s == twin_s && same_bits(d, twin_d));
  for (size_t g = 0; g < groups; ++g) {
    const size_t at = g * n + t;
    int sum = 0;
    double top = 0;
    for (size_t i = 0; i < 32; ++i) {
      const double value = g * 32 + i < cols ? x[g * 32 + i] : 0;
      sum += q[at * 32 + i];
      top = std::max(top, std::abs(value));
    }
    CHECK(s[at] == sum);
    if (top < 1e-34) continue;  // below that a group may be flushed to 0
    close(d[at], top / 127, 2 * kUnit * top, k.isa, "quantize d", g);
    for (size_t i = 0; i < 32; ++i) {
      const double value = g * 32 + i < cols ? x[g * 32 + i] : 0;
      close(q[at * 32 + i] * (top / 127), value, top / 127 * (0.5 + 127 * 4 * kUnit), k.isa, "quantize q", i);
    }
  }
}

}  // namespace cases
